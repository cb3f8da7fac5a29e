#include "drafting.h"

#define LONGEST 3 /* tokens that must be the same where a draft is looked up, if there are so many */

static wm_errno forward(Drafting *drafting, const wm_token *tokens, uint32_t n, uint32_t k, wm_candidate *top) {
  wm_logit_totals totals;
  wm_errno error = wm_session_forward_top(drafting->session, tokens, n, 1, k, top, &totals);
  if (error == WM_SUCCESS) drafting->length += n;
  return error;
}

wm_errno drafting_truncate(Drafting *drafting, uint32_t n) {
  if (n >= drafting->length) return WM_SUCCESS;
  drafting->length = n;
  return wm_session_truncate(drafting->session, n);
}

wm_errno drafting_prefill(Drafting *drafting, const wm_token *tokens, uint32_t n) {
  if (!drafting->session || n <= drafting->length || n > drafting->context_length) return WM_SUCCESS;
  wm_candidate top; /* nobody asks for it */
  return forward(drafting, tokens + drafting->length, n - drafting->length, 1, &top);
}

/* The distribution of a token, and the tokens that it may be. */
static uint32_t distribution(const Sampler *sampler, const wm_candidate *top, uint32_t k, uint32_t *tokens,
                             double *probabilities) {
  float logits[WM_MAX_TOP];
  for (uint32_t i = 0; i < k; i++) logits[i] = top[i].logit;
  uint32_t n = sampler_distribution(sampler, logits, k, tokens, probabilities, NULL, 0);
  for (uint32_t i = 0; i < n; i++) tokens[i] = top[tokens[i]].token;
  return n;
}

wm_errno drafting_propose(Drafting *drafting, Sampler *sampler, uint32_t k, const wm_token *tokens, uint32_t n,
                          uint32_t most) {
  drafting->count = 0;
  if (!drafting->session) {
    drafting->count = speculate_lookup(tokens, n, LONGEST, drafting->draft, most);
    return WM_SUCCESS;
  }
  const wm_token *next = tokens + drafting->length;
  uint32_t next_n = n - drafting->length;
  for (uint32_t i = 0; i < most && drafting->length + next_n <= drafting->context_length; i++) {
    wm_candidate top[WM_MAX_TOP];
    wm_errno error = forward(drafting, next, next_n, k, top);
    if (error != WM_SUCCESS) return error;
    drafting->choices[i] = distribution(sampler, top, k, drafting->tokens[i], drafting->probabilities[i]);
    Choices from = {drafting->choices[i], drafting->tokens[i], drafting->probabilities[i]};
    drafting->draft[i] = speculate_draw(&from, &sampler->seed);
    drafting->count = i + 1;
    next = &drafting->draft[i], next_n = 1;
  }
  return WM_SUCCESS;
}

wm_token drafting_draw(const Drafting *drafting, Sampler *sampler, uint32_t i, const wm_candidate *top, uint32_t k) {
  if (drafting->session && i < drafting->count) {
    uint32_t tokens[WM_MAX_TOP];
    double probabilities[WM_MAX_TOP];
    Choices target = {distribution(sampler, top, k, tokens, probabilities), tokens, probabilities};
    Choices draft = {drafting->choices[i], drafting->tokens[i], drafting->probabilities[i]};
    return speculate_verify(&target, &draft, drafting->draft[i], &sampler->seed);
  }
  float logits[WM_MAX_TOP];
  uint32_t scratch[WM_MAX_TOP];
  for (uint32_t j = 0; j < k; j++) logits[j] = top[j].logit;
  return top[sample(sampler, logits, k, scratch, NULL, 0)].token;
}
