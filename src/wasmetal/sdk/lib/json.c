#include "wasmetal/json.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define DEPTH 64
#define LONGEST 64 /* characters of a number */

Json json_of(const char *data, size_t len) { return (Json){.at = data, .end = data + len}; }

static bool fail(Json *json) {
  json->failed = true;
  return false;
}

/* The next character that is no space, which is not read; 0 at the end and after an error. */
static char peek(Json *json) {
  while (json->at < json->end && strchr(" \t\r\n", *json->at) && *json->at) json->at++;
  return json->failed || json->at == json->end ? 0 : *json->at;
}

static bool take(Json *json, char c) {
  if (peek(json) != c) return fail(json);
  json->at++;
  return true;
}

bool json_enter(Json *json, char open) {
  if (json->depth == DEPTH || !take(json, open)) return fail(json);
  json->entered = true;
  json->depth++;
  json->arrays = json->arrays << 1 | (open == '[');
  return true;
}

bool json_next(Json *json) {
  char c = peek(json);
  bool first = json->entered;
  json->entered = false;
  if (!c || !json->depth) return fail(json);
  if (c == (json->arrays & 1 ? ']' : '}')) {
    json->at++;
    json->depth--;
    json->arrays >>= 1;
    return false;
  }
  return first || take(json, ',');
}

/* Four hexadecimal digits. */
static uint32_t unit(Json *json) {
  uint32_t value = 0;
  for (int i = 0; i < 4; i++) {
    char c = json->at < json->end ? *json->at++ : 0;
    uint32_t digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : 16;
    if (digit == 16) return fail(json);
    value = value << 4 | digit;
  }
  return value;
}

static void add_character(Text *out, uint32_t c) {
  char bytes[4];
  size_t len = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
  for (size_t i = len; i-- > 1; c >>= 6) bytes[i] = (char)(0x80 | (c & 0x3f));
  bytes[0] = (char)(len == 1 ? c : (0xf00 >> len & 0xff) | c);
  text_add(out, bytes, len);
}

/* What follows a backslash. */
static void escape(Json *json, Text *out) {
  static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
  char c = json->at < json->end ? *json->at++ : 0;
  const char *found = c ? strchr(names, c) : NULL;
  if (found) {
    text_add(out, values + (found - names), 1);
  } else if (c == 'u') {
    uint32_t high = unit(json), low;
    if (high >= 0xd800 && high < 0xdc00 && json->end - json->at >= 6 && json->at[0] == '\\' && json->at[1] == 'u') {
      const char *here = json->at;
      json->at += 2;
      low = unit(json);
      if (low >= 0xdc00 && low < 0xe000) high = 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
      else json->at = here;
    }
    add_character(out, high >= 0xd800 && high < 0xe000 ? 0xfffd : high);
  } else {
    fail(json);
  }
}

bool json_string(Json *json, Text *out) {
  out->len = 0;
  if (!take(json, '"')) return false;
  while (!json->failed) {
    const char *begin = json->at;
    while (json->at < json->end && *json->at != '"' && *json->at != '\\' && (unsigned char)*json->at >= 0x20) json->at++;
    text_add_utf8(out, begin, (size_t)(json->at - begin));
    if (json->at == json->end) return fail(json);
    char c = *json->at++;
    if (c == '"') return true;
    if (c == '\\') escape(json, out);
    else fail(json);
  }
  return false;
}

bool json_key(Json *json, Text *key) { return json_string(json, key) && take(json, ':'); }

double json_number(Json *json) {
  char digits[LONGEST + 1], *end;
  size_t len = 0;
  peek(json);
  while (!json->failed && json->at < json->end && *json->at && strchr("+-.eE0123456789", *json->at) && len < LONGEST)
    digits[len++] = *json->at++;
  digits[len] = 0;
  double value = strtod(digits, &end);
  if (!len || *end) return fail(json);
  return value;
}

static bool word(Json *json, const char *text) {
  size_t len = strlen(text);
  peek(json);
  if (json->failed || (size_t)(json->end - json->at) < len || memcmp(json->at, text, len)) return false;
  json->at += len;
  return true;
}

bool json_null(Json *json) { return word(json, "null"); }

bool json_true(Json *json) {
  if (word(json, "true")) return true;
  if (!word(json, "false")) fail(json);
  return false;
}

bool json_skip(Json *json) {
  Text text = {0};
  char c = peek(json);
  if (c == '"') {
    json_string(json, &text);
  } else if (c == '{' || c == '[') {
    json_enter(json, c);
    while (json_next(json)) {
      if (c == '{') json_key(json, &text);
      if (!json_skip(json)) break;
    }
  } else if (!json_null(json) && !word(json, "true") && !word(json, "false")) {
    json_number(json);
  }
  free(text.data);
  return !json->failed;
}

bool json_ended(Json *json) {
  peek(json);
  return !json->failed && !json->depth && json->at == json->end;
}

bool text_is(const Text *text, const char *string) {
  return text->len == strlen(string) && !memcmp(text->data, string, text->len);
}
