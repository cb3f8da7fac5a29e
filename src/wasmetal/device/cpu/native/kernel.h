// What every kernel of the CPU device uses: how it is called, and vectors of 16 floats.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "params.h" // generated from kernels/catalog.py: a struct of parameters for each family of kernels

#define NO_BATCH 0xffffffffu // of batch_offset: there is no batch metadata, and all rows are valid
#define MAX_BUFFERS 8

// One dispatch. The buffers begin at their bindings, in the catalog's order.
typedef struct {
    uint8_t *buffers[MAX_BUFFERS];
    const void *params;
    uint32_t kernel;
    uint32_t unused;
} Call;

// A kernel divides into units that any threads may compute in any order: ``units`` counts them, ``run`` computes some.
typedef struct {
    const char *name;
    uint64_t (*units)(const Call *call);
    void (*run)(const Call *call, uint64_t begin, uint64_t end);
    uint32_t at_once; // units that are not worth sharing among threads
    // What the call's threads need of its inputs, computed once into at most ``nbytes`` of scratch; NULL if they must
    // compute it themselves. May be NULL.
    const void *(*prepare)(const Call *call, void *scratch, size_t nbytes);
} Kernel;

extern _Thread_local const void *prepared_by_caller; // what ``prepare`` gave for the call that is being computed, or NULL

typedef float Floats __attribute__((ext_vector_type(16)));
typedef int32_t Ints __attribute__((ext_vector_type(16)));
typedef _Float16 Halves __attribute__((ext_vector_type(16)));
typedef uint16_t Shorts __attribute__((ext_vector_type(16)));
typedef uint8_t Bytes __attribute__((ext_vector_type(16)));
typedef int8_t SignedBytes __attribute__((ext_vector_type(16)));
typedef uint8_t ManyBytes __attribute__((ext_vector_type(32)));
enum { LANES = 16 };
typedef float Eight __attribute__((ext_vector_type(8)));
typedef _Float16 EightHalves __attribute__((ext_vector_type(8)));
typedef uint16_t EightShorts __attribute__((ext_vector_type(8)));
typedef int32_t EightInts __attribute__((ext_vector_type(8)));

// A name with the format that a file is included for.
#define JOINED_NAME(name, format) name##_##format
#define JOIN(name, format) JOINED_NAME(name, format)
#define OF(name) JOIN(name, FORMAT)

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("clang loop unroll(full)")

INLINE Floats load(const float *from) { Floats v; memcpy(&v, from, sizeof v); return v; }
INLINE Eight load_eight(const float *from) { Eight v; memcpy(&v, from, sizeof v); return v; }
INLINE void store_eight(float *to, Eight v) { memcpy(to, &v, sizeof v); }
INLINE void store(float *to, Floats v) { memcpy(to, &v, sizeof v); }
INLINE Floats load_halves(const void *from)
{
    Halves v;
    memcpy(&v, from, sizeof v);
    return __builtin_convertvector(v, Floats);
}
INLINE Bytes load_bytes(const void *from) { Bytes v; memcpy(&v, from, sizeof v); return v; }
INLINE ManyBytes load_many_bytes(const void *from) { ManyBytes v; memcpy(&v, from, sizeof v); return v; }
INLINE float half(const void *from) { _Float16 v; memcpy(&v, from, sizeof v); return (float)v; }
INLINE uint32_t min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }

INLINE float sum_eight(Eight v)
{
    __attribute__((ext_vector_type(4))) float a = v.lo + v.hi;
    __attribute__((ext_vector_type(2))) float b = a.lo + a.hi;
    return b.x + b.y;
}

INLINE float sum(Floats v) { return sum_eight(v.lo + v.hi); }

INLINE float largest(Floats v)
{
    Eight a = __builtin_elementwise_max(v.lo, v.hi);
    __attribute__((ext_vector_type(4))) float b = __builtin_elementwise_max(a.lo, a.hi);
    __attribute__((ext_vector_type(2))) float c = __builtin_elementwise_max(b.lo, b.hi);
    return c.x > c.y ? c.x : c.y;
}

// e^x within 2 units in the last place, after S. Moshier's Cephes library (expf): 2^n times a polynomial.
INLINE Floats exponential(Floats x)
{
    Floats y = __builtin_elementwise_min(__builtin_elementwise_max(x, (Floats)-104.0f), (Floats)89.0f);
    Floats n = __builtin_elementwise_roundeven(y * 1.44269504088896341f);
    Floats r = (y - n * 0.693359375f) + n * 2.12194440e-4f;
    Floats p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    // In two steps, since 2^n alone may be beyond float32 where the product is not.
    Ints whole = __builtin_convertvector(n, Ints), first = whole >> 1, second = whole - first;
    Ints a = (first + 127) << 23, b = (second + 127) << 23;
    Floats result = p * *(Floats *)&a * *(Floats *)&b;
    return x != x ? x : result; // NaN stays NaN
}

// How many rows are valid now.
INLINE uint32_t valid_rows(const uint8_t *batch, uint32_t offset, uint32_t first, uint32_t rows)
{
    if (offset == NO_BATCH)
        return rows;
    uint32_t count = ((const uint32_t *)batch)[offset];
    return count > first ? min_u32(count - first, rows) : 0;
}
#define VALID_ROWS(p, batch) valid_rows(batch, (p)->batch_offset, (p)->batch_row, (p)->rows)
