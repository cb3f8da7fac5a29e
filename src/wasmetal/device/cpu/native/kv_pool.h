// The slots of the KV cache's pools, one for each position: their layout for each type of element. For each type there are
// VECTOR, the bytes of four elements, in which offsets count; slot_bytes, of a slot with so many columns; head, where the
// columns from a multiple of head_dim on are; vector and element, which read some of them; put, which writes a slot.
#pragma once
#include "kernel.h"

// The columns of a head, in bytes from the beginning of a slot.
typedef struct {
    size_t elements;
    size_t scales; // of block types
} Head;

#define FLOAT_POOL(format, type, load_vector)                                                                          \
    enum { VECTOR_##format = 4 * sizeof(type) };                                                                       \
    INLINE size_t slot_bytes_##format(uint32_t columns) { return columns * sizeof(type); }                             \
    INLINE Head head_##format(uint32_t columns, uint32_t column)                                                       \
    {                                                                                                                  \
        (void)columns;                                                                                                 \
        return (Head){column * sizeof(type), 0};                                                                       \
    }                                                                                                                  \
    INLINE Floats vector_##format(const uint8_t *slot, Head head, uint32_t i)                                          \
    {                                                                                                                  \
        return load_vector((const type *)(slot + head.elements) + i);                                                  \
    }                                                                                                                  \
    INLINE float element_##format(const uint8_t *slot, Head head, uint32_t i)                                          \
    {                                                                                                                  \
        return (float)((const type *)(slot + head.elements))[i];                                                       \
    }                                                                                                                  \
    INLINE void put_##format(uint8_t *slot, const float *x, uint32_t columns)                                          \
    {                                                                                                                  \
        for (uint32_t i = 0; i < columns; ++i)                                                                         \
            ((type *)slot)[i] = (type)x[i];                                                                            \
    }
FLOAT_POOL(f32, float, load)
FLOAT_POOL(f16, _Float16, load_halves)

// Blocks of 32 signed bytes, each with a float16 scale. A slot has the bytes of all its blocks, then their scales, so that
// GPUs can read it in words.
enum { VECTOR_q8_0 = 4 };
INLINE size_t slot_bytes_q8_0(uint32_t columns) { return columns / 32 * (size_t)34; }
INLINE Head head_q8_0(uint32_t columns, uint32_t column) { return (Head){column, columns + column / 32 * 2}; }
INLINE Floats vector_q8_0(const uint8_t *slot, Head head, uint32_t i)
{
    SignedBytes bytes;
    memcpy(&bytes, slot + head.elements + i, sizeof bytes);
    return half(slot + head.scales + i / 32 * 2) * __builtin_convertvector(bytes, Floats);
}
INLINE float element_q8_0(const uint8_t *slot, Head head, uint32_t i)
{
    return half(slot + head.scales + i / 32 * 2) * (float)(int8_t)slot[head.elements + i];
}
INLINE void put_q8_0(uint8_t *slot, const float *x, uint32_t columns)
{
    for (uint32_t i = 0; i < columns; i += 32) {
        float most = 0;
        for (uint32_t j = i; j < i + 32; ++j) {
            const float size = x[j] < 0 ? -x[j] : x[j];
            most = size > most || size != size ? size : most; // NaN stays
        }
        const _Float16 scale = (_Float16)(most / 127);
        const float inverse = most > 0 ? 127 / most : 0;
        memcpy(slot + columns + i / 32 * 2, &scale, sizeof scale);
        for (uint32_t j = i; j < i + 32; ++j) {
            const float scaled = inverse * x[j] + (x[j] < 0 ? -0.5f : 0.5f);
            const float bounded = scaled >= -127 ? scaled : -127; // NaN too
            slot[j] = (uint8_t)(int8_t)(bounded <= 127 ? bounded : 127);
        }
    }
}
