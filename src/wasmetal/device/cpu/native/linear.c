// GEMV and GEMM with a matrix of weights, which has one row per output, and rows of a table of weights.
#include <stdbool.h>

#include "weights.h"

// ---- out (+)= weight x. A unit is ROWS outputs.

enum {
    ROWS = 4,
    AHEAD = 3072, // bytes by which weights are fetched in advance: rows are too short for the processor to do it
};

static uint64_t gemv_units(const Call *call)
{
    const struct gemv_params *p = call->params;
    return ((uint64_t)p->n + ROWS - 1) / ROWS;
}

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

static const void *prepare_all(const struct gemv_params *p, const uint8_t *buffer, uint32_t parts, bool rounded,
                               void *scratch, size_t nbytes)
{
    const float *x = (const float *)buffer + (size_t)p->x_offset * 4;
    Prepared *to = scratch;
    if (((size_t)p->k + STRETCH - 1) / STRETCH > nbytes / sizeof *to)
        return NULL;
    for (uint32_t from = 0; from < p->k; from += STRETCH)
        prepare(x + from, min_u32(STRETCH, p->k - from), parts, rounded, to++);
    return scratch;
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

// ---- out (+)= x weightᵀ. A unit is COLUMNS outputs of HEIGHT rows, which stay in the processor's cache from one unit to
// the next. Its weights are expanded. For more than FEW rows they are transposed too, DEEP at a time: so a row's element times
// a vector of them adds to a vector of outputs (K. Goto and R. van de Geijn, "Anatomy of high-performance matrix
// multiplication", 2008).

#ifdef __AVX512F__
enum { TALL = 12, WIDE = 2 }; // the vectors of outputs that registers hold
#else
enum { TALL = 6, WIDE = 1 };
#endif
enum { HEIGHT = 128, COLUMNS = WIDE * LANES, DEEP = 256, FEW = 11, SQUARE = 4 };
enum { PITCH = STRETCH + LANES }; // of rows of expanded weights: a power of two would have them share lines of the cache

static uint64_t gemm_units(const Call *call)
{
    const struct gemm_params *p = call->params;
    const uint64_t down = ((uint64_t)VALID_ROWS(p, call->buffers[3]) + HEIGHT - 1) / HEIGHT;
    return down * (((uint64_t)p->n + COLUMNS - 1) / COLUMNS);
}

// Rows to columns: four times, the first half is interleaved with the second.
INLINE void transpose(Floats v[LANES])
{
    for (int step = 0; step < 4; ++step) {
        Floats next[LANES];
        for (int i = 0; i < LANES / 2; ++i) {
            next[2 * i] = __builtin_shufflevector(v[i], v[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            next[2 * i + 1] =
                __builtin_shufflevector(v[i], v[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
        }
        memcpy(v, next, sizeof next);
    }
}

// Of LANES rows of expanded weights, ``length`` elements each, to their columns of a panel.
static void to_panel(const float rows[LANES][PITCH], uint32_t length, float *panel)
{
    uint32_t i = 0;
    for (; i + LANES <= length; i += LANES) {
        Floats v[LANES];
        for (int r = 0; r < LANES; ++r)
            v[r] = load(rows[r] + i);
        transpose(v);
        for (int k = 0; k < LANES; ++k)
            store(panel + (i + k) * COLUMNS, v[k]);
    }
    for (; i < length; ++i)
        for (int r = 0; r < LANES; ++r)
            panel[i * COLUMNS + r] = rows[r][i];
}

static void store_some(float *to, Floats v, uint32_t count, bool add)
{
    for (uint32_t i = 0; i < count; ++i)
        to[i] = add ? to[i] + v[i] : v[i];
}

// ``rows`` rows of x times a panel. What ``add`` says is added to is left there.
INLINE void tile(const float *x, size_t x_stride, const float *panel, uint32_t length, float *out, size_t out_stride,
                 uint32_t columns, bool add, uint32_t rows)
{
    Floats sums[TALL][WIDE] = {0};
    for (uint32_t i = 0; i < length; ++i) {
        Floats w[WIDE];
        UNROLL for (uint32_t c = 0; c < WIDE; ++c)
            w[c] = load(panel + i * COLUMNS + c * LANES);
        UNROLL for (uint32_t r = 0; r < rows; ++r)
            UNROLL for (uint32_t c = 0; c < WIDE; ++c)
                sums[r][c] += x[r * x_stride + i] * w[c];
    }
    UNROLL for (uint32_t r = 0; r < rows; ++r, out += out_stride)
        UNROLL for (uint32_t c = 0; c < WIDE; ++c)
            if ((c + 1) * LANES <= columns)
                store(out + c * LANES, add ? load(out + c * LANES) + sums[r][c] : sums[r][c]);
            else
                store_some(out + c * LANES, sums[r][c], columns > c * LANES ? columns - c * LANES : 0, add);
}

static void gemm_panel(const struct gemm_params *p, const float *x, const float *panel, uint32_t length, float *out,
                       uint32_t rows, uint32_t columns, bool add)
{
    // Numbers of rows are constants, so that the sums stay in registers.
    for (; rows >= TALL; rows -= TALL, x += TALL * (size_t)p->x_stride, out += TALL * (size_t)p->out_stride)
        tile(x, p->x_stride, panel, length, out, p->out_stride, columns, add, TALL);
    for (; rows >= 4; rows -= 4, x += 4 * (size_t)p->x_stride, out += 4 * (size_t)p->out_stride)
        tile(x, p->x_stride, panel, length, out, p->out_stride, columns, add, 4);
    for (; rows; --rows, x += p->x_stride, out += p->out_stride)
        tile(x, p->x_stride, panel, length, out, p->out_stride, columns, add, 1);
}

// A few rows of x times LANES rows of expanded weights: dot products.
static void gemm_few(const struct gemm_params *p, const float *x, const float w[LANES][PITCH], uint32_t length,
                     float *out, uint32_t rows, uint32_t columns, bool add)
{
    const uint32_t even = length / LANES * LANES;
    for (uint32_t top = 0; top < rows; top += SQUARE)
        for (uint32_t left = 0; left < columns; left += SQUARE) {
            const float *row[SQUARE];
            for (uint32_t r = 0; r < SQUARE; ++r) // past the last row, the last again
                row[r] = x + (size_t)min_u32(top + r, rows - 1) * p->x_stride;
            Floats sums[SQUARE][SQUARE] = {0};
            for (uint32_t i = 0; i < even; i += LANES)
                UNROLL for (uint32_t r = 0; r < SQUARE; ++r)
                    UNROLL for (uint32_t c = 0; c < SQUARE; ++c)
                        sums[r][c] += load(row[r] + i) * load(w[left + c] + i);
            for (uint32_t r = 0; r < min_u32(SQUARE, rows - top); ++r)
                for (uint32_t c = 0; c < min_u32(SQUARE, columns - left); ++c) {
                    float total = sum(sums[r][c]), *to = out + (size_t)(top + r) * p->out_stride + left + c;
                    for (uint32_t i = even; i < length; ++i)
                        total += row[r][i] * w[left + c][i];
                    *to = add ? *to + total : total;
                }
        }
}

// ---- out[t] = table[ids[t]], for the ids whose rows are bound. A unit is a row.

static uint64_t embed_units(const Call *call)
{
    const struct embed_params *p = call->params;
    return VALID_ROWS(p, call->buffers[3]);
}

#define FORMAT f32
#include "floats_format.h"
#define FORMAT f16
#include "floats_format.h"
#define FORMAT bf16
#include "floats_format.h"
#define FORMAT q4_0
#include "bytes_format.h"
#define FORMAT q4_1
#include "bytes_format.h"
#define FORMAT q5_0
#include "bytes_format.h"
#define FORMAT q8_0
#include "bytes_format.h"
#define FORMAT q8_16
#include "bytes_format.h"
#define FORMAT q4_k
#include "bytes_format.h"
#define FORMAT q5_k
#include "bytes_format.h"
#define FORMAT q6_k
#include "bytes_format.h"
#define FORMAT mxfp4
#include "bytes_format.h"

#define COMMON(format) {"gemm_" #format, gemm_units, gemm_##format, 1}, {"embed_" #format, embed_units, embed_##format, 16},
#define FLOATS_ENTRIES(format) {"gemv_" #format, gemv_units, gemv_##format, 8}, COMMON(format)
#define BYTES_ENTRIES(format)                                                                                          \
    {"gemv_" #format, gemv_units, gemv_##format, 8, sum_x_##format},                                                   \
        {"gemv_rounded_" #format, gemv_units, gemv_rounded_##format, 4, round_x_##format}, COMMON(format)

const Kernel LINEAR[] = {OF_FLOATS(FLOATS_ENTRIES) OF_BYTES(BYTES_ENTRIES){0}};
