/* The sampler alone, for its tests. */
#include <stdlib.h>

#include "wasmetal/sampler.h"

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

int main(void) { return 0; }
