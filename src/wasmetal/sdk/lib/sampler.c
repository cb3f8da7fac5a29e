#include "wasmetal/sampler.h"

#include <math.h>
#include <stdbool.h>
#include <wasm_simd128.h>

/* A heap of token ids, with the likeliest or the unlikeliest on top. Of equals, the lower id counts as the likelier. */
typedef struct Heap {
  const float *logits;
  uint32_t *ids;
  uint32_t size;
  bool unlikeliest_first;
} Heap;

static bool before(const Heap *heap, uint32_t x, uint32_t y) {
  float lx = heap->logits[x], ly = heap->logits[y];
  return (lx > ly || (lx == ly && x < y)) != heap->unlikeliest_first;
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

static void heapify(Heap *heap, bool unlikeliest_first) {
  heap->unlikeliest_first = unlikeliest_first;
  for (uint32_t i = heap->size / 2; i-- > 0;) sift_down(heap, i);
}

/* The k likeliest of n tokens. The unlikeliest found so far is on top and is replaced by each that is likelier. */
static Heap likeliest(const float *logits, uint32_t n, uint32_t k, uint32_t *ids) {
  Heap heap = {logits, ids, k, false};
  for (uint32_t i = 0; i < k; i++) ids[i] = i;
  if (k < n) {
    heapify(&heap, true);
    for (uint32_t i = k; i < n; i++) {
      if (logits[i] > logits[ids[0]]) {
        ids[0] = i;
        sift_down(&heap, 0);
      }
    }
  }
  heapify(&heap, false);
  return heap;
}

/* The i-th likeliest of the heap's k tokens. Call it for i = 0, 1, 2, ... in this order; an i that was asked for before
 * may be asked for again, because tokens taken off the heap are kept after its end. */
static uint32_t ranked(Heap *heap, uint32_t k, uint32_t i) {
  if (i == k - heap->size) {
    uint32_t top = heap->ids[0];
    heap->ids[0] = heap->ids[--heap->size];
    sift_down(heap, 0);
    heap->ids[heap->size] = top;
  }
  return heap->ids[k - 1 - i];
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

/* The largest logit that is not NaN. pmax(a, b) is a < b ? b : a, so that NaN never replaces a number. */
static float maximum(const float *logits, uint32_t n) {
  v128_t most[4] = {wasm_f32x4_splat(-INFINITY), wasm_f32x4_splat(-INFINITY), wasm_f32x4_splat(-INFINITY),
                    wasm_f32x4_splat(-INFINITY)};
  uint32_t i = 0;
  for (; i + 16 <= n; i += 16)
    for (uint32_t j = 0; j < 4; j++) most[j] = wasm_f32x4_pmax(most[j], wasm_v128_load(logits + i + 4 * j));
  float lanes[16], max = -INFINITY;
  for (uint32_t j = 0; j < 4; j++) wasm_v128_store(lanes + 4 * j, most[j]);
  for (uint32_t j = 0; j < 16; j++) max = lanes[j] > max ? lanes[j] : max;
  for (; i < n; i++) max = logits[i] > max ? logits[i] : max;
  return max;
}

/* The index of the first logit of that value; there is one. */
static uint32_t first(const float *logits, uint32_t n, float value) {
  uint32_t i = 0;
  while (i + 4 <= n && !wasm_v128_any_true(wasm_f32x4_eq(wasm_v128_load(logits + i), wasm_f32x4_splat(value)))) i += 4;
  while (logits[i] != value) i++;
  return i;
}

uint32_t sample(Sampler *s, float *logits, uint32_t n, uint32_t *scratch, const uint32_t *recent, size_t recent_n) {
  if (s->repeat_penalty != 1) penalize(logits, n, s->repeat_penalty, recent, recent_n);
  float max = maximum(logits, n);
  uint32_t best = max > -INFINITY ? first(logits, n, max) : 0;
  if (s->temperature <= 0 || !isfinite(max)) return best;

  for (uint32_t i = 0; i < n; i++) logits[i] = isnan(logits[i]) ? -INFINITY : logits[i];
  const uint32_t k = s->top_k && s->top_k < n ? s->top_k : n;
  Heap heap = likeliest(logits, n, k, scratch);
  /* A token's weight is its probability, scaled so that the likeliest has 1. */
#define WEIGHT(id) expf((logits[id] - max) / s->temperature)

  uint32_t kept = k;
  double mass = 0;
  for (uint32_t i = 0; i < k; i++) mass += WEIGHT(heap.ids[i]);
  if (s->top_p < 1 || s->min_p > 0) {
    double enough = s->top_p < 1 ? s->top_p * mass : INFINITY;
    mass = 0;
    for (kept = 0; kept < k && (kept == 0 || mass < enough); kept++) {
      float weight = WEIGHT(ranked(&heap, k, kept));
      if (kept && weight < s->min_p) break;
      mass += weight;
    }
  }

  uint32_t chosen = best;
  double left = uniform(&s->seed) * mass;
  for (uint32_t i = 0; i < kept && left >= 0; i++) {
    uint32_t id = ranked(&heap, k, i);
    float weight = WEIGHT(id);
    if (weight == 0) break; /* rounding left a remainder; all later tokens have weight 0 */
    chosen = id;
    left -= weight;
  }
  return chosen;
}
