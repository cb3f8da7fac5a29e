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
// the next. Its weights are expanded a STRETCH at a time.

#ifdef __AVX512F__
enum { TALL = 4, WIDE = 5 }; // the outputs that registers hold
#else
enum { TALL = 3, WIDE = 2 };
#endif
enum { HEIGHT = 128, COLUMNS = 4 * WIDE };

static uint64_t gemm_units(const Call *call)
{
    const struct gemm_params *p = call->params;
    const uint64_t down = ((uint64_t)VALID_ROWS(p, call->buffers[3]) + HEIGHT - 1) / HEIGHT;
    return down * (((uint64_t)p->n + COLUMNS - 1) / COLUMNS);
}

INLINE void tile(const float *const x[TALL], const float *w, uint32_t length, float out[TALL][WIDE])
{
    Floats sums[TALL][WIDE] = {0};
    for (uint32_t i = 0; i < length; i += LANES) {
        Floats column[WIDE];
        for (uint32_t c = 0; c < WIDE; ++c)
            column[c] = load(w + c * STRETCH + i);
        for (uint32_t r = 0; r < TALL; ++r) {
            Floats row = load(x[r] + i);
            for (uint32_t c = 0; c < WIDE; ++c)
                sums[r][c] += row * column[c];
        }
    }
    for (uint32_t r = 0; r < TALL; ++r)
        for (uint32_t c = 0; c < WIDE; ++c)
            out[r][c] = sum(sums[r][c]);
}

// Rows of x times expanded weights of one stretch, which begins at column ``from`` of x.
static void gemm_stretch(const struct gemm_params *p, const float *x, const float *w, float *out, uint32_t rows,
                         uint32_t first, uint32_t columns, uint32_t from, uint32_t length)
{
    const uint32_t even = length / LANES * LANES;
    for (uint32_t top = 0; top < rows; top += TALL) {
        const float *row[TALL];
        for (uint32_t r = 0; r < TALL; ++r) // past the last row, the last again
            row[r] = x + (size_t)min_u32(top + r, rows - 1) * p->x_stride + from;
        for (uint32_t left = 0; left < columns; left += WIDE) {
            float sums[TALL][WIDE];
            tile(row, w + left * STRETCH, even, sums);
            for (uint32_t r = 0; r < min_u32(TALL, rows - top); ++r)
                for (uint32_t c = 0; c < min_u32(WIDE, columns - left); ++c) {
                    float total = sums[r][c], *to = out + (size_t)(top + r) * p->out_stride + first + left + c;
                    for (uint32_t i = even; i < length; ++i)
                        total += row[r][i] * w[(left + c) * STRETCH + i];
                    *to = p->accumulate || from ? *to + total : total;
                }
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
