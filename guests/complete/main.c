/* One completion of a prompt, for a server: reads a request (request.h), writes the reply as it is made (reply.h).
 *
 * The host has made tokens of the prompt. What happens between prompt and reply happens here, in the sandbox: penalties,
 * sampling, log-probabilities, stop strings. Exit code 1, with a line on standard error, if it fails.
 */
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "reply.h"
#include "request.h"
#include "wasmetal/sampler.h"
#include "wasmetal.h"

#define BURST 128 /* tokens of a call of wm_session_generate, at most */

typedef struct Completion {
  Request request;
  wm_model model;
  wm_model_info info;
  wm_session session;
  wm_token *ends;
  uint32_t *offsets; /* where each token's bytes begin in pieces, and the end of the last */
  const char *pieces;
  uint32_t length; /* of the session */
  uint32_t drawn;  /* tokens */
  /* Either the likeliest are found, */
  wm_candidate top[WM_MAX_TOP];
  wm_logit_totals totals;
  /* or all logits are here: */
  float *logits, *raw; /* as they are sampled; as the model gave them */
  uint32_t *scratch;
  uint32_t *mask; /* which tokens may be drawn, if the host says so */
  uint32_t *times;            /* how often each token was drawn, */
  wm_token *seen, seen_count; /* and those that were */
} Completion;

static void check(wm_errno error, const char *what) {
  if (error == WM_SUCCESS) return;
  fprintf(stderr, "complete: %s: %s\n", what, strerror((int)error));
  exit(1);
}

static void *allocate(size_t count, size_t size) {
  void *memory = aligned_alloc(16, (count * size + 16) & ~(size_t)15);
  if (!memory) check(WM_NOMEM, "memory");
  return memset(memory, 0, count * size);
}

/* How many of the likeliest tokens are enough to draw from and to tell of; 0: all logits are needed. */
static uint32_t candidates(const Completion *c) {
  const RequestHeader *h = &c->request.header;
  if (h->presence_penalty != 0 || h->frequency_penalty != 0 || h->biases || h->masks) return 0;
  if (c->drawn < h->min_tokens) return 0;
  uint32_t k = h->temperature <= 0 ? 1 : h->top_k;
  if (!k) return 0;
  if (h->logprobs && k < h->logprobs - 1) k = h->logprobs - 1;
  if (k > c->info.vocab_size) k = c->info.vocab_size;
  return k <= WM_MAX_TOP ? k : 0;
}

static void open_model(Completion *c) {
  check(wm_model_open("default", 7, &c->model), "model_open");
  check(wm_model_describe(c->model, &c->info), "model_describe");
  size_t len = c->info.end_tokens;
  c->ends = allocate(len, sizeof *c->ends);
  check(wm_model_end_tokens(c->model, c->ends, len, &len), "model_end_tokens");
  wm_model_vocabulary(c->model, NULL, 0, &len);
  c->offsets = allocate(len, 1);
  check(wm_model_vocabulary(c->model, c->offsets, len, &len), "model_vocabulary");
  c->pieces = (const char *)(c->offsets + c->info.vocab_size + 1);
  check(wm_session_open(c->model, &c->session), "session_open");
}

static bool is_end(const Completion *c, wm_token token) {
  for (uint32_t i = 0; i < c->info.end_tokens; i++)
    if (c->ends[i] == token) return true;
  return false;
}

/* ---- The next token ----------------------------------------------------------------------------------------------- */

static void forward(Completion *c, const wm_token *tokens, uint32_t n) {
  uint32_t k = candidates(c);
  if (k) {
    check(wm_session_forward_top(c->session, tokens, n, 1, k, c->top, &c->totals), "session_forward_top");
  } else {
    if (!c->logits) {
      c->logits = allocate(c->info.vocab_size, sizeof *c->logits);
      c->raw = allocate(c->info.vocab_size, sizeof *c->raw);
      c->scratch = allocate(c->info.vocab_size, sizeof *c->scratch);
    }
    check(wm_session_forward(c->session, tokens, n, c->logits), "session_forward");
  }
  c->length += n;
}

static void penalize(Completion *c) {
  const RequestHeader *h = &c->request.header;
  for (uint32_t i = 0; i < c->seen_count; i++)
    c->logits[c->seen[i]] -= h->presence_penalty + h->frequency_penalty * (float)c->times[c->seen[i]];
  for (uint32_t i = 0; i < h->biases; i++) c->logits[c->request.biases[i].token] += c->request.biases[i].bias;
  if (c->drawn < h->min_tokens)
    for (uint32_t i = 0; i < c->info.end_tokens; i++) c->logits[c->ends[i]] = -INFINITY;
}

static void mask(Completion *c) {
  uint32_t n = c->info.vocab_size;
  if (!c->mask) c->mask = allocate((n + 31) / 32, sizeof *c->mask);
  if (!mask_read(c->mask, n)) exit(1);
  for (uint32_t i = 0; i < n; i++)
    if (!(c->mask[i / 32] >> i % 32 & 1)) c->logits[i] = -INFINITY;
}

static void remember(Completion *c, wm_token token) {
  const RequestHeader *h = &c->request.header;
  c->drawn++;
  if (h->presence_penalty == 0 && h->frequency_penalty == 0) return;
  if (!c->times) {
    c->times = allocate(c->info.vocab_size, sizeof *c->times);
    c->seen = allocate(c->info.context_length + 1, sizeof *c->seen);
  }
  if (!c->times[token]++) c->seen[c->seen_count++] = token;
}

/* The likeliest of all logits, the likeliest first; of equals, the lower first. */
static void find_tops(const float *logits, uint32_t n, TopRecord *tops, uint32_t count) {
  uint32_t found = 0;
  for (uint32_t token = 0; count && token < n; token++) {
    float logit = isnan(logits[token]) ? -INFINITY : logits[token];
    if (found == count && !(logit > tops[count - 1].logprob)) continue;
    uint32_t at = found < count ? found++ : count - 1;
    for (; at && logit > tops[at - 1].logprob; at--) tops[at] = tops[at - 1];
    tops[at] = (TopRecord){token, logit};
  }
}

/* What the logarithm of a probability is less than its logit. */
static double log_total(const float *logits, uint32_t n) {
  double max = -INFINITY, sum = 0;
  for (uint32_t i = 0; i < n; i++) max = logits[i] > max ? logits[i] : max;
  if (max == -INFINITY) return 0;
  for (uint32_t i = 0; i < n; i++) sum += isnan(logits[i]) ? 0 : exp(logits[i] - max);
  return max + log(sum);
}

/* Draws from what the last pass gave, and says how likely it was, if that is wanted. */
static void draw(Completion *c, Held *out) {
  const RequestHeader *h = &c->request.header;
  uint32_t k = candidates(c), n = c->info.vocab_size, tops = h->logprobs ? h->logprobs - 1 : 0;
  if (tops > n) tops = n;
  TokenRecord *record = &out->record;
  *record = (TokenRecord){.kind = KIND_TOKEN, .tops = tops};
  double total = 0;
  if (k) {
    float logits[WM_MAX_TOP];
    uint32_t scratch[WM_MAX_TOP];
    for (uint32_t i = 0; i < k; i++) logits[i] = c->top[i].logit;
    wm_candidate chosen = c->top[sample(&c->request.sampler, logits, k, scratch, NULL, 0)];
    record->token = chosen.token;
    record->logprob = chosen.logit;
    total = c->totals.max + log(c->totals.sum);
    for (uint32_t i = 0; i < tops; i++) out->tops[i] = (TopRecord){c->top[i].token, c->top[i].logit};
  } else {
    if (h->logprobs) {
      memcpy(c->raw, c->logits, n * sizeof *c->raw);
      total = log_total(c->raw, n);
      find_tops(c->raw, n, out->tops, tops);
    }
    penalize(c);
    if (h->masks) mask(c);
    record->token = sample(&c->request.sampler, c->logits, n, c->scratch, NULL, 0);
    record->logprob = c->raw[record->token];
  }
  record->logprob = h->logprobs ? (float)(record->logprob - total) : 0;
  for (uint32_t i = 0; i < tops; i++) out->tops[i].logprob = (float)(out->tops[i].logprob - total);
}

/* How many tokens the device may choose, one after another: 0 if it takes more than the likeliest to choose one, or they
 * are to be told of. */
static uint32_t burst(const Completion *c) {
  const RequestHeader *h = &c->request.header;
  if (h->logprobs || !candidates(c)) return 0;
  uint32_t room = c->info.context_length - c->length, left = h->max_tokens - c->drawn;
  uint32_t most = room < left ? room : left, piece = h->piece < BURST ? h->piece : BURST;
  return most < piece ? most : piece;
}

/* Runs a token, and those that the device chooses after it but for the last. Returns how many those are. */
static size_t generate(Completion *c, wm_token token, wm_token *out, uint32_t n) {
  Sampler *sampler = &c->request.sampler;
  wm_sampling how = {.seed = sampler->seed, .temperature = sampler->temperature, .top_k = candidates(c),
                     .top_p = sampler->top_p, .min_p = sampler->min_p};
  size_t count = 0;
  check(wm_session_generate(c->session, &token, 1, &how, c->ends, c->info.end_tokens, out, n, &count),
        "session_generate");
  sampler->seed = how.seed;
  c->length += (uint32_t)count;
  return count;
}

/* ---- The text ----------------------------------------------------------------------------------------------------- */

/* Adds a token to the text. False if it was the last: `reason` is then why. */
static bool add(Completion *c, Reply *reply, const Held *next, Reason *reason) {
  wm_token token = next->record.token;
  *reason = REASON_STOP;
  remember(c, token);
  if (is_end(c, token)) return false;
  if (reply_add(reply, next, c->pieces + c->offsets[token], c->offsets[token + 1] - c->offsets[token])) return false;
  *reason = REASON_LENGTH;
  return c->drawn < c->request.header.max_tokens;
}

/* Draws the next token, and adds it. */
static bool draw_and_add(Completion *c, Reply *reply, Held *next, Reason *reason) {
  draw(c, next);
  if (c->request.header.masks) reply_drawn(next->record.token);
  return add(c, reply, next, reason);
}

static Completion completion;

int main(void) {
  Completion *c = &completion;
  open_model(c);
  if (!request_read(&c->request, &c->info)) return 1;
  const RequestHeader *h = &c->request.header;
  Reply reply = {.stops = c->request.stops, .stop_count = h->stops};
  forward(c, c->request.prompt, h->prompt_tokens);
  static Held next;
  Reason reason;
  bool more = draw_and_add(c, &reply, &next, &reason);
  for (reply_flush(&reply); more && c->length < c->info.context_length; reply_flush(&reply)) {
    wm_token tokens[BURST], token = next.record.token;
    uint32_t n = burst(c);
    if (n) {
      size_t count = generate(c, token, tokens, n);
      for (size_t i = 0; more && i < count; i++) {
        next.record = (TokenRecord){.kind = KIND_TOKEN, .token = tokens[i]};
        more = add(c, &reply, &next, &reason);
      }
    } else {
      forward(c, &token, 1);
      more = draw_and_add(c, &reply, &next, &reason);
    }
  }
  reply_end(&reply, reason, c->drawn);
  return 0;
}
