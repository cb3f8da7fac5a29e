// GGUF's weight formats. kernels/reference/blocks.py describes the layouts.
//
// Weights are read 32 at a time. Formats of floats have floats_FORMAT(row, i, out), which gives weights 32 i .. 32 i + 31
// of a row. The others have bytes_FORMAT(row, i), which gives a byte for each. 32 weights have ``PARTS`` of 1 or 2, each
// with a scale and, if the format has ``OFFSETS``, an offset: scales_FORMAT(row, i, count, &scale, &offset) gives those of
// eight parts from number i on, of which the row has at least ``count``. A weight is scale * (byte - BIAS) + offset, or
// scale * byte + offset if the bytes are signed, as those with a BIAS of 128 are.
#pragma once
#include "kernel.h"

#define FORMATS(X)                                                                                                     \
    X(f32) X(f16) X(bf16) X(q4_0) X(q4_1) X(q5_0) X(q8_0) X(q8_16) X(q4_k) X(q5_k) X(q6_k) X(mxfp4)

#define TRAITS(format, parts, offsets, bias)                                                                           \
    enum { PARTS_##format = parts, OFFSETS_##format = offsets, BIAS_##format = bias };
TRAITS(q4_0, 1, 0, 8)
TRAITS(q4_1, 1, 1, 0)
TRAITS(q5_0, 1, 0, 16)
TRAITS(q8_0, 1, 0, 128)
TRAITS(q8_16, 2, 1, 128)
TRAITS(q4_k, 1, 1, 0)
TRAITS(q5_k, 1, 1, 0)
TRAITS(q6_k, 2, 0, 32)
TRAITS(mxfp4, 1, 0, 12)

enum { STRETCH = 1024 }; // weights whose scales are converted at a time

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

// Weights past the last whole 32, which only rows of floats have.
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
INLINE void floats_f32(const uint8_t *row, size_t i, Floats out[2]) { memcpy(out, row + 128 * i, 128); }

INLINE void floats_f16(const uint8_t *row, size_t i, Floats out[2])
{
    out[0] = load_halves(row + 64 * i);
    out[1] = load_halves(row + 64 * i + 32);
}

INLINE void floats_bf16(const uint8_t *row, size_t i, Floats out[2])
{
    Shorts high[2];
    memcpy(high, row + 64 * i, sizeof high);
    for (int j = 0; j < 2; ++j) {
        const Ints bits = __builtin_convertvector(high[j], Ints) << 16;
        memcpy(&out[j], &bits, sizeof bits);
    }
}

INLINE ManyBytes nibbles(const uint8_t *from)
{
    const Bytes q = load_bytes(from);
    ManyBytes all;
    all.lo = q & (uint8_t)15, all.hi = q >> (uint8_t)4;
    return all;
}

INLINE ManyBytes bytes_q4_0(const uint8_t *row, size_t i) { return nibbles(row + 18 * i + 2); }
INLINE ManyBytes bytes_q4_1(const uint8_t *row, size_t i) { return nibbles(row + 20 * i + 4); }
INLINE ManyBytes bytes_q8_0(const uint8_t *row, size_t i) { return load_many_bytes(row + 34 * i + 2); }
INLINE ManyBytes bytes_q8_16(const uint8_t *row, size_t i) { return load_many_bytes(row + 40 * i + 8); }

INLINE ManyBytes bytes_q5_0(const uint8_t *row, size_t i)
{
    const uint8_t *block = row + 22 * i;
    const ManyBytes bit = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128,
                           1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    __attribute__((ext_vector_type(4))) uint8_t high;
    memcpy(&high, block + 2, sizeof high);
    const ManyBytes fifths = __builtin_shufflevector(high, high, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2,
                                                     2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
    return nibbles(block + 6) | ((ManyBytes)((fifths & bit) != 0) & (uint8_t)16);
}

// Scales are collected in a register, because memory that was just written in pieces is slow to read.
#define COLLECT(vector, type, from, stride, count)                                                                     \
    for (size_t c = 0; c < 8; ++c) {                                                                                   \
        type one;                                                                                                      \
        memcpy(&one, (from) + (stride) * ((count) < 8 && c >= (count) ? 0 : c), sizeof one);                           \
        (vector)[c] = one;                                                                                             \
    }

INLINE Eight eight_halves(const uint8_t *from, size_t stride, size_t count)
{
    EightShorts bits;
    COLLECT(bits, uint16_t, from, stride, count)
    EightHalves numbers;
    memcpy(&numbers, &bits, sizeof numbers);
    return __builtin_convertvector(numbers, Eight);
}

#define HALF_SCALES(format, stride)                                                                                    \
    INLINE void scales_##format(const uint8_t *row, size_t i, size_t count, Eight *scale, Eight *offset)               \
    {                                                                                                                  \
        *scale = eight_halves(row + (stride) * i, stride, count);                                                      \
        *offset = 0;                                                                                                   \
    }
HALF_SCALES(q4_0, 18) HALF_SCALES(q5_0, 22) HALF_SCALES(q8_0, 34)

INLINE void scales_q4_1(const uint8_t *row, size_t i, size_t count, Eight *scale, Eight *offset)
{
    EightInts pairs;
    COLLECT(pairs, int32_t, row + 20 * i, 20, count)
    const Floats both = load_halves(&pairs);
    *scale = both.even, *offset = both.odd;
}

INLINE void scales_q8_16(const uint8_t *row, size_t i, size_t count, Eight *scale, Eight *offset)
{
    // Of each block: d and m, then two bytes that d is multiplied by, and two that m is.
    EightInts pairs, factors;
    for (size_t c = 0; c < 8; ++c) {
        const uint8_t *block = row + 40 * ((i + (c < count ? c : 0)) / 2);
        int32_t of_block[2];
        memcpy(of_block, block, sizeof of_block);
        pairs[c] = of_block[0], factors[c] = of_block[1];
    }
    const EightInts up = {24, 16, 24, 16, 24, 16, 24, 16};
    const Floats both = load_halves(&pairs);
    *scale = both.even * __builtin_convertvector(factors << up >> 24, Eight);
    *offset = both.odd * -__builtin_convertvector(factors << (up - 16) >> 24, Eight);
}

INLINE ManyBytes bytes_mxfp4(const uint8_t *row, size_t i)
{
    // Twice floats of four bits, which are 0, 1, 2, 3, 4, 6, 8, 12 and their negatives. Comparisons give 0 or -1.
    const ManyBytes n = nibbles(row + 17 * i + 1), m = n & (uint8_t)7;
    const ManyBytes five = (ManyBytes)(m > (uint8_t)4), six = (ManyBytes)(m > (uint8_t)5), seven = (ManyBytes)(m > (uint8_t)6);
    const ManyBytes value = m - five - six - seven - seven - seven, negative = (ManyBytes)(n > (uint8_t)7);
    return (value ^ negative) - negative + (uint8_t)BIAS_mxfp4;
}

INLINE void scales_mxfp4(const uint8_t *row, size_t i, size_t count, Eight *scale, Eight *offset)
{
    EightInts e;
    COLLECT(e, uint8_t, row + 17 * i, 17, count)
    const EightInts bits = e > 1 ? e - 1 << 23 : 0x200000 << (e & 1); // 2^(e - 128), half of the scale
    memcpy(scale, &bits, sizeof bits);
    *offset = 0;
}

// Number ``sub`` of the eight times 32 weights of Q4_K and Q5_K: nibbles, and the bits above them.
INLINE ManyBytes low_bits(const uint8_t *low, uint32_t sub)
{
    return load_many_bytes(low + sub / 2 * 32) >> (uint8_t)(sub % 2 * 4) & (uint8_t)15;
}

INLINE ManyBytes bytes_q4_k(const uint8_t *row, size_t i) { return low_bits(row + 144 * (i / 8) + 16, i % 8); }

INLINE ManyBytes bytes_q5_k(const uint8_t *row, size_t i)
{
    const uint8_t *block = row + 176 * (i / 8);
    const ManyBytes fifths = load_many_bytes(block + 16) >> (uint8_t)(i % 8) & (uint8_t)1;
    return low_bits(block + 48, i % 8) | fifths << (uint8_t)4;
}

// Scales and offsets of six bits each: eight pairs in twelve bytes.
INLINE void scales_k(const uint8_t *block, Eight *scale, Eight *offset)
{
    uint32_t packed[3];
    memcpy(packed, block + 4, sizeof packed);
    const uint32_t six[4] = {
        packed[0] & 0x3f3f3f3f,
        (packed[2] & 0x0f0f0f0f) | (packed[0] >> 6 & 0x03030303) << 4,
        packed[1] & 0x3f3f3f3f,
        (packed[2] >> 4 & 0x0f0f0f0f) | (packed[1] >> 6 & 0x03030303) << 4,
    };
    const Floats both = __builtin_convertvector(load_bytes(six), Floats);
    *scale = both.lo * half(block), *offset = both.hi * -half(block + 2);
}

INLINE void scales_q4_k(const uint8_t *row, size_t i, size_t count, Eight *scale, Eight *offset)
{
    (void)count;
    scales_k(row + 144 * (i / 8), scale, offset);
}

INLINE void scales_q5_k(const uint8_t *row, size_t i, size_t count, Eight *scale, Eight *offset)
{
    (void)count;
    scales_k(row + 176 * (i / 8), scale, offset);
}

INLINE ManyBytes bytes_q6_k(const uint8_t *row, size_t i)
{
    const uint8_t *block = row + 210 * (i / 8);
    const uint32_t upper = i % 8 / 4, sub = i % 4; // which 128 weights of the block, and which 32 of those
    const ManyBytes low = load_many_bytes(block + 64 * upper + sub % 2 * 32) >> (uint8_t)(sub / 2 * 4) & (uint8_t)15;
    const ManyBytes high = load_many_bytes(block + 128 + 32 * upper) >> (uint8_t)(2 * sub) & (uint8_t)3;
    return low | high << (uint8_t)4;
}

INLINE void scales_q6_k(const uint8_t *row, size_t i, size_t count, Eight *scale, Eight *offset)
{
    (void)count;
    const uint8_t *block = row + 210 * (i / 16);
    __attribute__((ext_vector_type(8))) int8_t scales;
    memcpy(&scales, block + 192 + i % 16, sizeof scales);
    *scale = __builtin_convertvector(scales, Eight) * half(block + 208);
    *offset = 0;
}
