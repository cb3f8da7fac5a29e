/* What the host gets: records on standard output, one for each token of the text and one for its end. A token is held
 * back while its text may be, or be followed by, the rest of a stop string. If the host gives masks, each token, also one
 * that ends the text, has another record as soon as it is drawn. Little-endian, without gaps. */
#ifndef REPLY_H
#define REPLY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "request.h"
#include "wasmetal/text.h"

typedef enum Kind { KIND_TOKEN = 1, KIND_END = 2, KIND_DRAWN = 3 } Kind;
typedef enum Reason { REASON_STOP = 1, REASON_LENGTH = 2 } Reason;

/* Followed by the `tops`, and `len` bytes of text. */
typedef struct TokenRecord {
  uint32_t kind; /* KIND_TOKEN */
  wm_token token;
  float logprob; /* of the token in the model's distribution; 0 if it is not wanted */
  uint32_t tops; /* the likeliest tokens, the likeliest first */
  uint32_t len;  /* its bytes, without those that a stop string cut off: they need not be whole characters */
} TokenRecord;

typedef struct TopRecord {
  wm_token token;
  float logprob;
} TopRecord;

typedef struct EndRecord {
  uint32_t kind;   /* KIND_END */
  uint32_t reason; /* a Reason */
  uint32_t drawn;  /* tokens, with those that ended the text and those that a stop string cut off */
} EndRecord;

typedef struct DrawnRecord {
  uint32_t kind; /* KIND_DRAWN */
  wm_token token;
} DrawnRecord;

typedef struct Held {
  TokenRecord record;
  TopRecord tops[WM_MAX_TOP];
} Held;

typedef struct Reply {
  const Stop *stops;
  uint32_t stop_count;
  Held *held; /* tokens that are not written yet, */
  size_t count, cap;
  Text text; /* and their text */
} Reply;

/* Adds a token; `len` is its text's. True if the text now holds a stop string: then this was the last. */
bool reply_add(Reply *reply, const Held *token, const char *text, size_t len);

/* Writes the tokens that were added, in one piece, but for those that are held back. */
void reply_flush(Reply *reply);

/* Tells which token was drawn. */
void reply_drawn(wm_token token);

/* Writes what is held back, and the end. */
void reply_end(Reply *reply, Reason reason, uint32_t drawn);

#endif
