/* Strings that grow. Needs text.c. A Text begins as {0}; free(text.data) releases it. */
#ifndef WASMETAL_TEXT_H
#define WASMETAL_TEXT_H

#include <stddef.h>

typedef struct Text {
  char *data; /* not zero-terminated */
  size_t len; /* bytes in use */
  size_t cap; /* bytes allocated */
} Text;

/* Makes room for `more` bytes after the text, and returns their address. text->len stays as it is. These functions end
 * the program with exit code 1 if there is no memory. */
char *text_room(Text *text, size_t more);

/* Appends len bytes, or a zero-terminated string. */
void text_add(Text *text, const char *data, size_t len);
void text_add_string(Text *text, const char *string);

/* Appends data as UTF-8. Bytes that are not UTF-8 become U+FFFD. */
void text_add_utf8(Text *text, const char *data, size_t len);

/* Appends data as a JSON string, quotes included. Bytes that are not UTF-8 become U+FFFD. */
void text_add_json(Text *text, const char *data, size_t len);

#endif
