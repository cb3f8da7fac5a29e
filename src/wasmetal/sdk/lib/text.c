#include "wasmetal/text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

char *text_room(Text *text, size_t more) {
  if (text->cap - text->len < more) {
    size_t cap = text->cap * 2 > text->len + more ? text->cap * 2 : text->len + more;
    text->data = cap < text->len ? NULL : realloc(text->data, cap);
    if (!text->data) {
      fputs("out of memory\n", stderr);
      exit(1);
    }
    text->cap = cap;
  }
  return text->data + text->len;
}

void text_add(Text *text, const char *data, size_t len) {
  if (!len) return;
  memcpy(text_room(text, len), data, len);
  text->len += len;
}

void text_add_string(Text *text, const char *string) { text_add(text, string, strlen(string)); }

/* Bytes of the UTF-8 character at data (Unicode, table 3-7); 0 if it is not one. */
static size_t character(const unsigned char *data, size_t len) {
  unsigned char c = data[0], low = 0x80, high = 0xbf;
  size_t size = c < 0x80 ? 1 : c < 0xc2 ? 0 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : c < 0xf5 ? 4 : 0;
  if (c == 0xe0) low = 0xa0;
  if (c == 0xed) high = 0x9f;
  if (c == 0xf0) low = 0x90;
  if (c == 0xf4) high = 0x8f;
  if (size > len) return 0;
  for (size_t i = 1; i < size; i++, low = 0x80, high = 0xbf)
    if (data[i] < low || data[i] > high) return 0;
  return size;
}

void text_add_utf8(Text *text, const char *data, size_t len) {
  for (size_t i = 0, size; i < len; i += size ? size : 1) {
    size = character((const unsigned char *)data + i, len - i);
    if (size) text_add(text, data + i, size);
    else text_add_string(text, "\xef\xbf\xbd");
  }
}

void text_add_json(Text *text, const char *data, size_t len) {
  text_add_string(text, "\"");
  for (size_t i = 0, size; i < len; i += size) {
    unsigned char c = (unsigned char)data[i];
    size = character((const unsigned char *)data + i, len - i);
    if (!size) {
      text_add_string(text, "\\ufffd");
      size = 1;
    } else if (c < 0x20 || c == '"' || c == '\\') {
      char escape[7];
      snprintf(escape, sizeof escape, "\\u%04x", c);
      text_add_string(text, escape);
    } else {
      text_add(text, data + i, size);
    }
  }
  text_add_string(text, "\"");
}
