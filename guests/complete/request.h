/* What the host asks for: one completion of a prompt, on standard input. Little-endian, without gaps. */
#ifndef REQUEST_H
#define REQUEST_H

#include <stdbool.h>
#include <stdint.h>

#include "wasmetal/sampler.h"
#include "wasmetal.h"

#define REQUEST_MAGIC 0x33636d77 /* "wmc3" */
#define MAX_STOPS 16
#define MAX_STOP 1024 /* bytes of a stop string */

/* Followed by the prompt's tokens, the biases, and each stop string after its length, uint32_t. */
typedef struct RequestHeader {
  uint32_t magic;
  uint32_t prompt_tokens; /* 1 or more */
  uint32_t max_tokens;    /* 1 or more */
  uint32_t min_tokens;    /* before so many, nothing that ends the text is drawn */
  uint32_t logprobs;      /* 0: none; else 1 more than how many of the likeliest tokens are wanted, too */
  uint32_t top_k;         /* these as in Sampler */
  float temperature, top_p, min_p;
  float presence_penalty, frequency_penalty; /* subtracted from the logits of tokens that were drawn: once, each time */
  uint32_t biases, stops;
  uint32_t seed_low, seed_high;
  uint32_t masks; /* 1: before each token, the host says which may be drawn, and after it is told (reply.h) which was */
  uint32_t piece; /* 1 or more: most tokens that are drawn before they are written together */
} RequestHeader;

typedef struct Bias {
  wm_token token;
  float bias; /* added to its logit */
} Bias;

typedef struct Stop {
  uint32_t len; /* 1 to MAX_STOP */
  char text[MAX_STOP];
} Stop;

typedef struct Request {
  RequestHeader header;
  Sampler sampler;
  wm_token *prompt;
  Bias *biases;
  Stop stops[MAX_STOPS];
} Request;

/* Reads one. False, with a line on standard error, if it is none, or not for this model. */
bool request_read(Request *request, const wm_model_info *info);

/* Reads which tokens may be drawn next: a bit for each of the vocabulary, the lowest of a word first. False, with a line
 * on standard error, if the host gives none. */
bool mask_read(uint32_t *mask, uint32_t vocab_size);

#endif
