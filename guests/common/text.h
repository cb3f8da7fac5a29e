/* A string that grows. */
#ifndef TEXT_H
#define TEXT_H

#include <stddef.h>

typedef struct Text {
  char *data;
  size_t len, cap;
} Text;

/* Makes room for `more` bytes behind the text, and returns the place. Ends the program if memory is out. */
char *text_room(Text *text, size_t more);

void text_add(Text *text, const char *data, size_t len);
void text_add_string(Text *text, const char *string);

/* Adds data as UTF-8. Bytes that are not become U+FFFD. */
void text_add_utf8(Text *text, const char *data, size_t len);

/* Adds data as a JSON string, quotes included. Bytes that are not UTF-8 become U+FFFD. */
void text_add_json(Text *text, const char *data, size_t len);

#endif
