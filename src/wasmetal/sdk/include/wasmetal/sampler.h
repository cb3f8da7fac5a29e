/* From logits to the next token. Needs sampler.c, compiled with -msimd128. */
#ifndef WASMETAL_SAMPLER_H
#define WASMETAL_SAMPLER_H

#include <stddef.h>
#include <stdint.h>

typedef struct Sampler {
  float temperature;    /* 0: always the likeliest token */
  uint32_t top_k;       /* keep the k likeliest; 0: all */
  float top_p;          /* of those, keep the likeliest that together have this much probability; 1: all */
  float min_p;          /* of those, keep what is at least this likely, relative to the likeliest; 0: all */
  float repeat_penalty; /* divides the logits of recent tokens (multiplies negative ones); 1: off */
  uint64_t seed;        /* state of the random number generator; sample() advances it */
} Sampler;

/* Returns the next token. `logits`, n > 0 of them, are overwritten; `scratch` has room for n; `recent` are the tokens
 * to penalize.
 *
 * The filters are those of Hugging Face transformers, in the same order: penalty, temperature, top-k, top-p, min-p. The
 * penalty is from N. S. Keskar et al., "CTRL", 2019; top-p from A. Holtzman et al., 2019; min-p from M. Nguyen et al.,
 * 2024.
 * NaN counts as minus infinity. */
uint32_t sample(Sampler *sampler, float *logits, uint32_t n, uint32_t *scratch, const uint32_t *recent, size_t recent_n);

/* What sample() draws from: writes the tokens that it may return, the likeliest first, and their probabilities, and
 * returns how many they are, at least 1. `logits` are overwritten; `ids` and `probabilities` have room for n. */
uint32_t sampler_distribution(const Sampler *sampler, float *logits, uint32_t n, uint32_t *ids, double *probabilities,
                              const uint32_t *recent, size_t recent_n);

/* The next random number of the generator that sample() uses, at least 0 and less than 1. */
double sampler_uniform(uint64_t *seed);

#endif
