#include "wasmetal/speculate.h"

#include "wasmetal/sampler.h"

uint32_t speculate_lookup(const uint32_t *tokens, size_t n, uint32_t longest, uint32_t *draft, uint32_t most) {
  size_t found = 0, same = 0; /* where the longest match ends, and its length */
  for (size_t end = n; end-- > 1 && same < longest;) {
    size_t length = 0;
    while (length < longest && length < end && tokens[end - 1 - length] == tokens[n - 1 - length]) length++;
    if (length > same) found = end, same = length;
  }
  if (!same) return 0;
  for (uint32_t i = 0; i < most; i++) draft[i] = i < n - found ? tokens[found + i] : draft[i - (n - found)];
  return most;
}

uint32_t speculate_draw(const Choices *from, uint64_t *seed) {
  double left = sampler_uniform(seed);
  uint32_t i = 0;
  while (i + 1 < from->n && (left -= from->probabilities[i]) >= 0) i++;
  return from->tokens[i];
}

static double probability(const Choices *of, uint32_t token) {
  for (uint32_t i = 0; i < of->n; i++)
    if (of->tokens[i] == token) return of->probabilities[i];
  return 0;
}

/* How much likelier the target's i-th token is than in the draft. */
static double excess(const Choices *target, const Choices *draft, uint32_t i) {
  double more = target->probabilities[i] - probability(draft, target->tokens[i]);
  return more > 0 ? more : 0;
}

uint32_t speculate_verify(const Choices *target, const Choices *draft, uint32_t token, uint64_t *seed) {
  if (sampler_uniform(seed) * probability(draft, token) < probability(target, token)) return token;
  double total = 0;
  for (uint32_t i = 0; i < target->n; i++) total += excess(target, draft, i);
  double left = sampler_uniform(seed) * total;
  uint32_t chosen = target->tokens[0];
  for (uint32_t i = 0; i < target->n && left >= 0; i++) {
    double more = excess(target, draft, i);
    if (more > 0) chosen = target->tokens[i], left -= more;
  }
  return chosen;
}
