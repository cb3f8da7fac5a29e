// GEMV and GEMM with a matrix of weights, which has one row per output, and rows of a table of weights.
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

// ---- out (+)= x weightᵀ. A unit is COLUMNS outputs of HEIGHT rows, which stay in the processor's cache from one unit to
// the next. Its weights are expanded a STRETCH at a time.

#ifdef __AVX512F__
enum { TALL = 4, WIDE = 5 }; // the outputs that registers hold
#else
enum { TALL = 3, WIDE = 2 };
#endif
enum { HEIGHT = 128, COLUMNS = 4 * WIDE, STRETCH = 1024 };

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
#define UNIT 16
#include "linear_format.h"
#define FORMAT f16
#define UNIT 16
#include "linear_format.h"
#define FORMAT bf16
#define UNIT 16
#include "linear_format.h"
#define FORMAT q4_0
#define UNIT 4
#include "linear_format.h"
#define FORMAT q4_1
#define UNIT 4
#include "linear_format.h"
#define FORMAT q5_0
#define UNIT 4
#include "linear_format.h"
#define FORMAT q8_0
#define UNIT 4
#include "linear_format.h"
#define FORMAT q8_16
#define UNIT 4
#include "linear_format.h"
#define FORMAT q4_k
#define UNIT 4
#include "linear_format.h"
#define FORMAT q5_k
#define UNIT 4
#include "linear_format.h"
#define FORMAT q6_k
#define UNIT 4
#include "linear_format.h"
#define FORMAT mxfp4
#define UNIT 4
#include "linear_format.h"

#define ENTRIES(format)                                                                                                \
    {"gemv_" #format, gemv_units, gemv_##format, 16}, {"gemm_" #format, gemm_units, gemm_##format, 1},                 \
        {"embed_" #format, embed_units, embed_##format, 16},

const Kernel LINEAR[] = {FORMATS(ENTRIES){0}};
