/* Drafts of an answer's next tokens, found in what was said before or made by a second model. */
#ifndef DRAFTING_H
#define DRAFTING_H

#include "wasmetal/sampler.h"
#include "wasmetal/speculate.h"
#include "wasmetal.h"

#define MAX_DRAFT (WM_MAX_TOP_ROWS - 1) /* a pass has the draft after the token that was drawn last */

typedef struct Drafting {
  wm_session session;      /* of the draft model; 0: there is none, and drafts are looked up */
  uint32_t context_length; /* tokens that this session can hold, */
  uint32_t length;         /* and that it holds: the conversation's first */
  wm_token draft[MAX_DRAFT];
  uint32_t count; /* tokens in the draft */
  /* What a draft model drew each of them from: */
  uint32_t choices[MAX_DRAFT], tokens[MAX_DRAFT][WM_MAX_TOP];
  double probabilities[MAX_DRAFT][WM_MAX_TOP];
} Drafting;

/* The conversation keeps only its first n tokens. */
wm_errno drafting_truncate(Drafting *drafting, uint32_t n);

/* Has the draft model read the conversation's n tokens, if its context has room for them. */
wm_errno drafting_prefill(Drafting *drafting, const wm_token *tokens, uint32_t n);

/* Makes a draft of at most `most` (up to MAX_DRAFT) tokens that may follow the conversation's n (at least 1). The sampler
 * chooses from the k likeliest. */
wm_errno drafting_propose(Drafting *drafting, Sampler *sampler, uint32_t k, const wm_token *tokens, uint32_t n,
                          uint32_t most);

/* Draws the token in the place of the i-th of the draft, from the model's k likeliest. It is the draft's if that is
 * accepted. i = count gives the token after the draft. */
wm_token drafting_draw(const Drafting *drafting, Sampler *sampler, uint32_t i, const wm_candidate *top, uint32_t k);

#endif
