#include "sampler.h"

#include <math.h>
#include <stdbool.h>

/* A max-heap of token ids by logit, in ids[0..size). What is taken off it is put behind it, so that ids[n-1-i] is the
 * i-th likeliest token. Of equals, the lower id comes first. */
typedef struct Heap {
  const float *logits;
  uint32_t *ids;
  uint32_t n, size;
} Heap;

static bool before(const Heap *heap, uint32_t x, uint32_t y) {
  float lx = heap->logits[x], ly = heap->logits[y];
  return lx > ly || (lx == ly && x < y);
}

static void sift_down(Heap *heap, uint32_t at) {
  uint32_t id = heap->ids[at];
  for (;;) {
    uint32_t child = 2 * at + 1;
    if (child >= heap->size) break;
    if (child + 1 < heap->size && before(heap, heap->ids[child + 1], heap->ids[child])) child++;
    if (before(heap, id, heap->ids[child])) break;
    heap->ids[at] = heap->ids[child];
    at = child;
  }
  heap->ids[at] = id;
}

static void heapify(Heap *heap) {
  for (uint32_t i = 0; i < heap->n; i++) heap->ids[i] = i;
  for (uint32_t i = heap->n / 2; i-- > 0;) sift_down(heap, i);
}

/* The i-th likeliest token, where those before it were asked for already. */
static uint32_t ranked(Heap *heap, uint32_t i) {
  if (i == heap->n - heap->size) {
    uint32_t top = heap->ids[0];
    heap->ids[0] = heap->ids[--heap->size];
    sift_down(heap, 0);
    heap->ids[heap->size] = top;
  }
  return heap->ids[heap->n - 1 - i];
}

/* SplitMix64 (G. L. Steele et al., 2014); the upper 53 bits make a double in [0, 1). */
static double uniform(uint64_t *state) {
  uint64_t z = (*state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return (double)((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

static void penalize(float *logits, uint32_t n, float penalty, const uint32_t *recent, size_t recent_n) {
  for (size_t i = 0; i < recent_n; i++) {
    bool seen = recent[i] >= n;
    for (size_t j = 0; j < i && !seen; j++) seen = recent[j] == recent[i];
    if (!seen) logits[recent[i]] *= logits[recent[i]] > 0 ? 1 / penalty : penalty;
  }
}

/* Also makes minus infinity of NaN, which has no place in an order. */
static uint32_t likeliest(float *logits, uint32_t n) {
  uint32_t best = 0;
  for (uint32_t i = 0; i < n; i++) {
    if (isnan(logits[i])) logits[i] = -INFINITY;
    if (logits[i] > logits[best]) best = i;
  }
  return best;
}

uint32_t sample(Sampler *s, float *logits, uint32_t n, uint32_t *scratch, const uint32_t *recent, size_t recent_n) {
  if (s->repeat_penalty != 1) penalize(logits, n, s->repeat_penalty, recent, recent_n);
  uint32_t best = likeliest(logits, n);
  float max = logits[best];
  if (s->temperature <= 0 || !isfinite(max)) return best;

  Heap heap = {logits, scratch, n, n};
  heapify(&heap);
  /* A token's weight is its probability, but for a factor that makes the likeliest 1. */
#define WEIGHT(id) expf((logits[id] - max) / s->temperature)

  uint32_t kept = s->top_k && s->top_k < n ? s->top_k : n;
  double mass = 0;
  if (kept < n)
    for (uint32_t i = 0; i < kept; i++) mass += WEIGHT(ranked(&heap, i));
  else
    for (uint32_t i = 0; i < n; i++) mass += WEIGHT(i);

  if (s->top_p < 1 || s->min_p > 0) {
    uint32_t limit = kept;
    double enough = s->top_p < 1 ? s->top_p * mass : INFINITY;
    mass = 0;
    for (kept = 0; kept < limit && (kept == 0 || mass < enough); kept++) {
      float weight = WEIGHT(ranked(&heap, kept));
      if (kept && weight < s->min_p) break;
      mass += weight;
    }
  }

  uint32_t chosen = best;
  double left = uniform(&s->seed) * mass;
  for (uint32_t i = 0; i < kept && left >= 0; i++) {
    uint32_t id = ranked(&heap, i);
    float weight = WEIGHT(id);
    if (weight == 0) break; /* rounding left a little over; nothing behind here has a chance */
    chosen = id;
    left -= weight;
  }
  return chosen;
}
