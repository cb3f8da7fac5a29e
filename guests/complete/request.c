#include "request.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static bool refuse(const char *reason) {
  fprintf(stderr, "complete: %s\n", reason);
  return false;
}

static bool read_all(void *out, size_t size) {
  char *at = out;
  while (size) {
    ssize_t got = read(STDIN_FILENO, at, size);
    if (got <= 0) return refuse("the request ends early");
    at += got;
    size -= (size_t)got;
  }
  return true;
}

static void *read_array(uint32_t count, size_t size) {
  void *array = calloc(count ? count : 1, size);
  if (!array) return refuse("out of memory"), NULL;
  if (!read_all(array, count * size)) return free(array), NULL;
  return array;
}

bool request_read(Request *request, const wm_model_info *info) {
  RequestHeader *h = &request->header;
  if (!read_all(h, sizeof *h)) return false;
  if (h->magic != REQUEST_MAGIC) return refuse("no request of this version");
  if (!h->prompt_tokens || h->prompt_tokens > info->context_length) return refuse("the prompt does not fit the context");
  if (!h->max_tokens) return refuse("max_tokens is 0");
  if (h->logprobs > WM_MAX_TOP + 1) return refuse("too many logprobs");
  if (h->biases > info->vocab_size) return refuse("too many biases");
  if (h->masks > 1) return refuse("masks are there or not");
  if (!h->piece) return refuse("a piece of no tokens");
  if (h->stops > MAX_STOPS) return refuse("too many stop strings");
  request->sampler = (Sampler){.temperature = h->temperature, .top_k = h->top_k, .top_p = h->top_p, .min_p = h->min_p,
                               .repeat_penalty = 1, .seed = (uint64_t)h->seed_high << 32 | h->seed_low};
  request->prompt = read_array(h->prompt_tokens, sizeof *request->prompt);
  if (!request->prompt) return false;
  request->biases = read_array(h->biases, sizeof *request->biases);
  if (!request->biases) return false;
  for (uint32_t i = 0; i < h->biases; i++)
    if (request->biases[i].token >= info->vocab_size) return refuse("a bias of a token that does not exist");
  for (uint32_t i = 0; i < h->stops; i++) {
    Stop *stop = &request->stops[i];
    if (!read_all(&stop->len, sizeof stop->len)) return false;
    if (!stop->len || stop->len > MAX_STOP) return refuse("an empty stop string, or a long one");
    if (!read_all(stop->text, stop->len)) return false;
  }
  return true;
}

bool mask_read(uint32_t *mask, uint32_t vocab_size) { return read_all(mask, (vocab_size + 31) / 32 * sizeof *mask); }
