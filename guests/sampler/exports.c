/* The sampler and speculative decoding alone, for their tests. */
#include <stdlib.h>

#include "wasmetal/sampler.h"
#include "wasmetal/speculate.h"

static Sampler sampler;

__attribute__((export_name("allocate"))) void *allocate(size_t bytes) { return malloc(bytes); }

__attribute__((export_name("configure"))) void configure(
    float temperature, uint32_t top_k, float top_p, float min_p, float repeat_penalty, uint64_t seed) {
  sampler = (Sampler){temperature, top_k, top_p, min_p, repeat_penalty, seed};
}

__attribute__((export_name("sample"))) uint32_t sample_once(
    float *logits, uint32_t n, uint32_t *scratch, const uint32_t *recent, size_t recent_n) {
  return sample(&sampler, logits, n, scratch, recent, recent_n);
}

__attribute__((export_name("distribution"))) uint32_t distribution(
    float *logits, uint32_t n, uint32_t *ids, double *probabilities, const uint32_t *recent, size_t recent_n) {
  return sampler_distribution(&sampler, logits, n, ids, probabilities, recent, recent_n);
}

__attribute__((export_name("lookup"))) uint32_t lookup(
    const uint32_t *tokens, size_t n, uint32_t longest, uint32_t *draft, uint32_t most) {
  return speculate_lookup(tokens, n, longest, draft, most);
}

/* `count` tokens to `out`: each drawn from the draft's distribution, then accepted or replaced. Returns how many were
 * accepted. */
__attribute__((export_name("speculate"))) uint32_t speculate(
    const uint32_t *target, const double *target_p, uint32_t target_n, const uint32_t *draft, const double *draft_p,
    uint32_t draft_n, uint32_t *out, uint32_t count) {
  Choices p = {target_n, target, target_p}, q = {draft_n, draft, draft_p};
  uint32_t accepted = 0;
  for (uint32_t i = 0; i < count; i++) {
    uint32_t token = speculate_draw(&q, &sampler.seed);
    out[i] = speculate_verify(&p, &q, token, &sampler.seed);
    accepted += out[i] == token;
  }
  return accepted;
}

int main(void) { return 0; }
