// What multiplies rows of weights by a vector, apart from their format: floats_format.h and bytes_format.h have the rest.
#pragma once
#include <stdbool.h>

#include "weights.h"

enum {
    ROWS = 4,     // of weights that are multiplied at a time
    AHEAD = 3072, // bytes by which weights are fetched in advance: rows are too short for the processor to do it
};

enum { PER_STRETCH = 2 * STRETCH / 32 };

// Parts are taken eight at a time; the last eight overlap those before if they are not all, and there are more than eight.
INLINE uint32_t eight_from(uint32_t i, uint32_t count) { return i + 8 <= count || count < 8 ? i : count - 8; }

// What is computed once of a stretch of x, divided into parts as weights are. Unused elements are 0.
typedef struct {
    float sums[PER_STRETCH];  // those of each eight parts; 0 for parts of an eight that the one before has already
    float scale[PER_STRETCH]; // of each part
    int8_t rounded[STRETCH];  // x / scale
} Prepared;

// One part: ``count`` vectors.
INLINE float round_part(const float *x, uint32_t count, int8_t *rounded, float *scale)
{
    Floats most = __builtin_elementwise_abs(load(x));
    if (count == 2)
        most = __builtin_elementwise_max(most, __builtin_elementwise_abs(load(x + LANES)));
    const float peak = largest(most);
    *scale = peak / 127;
    Floats sums = 0;
    for (uint32_t i = 0; i < count; ++i) {
        const Floats whole = __builtin_elementwise_roundeven(load(x + LANES * i) * (peak ? 127 / peak : 0));
        const SignedBytes bytes = __builtin_convertvector(__builtin_convertvector(whole, Ints), SignedBytes);
        memcpy(rounded + LANES * i, &bytes, sizeof bytes);
        sums += whole;
    }
    return sum(sums) * *scale;
}

// The sums are those of the rounded elements, if they are ``rounded``.
static void prepare(const float *x, uint32_t length, uint32_t parts, bool rounded, Prepared *to)
{
    const uint32_t count = length / 32 * parts, vectors = 2 / parts;
    memset(to->sums, 0, sizeof to->sums);
    memset(to->scale, 0, sizeof to->scale);
    for (uint32_t i = 0; i < count; ++i) {
        const float *part = x + LANES * vectors * i;
        const uint32_t eight = i / 8 * 8;
        float *total = &to->sums[i + eight - eight_from(eight, count)];
        if (rounded)
            *total = round_part(part, vectors, to->rounded + LANES * vectors * i, &to->scale[i]);
        else
            *total = sum(vectors == 2 ? load(part) + load(part + LANES) : load(part));
    }
}

// Prepare all of x, at ``to``, which has ``nbytes``. Returns NULL if that is not enough.
static Prepared *prepare_all(const float *x, uint32_t k, uint32_t parts, bool rounded, Prepared *to, size_t nbytes)
{
    if (((size_t)k + STRETCH - 1) / STRETCH > nbytes / sizeof *to)
        return NULL;
    for (uint32_t from = 0; from < k; from += STRETCH)
        prepare(x + from, min_u32(STRETCH, k - from), parts, rounded, to++);
    return to;
}

// Sums of four products each.
INLINE EightInts dot(ManyBytes weights, ManyBytes x)
{
#ifdef __AVX512VNNI__
    return (EightInts)__builtin_ia32_vpdpbusd256((EightInts)0, (EightInts)weights, (EightInts)x);
#else
    typedef int16_t Pairs __attribute__((ext_vector_type(32)));
    typedef int32_t Sums __attribute__((ext_vector_type(16)));
    typedef int8_t Signed __attribute__((ext_vector_type(32)));
    // A product of two bytes, of which one is at most 127, fits 16 bits.
    const Pairs products = __builtin_convertvector(weights, Pairs) * __builtin_convertvector((Signed)x, Pairs);
    const Sums twos = __builtin_convertvector(products.even, Sums) + __builtin_convertvector(products.odd, Sums);
    return twos.even + twos.odd;
#endif
}
