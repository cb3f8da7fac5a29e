/* The few SIMD operations that sampler.c uses, for any processor. Loads and stores are plain copies, so that a sanitizer
 * sees each byte that they touch. */
#ifndef WASM_SIMD128_H
#define WASM_SIMD128_H

#include <string.h>

typedef struct v128_t {
  float f[4];
} v128_t;

static inline v128_t wasm_v128_load(const void *from) {
  v128_t v;
  memcpy(&v, from, sizeof v);
  return v;
}

static inline void wasm_v128_store(void *to, v128_t v) { memcpy(to, &v, sizeof v); }

static inline v128_t wasm_f32x4_splat(float x) { return (v128_t){{x, x, x, x}}; }

static inline v128_t wasm_f32x4_pmax(v128_t a, v128_t b) {
  for (int i = 0; i < 4; i++) a.f[i] = a.f[i] < b.f[i] ? b.f[i] : a.f[i];
  return a;
}

static inline v128_t wasm_f32x4_eq(v128_t a, v128_t b) {
  for (int i = 0; i < 4; i++) a.f[i] = a.f[i] == b.f[i];
  return a;
}

static inline int wasm_v128_any_true(v128_t v) { return v.f[0] || v.f[1] || v.f[2] || v.f[3]; }

#endif
