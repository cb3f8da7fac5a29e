// GGUF's weight formats: EXPAND(format)(row, i, out) gives weights 32 i .. 32 i + 31 of a row.
// kernels/reference/blocks.py describes the layouts.
#pragma once
#include "kernel.h"

#define EXPAND(format) expand_##format
#define FORMATS(X) X(f32) X(f16) X(q4_0) X(q4_1) X(q5_0) X(q8_0)

INLINE size_t row_bytes_f32(uint32_t k) { return (size_t)k * 4; }
INLINE size_t row_bytes_f16(uint32_t k) { return (size_t)k * 2; }
INLINE size_t row_bytes_q4_0(uint32_t k) { return (size_t)k / 32 * 18; }
INLINE size_t row_bytes_q4_1(uint32_t k) { return (size_t)k / 32 * 20; }
INLINE size_t row_bytes_q5_0(uint32_t k) { return (size_t)k / 32 * 22; }
INLINE size_t row_bytes_q8_0(uint32_t k) { return (size_t)k / 32 * 34; }

// Weights past the last whole 32, which only float rows have.
INLINE float one_f32(const uint8_t *row, uint32_t i) { float v; memcpy(&v, row + 4 * (size_t)i, 4); return v; }
INLINE float one_f16(const uint8_t *row, uint32_t i) { return half(row + 2 * (size_t)i); }
#define NO_TAIL(format) INLINE float one_##format(const uint8_t *row, uint32_t i) { (void)row; (void)i; return 0; }
NO_TAIL(q4_0) NO_TAIL(q4_1) NO_TAIL(q5_0) NO_TAIL(q8_0)

INLINE void expand_f32(const uint8_t *row, size_t i, Floats out[2]) { memcpy(out, row + 128 * i, 128); }

INLINE void expand_f16(const uint8_t *row, size_t i, Floats out[2])
{
    out[0] = load_halves(row + 64 * i);
    out[1] = load_halves(row + 64 * i + 32);
}

INLINE void nibbles(const uint8_t *from, Floats out[2])
{
    Bytes q;
    memcpy(&q, from, sizeof q);
    out[0] = __builtin_convertvector(q & (uint8_t)15, Floats);
    out[1] = __builtin_convertvector(q >> (uint8_t)4, Floats);
}

INLINE void expand_q4_0(const uint8_t *row, size_t i, Floats out[2])
{
    const uint8_t *block = row + 18 * i;
    float d = half(block), m = -8 * d;
    nibbles(block + 2, out);
    out[0] = out[0] * d + m;
    out[1] = out[1] * d + m;
}

INLINE void expand_q4_1(const uint8_t *row, size_t i, Floats out[2])
{
    const uint8_t *block = row + 20 * i;
    float d = half(block), m = half(block + 2);
    nibbles(block + 4, out);
    out[0] = out[0] * d + m;
    out[1] = out[1] * d + m;
}

INLINE void expand_q5_0(const uint8_t *row, size_t i, Floats out[2])
{
    const uint8_t *block = row + 22 * i;
    float d = half(block), m = -16 * d;
    uint32_t fifth;
    memcpy(&fifth, block + 2, 4);
    nibbles(block + 6, out);
    const Ints bits = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    Ints low = ((Ints)(int32_t)fifth >> bits & 1) << 4, high = ((Ints)(int32_t)(fifth >> 16) >> bits & 1) << 4;
    out[0] = (out[0] + __builtin_convertvector(low, Floats)) * d + m;
    out[1] = (out[1] + __builtin_convertvector(high, Floats)) * d + m;
}

INLINE void expand_q8_0(const uint8_t *row, size_t i, Floats out[2])
{
    const uint8_t *block = row + 34 * i;
    float d = half(block);
    SignedBytes q[2];
    memcpy(q, block + 2, sizeof q);
    out[0] = __builtin_convertvector(q[0], Floats) * d;
    out[1] = __builtin_convertvector(q[1], Floats) * d;
}
