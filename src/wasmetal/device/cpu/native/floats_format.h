// GEMV, and rows as float32, for a format whose weights are floats: FORMAT, its name.

static void OF(gemv)(const Call *call, uint64_t begin, uint64_t end)
{
    const struct gemv_params *p = call->params;
    const size_t pitch = OF(row_bytes)(p->k), of_group = OF(row_bytes)(32) * ROWS, whole = p->k / 32;
    const uint8_t *weight = call->buffers[0] + (size_t)p->weight_offset * 16;
    const float *x = (const float *)call->buffers[1] + (size_t)p->x_offset * 4;
    float *out = (float *)call->buffers[2] + p->out_offset;
    for (uint64_t unit = begin; unit < end; ++unit) {
        const uint32_t n = (uint32_t)unit * ROWS;
        const uint8_t *row[ROWS], *ahead = weight + n * pitch + AHEAD;
        for (uint32_t r = 0; r < ROWS; ++r) // past the last row, the last again
            row[r] = weight + min_u32(n + r, p->n - 1) * pitch;
        Floats sums[ROWS] = {0};
        for (size_t i = 0; i < whole; ++i) {
            for (size_t byte = 0; byte < of_group; byte += 64)
                __builtin_prefetch(ahead + i * of_group + byte);
            const Floats low = load(x + 32 * i), high = load(x + 32 * i + LANES);
            for (uint32_t r = 0; r < ROWS; ++r) {
                Floats w[2];
                OF(floats)(row[r], i, w);
                sums[r] += w[0] * low;
                sums[r] += w[1] * high;
            }
        }
        for (uint32_t r = 0; r < min_u32(ROWS, p->n - n); ++r) {
            float total = sum(sums[r]);
            for (uint32_t i = 32 * whole; i < p->k; ++i)
                total += OF(one)(row[r], i) * x[i];
            out[n + r] = p->accumulate ? out[n + r] + total : total;
        }
    }
}

static void OF(expand)(const uint8_t *row, uint32_t from, uint32_t length, float *out)
{
    const uint32_t whole = length / 32;
    for (uint32_t i = 0; i < whole; ++i) {
        Floats w[2];
        OF(floats)(row, from / 32 + i, w);
        memcpy(out + 32 * i, w, sizeof w);
    }
    for (uint32_t i = 32 * whole; i < length; ++i)
        out[i] = OF(one)(row, from + i);
}

#include "linear_format.h"
#undef FORMAT
