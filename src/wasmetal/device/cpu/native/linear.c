// GEMV and GEMM with a matrix of weights, which has one row per output, and rows of a table of weights.
#include "multiply.h"

// ---- out (+)= weight x. A unit is ROWS outputs.

static uint64_t gemv_units(const Call *call)
{
    const struct gemv_params *p = call->params;
    return ((uint64_t)p->n + ROWS - 1) / ROWS;
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

#define KERNELS "linear_format.h"
#include "every_format.h"

#define ENTRIES(format)                                                                                                \
    {"gemv_" #format, gemv_units, gemv_##format, 8, sum_x_##format},                                                   \
        {"gemv_rounded_" #format, gemv_units, gemv_rounded_##format, 8, round_x_##format},                             \
        {"gemm_" #format, gemm_units, gemm_##format, 1}, {"embed_" #format, embed_units, embed_##format, 16},

const Kernel LINEAR[] = {FORMATS(ENTRIES){0}};
