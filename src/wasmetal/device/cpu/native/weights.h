// GGUF's weight formats: EXPAND(format)(row, i, out) gives weights 32 i .. 32 i + 31 of a row.
// kernels/reference/blocks.py describes the layouts.
#pragma once
#include "kernel.h"

#define EXPAND(format) expand_##format
#define FORMATS(X)                                                                                                     \
    X(f32) X(f16) X(bf16) X(q4_0) X(q4_1) X(q5_0) X(q8_0) X(q8_16) X(q4_k) X(q5_k) X(q6_k) X(mxfp4)

INLINE size_t row_bytes_f32(uint32_t k) { return (size_t)k * 4; }
INLINE size_t row_bytes_f16(uint32_t k) { return (size_t)k * 2; }
INLINE size_t row_bytes_q4_0(uint32_t k) { return (size_t)k / 32 * 18; }
INLINE size_t row_bytes_q4_1(uint32_t k) { return (size_t)k / 32 * 20; }
INLINE size_t row_bytes_q5_0(uint32_t k) { return (size_t)k / 32 * 22; }
INLINE size_t row_bytes_q8_0(uint32_t k) { return (size_t)k / 32 * 34; }
INLINE size_t row_bytes_bf16(uint32_t k) { return (size_t)k * 2; }
INLINE size_t row_bytes_q8_16(uint32_t k) { return (size_t)k / 32 * 40; }
INLINE size_t row_bytes_mxfp4(uint32_t k) { return (size_t)k / 32 * 17; }
INLINE size_t row_bytes_q4_k(uint32_t k) { return (size_t)k * 144 / 256; }
INLINE size_t row_bytes_q5_k(uint32_t k) { return (size_t)k * 176 / 256; }
INLINE size_t row_bytes_q6_k(uint32_t k) { return (size_t)k * 210 / 256; }

// Weights past the last whole 32, which only float rows have.
INLINE float one_f32(const uint8_t *row, uint32_t i) { float v; memcpy(&v, row + 4 * (size_t)i, 4); return v; }
INLINE float one_f16(const uint8_t *row, uint32_t i) { return half(row + 2 * (size_t)i); }
INLINE float one_bf16(const uint8_t *row, uint32_t i)
{
    uint16_t high;
    memcpy(&high, row + 2 * (size_t)i, 2);
    const uint32_t bits = (uint32_t)high << 16;
    float v;
    memcpy(&v, &bits, 4);
    return v;
}
#define NO_TAIL(format) INLINE float one_##format(const uint8_t *row, uint32_t i) { (void)row; (void)i; return 0; }
NO_TAIL(q4_0) NO_TAIL(q4_1) NO_TAIL(q5_0) NO_TAIL(q8_0) NO_TAIL(q8_16)
NO_TAIL(q4_k) NO_TAIL(q5_k) NO_TAIL(q6_k) NO_TAIL(mxfp4)

INLINE void expand_f32(const uint8_t *row, size_t i, Floats out[2]) { memcpy(out, row + 128 * i, 128); }

INLINE void expand_f16(const uint8_t *row, size_t i, Floats out[2])
{
    out[0] = load_halves(row + 64 * i);
    out[1] = load_halves(row + 64 * i + 32);
}

INLINE void expand_bf16(const uint8_t *row, size_t i, Floats out[2])
{
    Shorts high[2];
    memcpy(high, row + 64 * i, sizeof high);
    for (int j = 0; j < 2; ++j) {
        const Ints bits = __builtin_convertvector(high[j], Ints) << 16;
        memcpy(&out[j], &bits, sizeof bits);
    }
}

INLINE void nibbles(const uint8_t *from, Floats out[2])
{
    const Bytes q = load_bytes(from);
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

INLINE void expand_q8_16(const uint8_t *row, size_t i, Floats out[2])
{
    const uint8_t *block = row + 40 * i;
    const int8_t *s = (const int8_t *)block + 4, *t = s + 2;
    const float d = half(block), m = half(block + 2);
    SignedBytes q[2];
    memcpy(q, block + 8, sizeof q);
    for (int j = 0; j < 2; ++j)
        out[j] = __builtin_convertvector(q[j], Floats) * (d * s[j]) - m * t[j];
}

INLINE void expand_mxfp4(const uint8_t *row, size_t i, Floats out[2])
{
    const uint8_t *block = row + 17 * i, e = block[0];
    const uint32_t bits = e > 1 ? (uint32_t)(e - 1) << 23 : 0x200000u << e; // 2^(e - 128), half of the scale
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    const Ints both = __builtin_convertvector(load_bytes(block + 1), Ints);
    for (int j = 0; j < 2; ++j) {
        const Ints n = j ? both >> 4 : both & 15, magnitude = n & 7, power = (magnitude >> 1) - 1;
        // Twice a float of four bits: a sign, two bits of exponent and one of mantissa.
        const Ints large = (2 + (n & 1)) << (power & 3), doubled = power < 0 ? magnitude : large;
        out[j] = __builtin_convertvector((n & 8) != 0 ? -doubled : doubled, Floats) * scale;
    }
}

// Q4_K and Q5_K: what the 32 weights number ``sub`` of a block are multiplied by, and what is subtracted.
INLINE void k_scales(const uint8_t *block, uint32_t sub, float *scale, float *offset)
{
    const uint8_t *six = block + 4;
    uint32_t s, t;
    if (sub < 4)
        s = six[sub] & 63, t = six[sub + 4] & 63;
    else
        s = (six[sub + 4] & 15) | six[sub - 4] >> 6 << 4, t = six[sub + 4] >> 4 | six[sub] >> 6 << 4;
    *scale = half(block) * (float)s;
    *offset = half(block + 2) * (float)t;
}

// 32 weights of Q4_K or Q5_K, whose ``quants`` are in that place of a block, and their fifth bits, if it has any.
INLINE void expand_k(const uint8_t *block, uint32_t sub, uint32_t quants, const uint8_t *fifths, Floats out[2])
{
    float scale, offset;
    k_scales(block, sub, &scale, &offset);
    for (int j = 0; j < 2; ++j) {
        Bytes q = load_bytes(block + quants + sub / 2 * 32 + 16 * j) >> (uint8_t)(sub % 2 * 4) & (uint8_t)15;
        if (fifths)
            q |= (load_bytes(fifths + 16 * j) >> (uint8_t)sub & (uint8_t)1) << (uint8_t)4;
        out[j] = __builtin_convertvector(q, Floats) * scale - offset;
    }
}

INLINE void expand_q4_k(const uint8_t *row, size_t i, Floats out[2])
{
    expand_k(row + 144 * (i / 8), i % 8, 16, NULL, out);
}

INLINE void expand_q5_k(const uint8_t *row, size_t i, Floats out[2])
{
    const uint8_t *block = row + 176 * (i / 8);
    expand_k(block, i % 8, 48, block + 16, out);
}

INLINE void expand_q6_k(const uint8_t *row, size_t i, Floats out[2])
{
    const uint8_t *block = row + 210 * (i / 8);
    const uint32_t upper = i % 8 / 4, sub = i % 4; // which 128 weights of the block, and which 32 of those
    const int8_t *scales = (const int8_t *)block + 192 + 8 * upper + 2 * sub;
    const float d = half(block + 208);
    for (int j = 0; j < 2; ++j) {
        const Bytes low = load_bytes(block + 64 * upper + sub % 2 * 32 + 16 * j) >> (uint8_t)(sub / 2 * 4) & (uint8_t)15;
        const Bytes high = load_bytes(block + 128 + 32 * upper + 16 * j) >> (uint8_t)(2 * sub) & (uint8_t)3;
        const Ints q = __builtin_convertvector(low | high << (uint8_t)4, Ints) - 32;
        out[j] = __builtin_convertvector(q, Floats) * (d * scales[j]);
    }
}
