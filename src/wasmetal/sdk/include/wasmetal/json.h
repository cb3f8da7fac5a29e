/* Reading JSON (RFC 8259), value by value. Needs json.c and text.c.
 *
 *   Json json = json_of(data, len);
 *   json_enter(&json, '{');
 *   while (json_next(&json)) {
 *     json_key(&json, &key);
 *     if (text_is(&key, "n")) n = json_number(&json);
 *     else json_skip(&json);
 *   }
 *   if (!json_ended(&json)) ... it was no such JSON
 *
 * After an error everything fails, and nothing is read any more, so that one check at the end is enough. */
#ifndef WASMETAL_JSON_H
#define WASMETAL_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "wasmetal/text.h"

typedef struct Json {
  const char *at, *end;
  bool failed;
  bool entered; /* nothing of the innermost object or array has been read */
  int depth;
  uint64_t arrays; /* a bit for each that is entered, the innermost lowest: whether it is an array */
} Json;

Json json_of(const char *data, size_t len);

/* Enters an object ('{') or an array ('['), up to 64 in one another. */
bool json_enter(Json *json, char open);

/* Whether there is another member or element; if not, leaves the object or array. */
bool json_next(Json *json);

/* A member's name: replaces the text. */
bool json_key(Json *json, Text *key);

/* A string, UTF-8: replaces the text. Halves of surrogate pairs become U+FFFD. */
bool json_string(Json *json, Text *out);

/* A number; 0 after an error. */
double json_number(Json *json);

/* Whether a true or a false, which comes next, is true. */
bool json_true(Json *json);

/* Whether a null comes next, which is then read. */
bool json_null(Json *json);

/* Reads a value of any kind. */
bool json_skip(Json *json);

/* Whether all has been read, without an error. */
bool json_ended(Json *json);

/* Whether a text is this zero-terminated string. */
bool text_is(const Text *text, const char *string);

#endif
