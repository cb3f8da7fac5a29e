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

/* SplitMix64 (G. L. Steele et al., 2014). */
double sampler_uniform(uint64_t *state) {
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

/* What may be drawn: the first `kept` tokens that ranked() gives. Nothing is kept if `best` is certain. */
typedef struct Kept {
  Heap heap;
  uint32_t best, k, kept;
  float max, temperature;
  double mass; /* the sum of their weights */
} Kept;

/* A token's probability, scaled so that the likeliest has 1. */
static float weight(const Kept *from, uint32_t id) {
  return expf((from->heap.logits[id] - from->max) / from->temperature);
}

static Kept filter(
    const Sampler *s, float *logits, uint32_t n, uint32_t *scratch, const uint32_t *recent, size_t recent_n) {
  if (s->repeat_penalty != 1) penalize(logits, n, s->repeat_penalty, recent, recent_n);
  Kept result = {.max = maximum(logits, n), .temperature = s->temperature};
  result.best = result.max > -INFINITY ? first(logits, n, result.max) : 0;
  if (s->temperature <= 0 || !isfinite(result.max)) return result;

  for (uint32_t i = 0; i < n; i++) logits[i] = isnan(logits[i]) ? -INFINITY : logits[i];
  const uint32_t k = result.k = s->top_k && s->top_k < n ? s->top_k : n;
  result.heap = likeliest(logits, n, k, scratch);

  uint32_t kept = k;
  double mass = 0;
  for (uint32_t i = 0; i < k; i++) mass += weight(&result, scratch[i]);
  if (s->top_p < 1 || s->min_p > 0) {
    double enough = s->top_p < 1 ? s->top_p * mass : INFINITY;
    mass = 0;
    for (kept = 0; kept < k && (kept == 0 || mass < enough); kept++) {
      float w = weight(&result, ranked(&result.heap, k, kept));
      if (kept && w < s->min_p) break;
      mass += w;
    }
  }
  result.kept = kept, result.mass = mass;
  return result;
}

uint32_t sample(Sampler *s, float *logits, uint32_t n, uint32_t *scratch, const uint32_t *recent, size_t recent_n) {
  Kept from = filter(s, logits, n, scratch, recent, recent_n);
  uint32_t chosen = from.best;
  if (!from.kept) return chosen;
  double left = sampler_uniform(&s->seed) * from.mass;
  for (uint32_t i = 0; i < from.kept && left >= 0; i++) {
    uint32_t id = ranked(&from.heap, from.k, i);
    float w = weight(&from, id);
    if (w == 0) break; /* rounding left a remainder; all later tokens have weight 0 */
    chosen = id;
    left -= w;
  }
  return chosen;
}

uint32_t sampler_distribution(const Sampler *s, float *logits, uint32_t n, uint32_t *ids, double *probabilities,
                              const uint32_t *recent, size_t recent_n) {
  Kept from = filter(s, logits, n, ids, recent, recent_n);
  if (!from.kept) {
    ids[0] = from.best, probabilities[0] = 1;
    return 1;
  }
  uint32_t count = 0;
  for (; count < from.kept; count++) {
    float w = weight(&from, ranked(&from.heap, from.k, count));
    if (w == 0) break;
    probabilities[count] = w / from.mass;
  }
  for (uint32_t i = 0; i < from.k / 2; i++) { /* ranked() left the likeliest at the end */
    uint32_t id = ids[i];
    ids[i] = ids[from.k - 1 - i];
    ids[from.k - 1 - i] = id;
  }
  return count;
}
