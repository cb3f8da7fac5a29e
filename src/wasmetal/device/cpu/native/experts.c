// Mixtures of experts: which experts a row's slots have, the experts' matrices, and the sum of what they make.
#include <math.h>

#include "multiply.h"

// ---- top_k: the largest logits of each row, and the softmax of the logits there. A unit is a row.

static uint64_t top_k_units(const Call *call)
{
    const struct top_k_params *p = call->params;
    return VALID_ROWS(p, call->buffers[3]);
}

static void top_k(const Call *call, uint64_t begin, uint64_t end)
{
    const struct top_k_params *p = call->params;
    for (uint32_t row = (uint32_t)begin; row < end; ++row) {
        const float *logits = (const float *)call->buffers[0] + p->logits_offset + (size_t)row * p->logits_stride;
        uint32_t *ids = (uint32_t *)call->buffers[1] + p->ids_offset + (size_t)row * p->slots;
        float *weights = (float *)call->buffers[2] + p->weights_offset + (size_t)row * p->slots;
        // The weights hold the logits in descending order until all are chosen. NaN counts as -infinity.
        for (uint32_t column = 0, chosen = 0; column < p->columns; ++column) {
            const float logit = logits[column] == logits[column] ? logits[column] : -INFINITY;
            uint32_t at = chosen;
            while (at > 0 && logit > weights[at - 1])
                --at;
            if (at == p->slots)
                continue;
            chosen = min_u32(chosen + 1, p->slots);
            memmove(weights + at + 1, weights + at, (chosen - 1 - at) * sizeof *weights);
            memmove(ids + at + 1, ids + at, (chosen - 1 - at) * sizeof *ids);
            weights[at] = logit;
            ids[at] = column;
        }
        const float peak = weights[0] == -INFINITY ? 0 : weights[0];
        float total = 0;
        for (uint32_t slot = 0; slot < p->slots; ++slot)
            total += weights[slot] = exponential((Floats)(logits[ids[slot]] - peak)).s0;
        if (!p->normalized) {
            total = 0;
            for (uint32_t column = 0; column < p->columns; ++column)
                total += exponential((Floats)(logits[column] - peak)).s0;
        }
        for (uint32_t slot = 0; slot < p->slots; ++slot)
            weights[slot] = total == 0 ? 0 : weights[slot] / total;
    }
}

// ---- weighted_sum: out[t] (+)= the sum of weights[t, s] x[t, s] over the slots. A unit is a row.

static uint64_t weighted_sum_units(const Call *call)
{
    const struct weighted_sum_params *p = call->params;
    return VALID_ROWS(p, call->buffers[3]);
}

static void weighted_sum(const Call *call, uint64_t begin, uint64_t end)
{
    const struct weighted_sum_params *p = call->params;
    for (uint32_t row = (uint32_t)begin; row < end; ++row) {
        const float *x = (const float *)call->buffers[0] + p->x_offset + (size_t)row * p->x_stride;
        const float *weights = (const float *)call->buffers[1] + p->weights_offset + (size_t)row * p->slots;
        float *out = (float *)call->buffers[2] + p->out_offset + (size_t)row * p->out_stride;
        uint32_t i = 0;
        for (; i + LANES <= p->columns; i += LANES) {
            Floats sum = p->accumulate ? load(out + i) : (Floats)0.0f;
            for (uint32_t slot = 0; slot < p->slots; ++slot)
                sum += weights[slot] * load(x + (size_t)slot * p->columns + i);
            store(out + i, sum);
        }
        for (; i < p->columns; ++i) {
            float sum = p->accumulate ? out[i] : 0;
            for (uint32_t slot = 0; slot < p->slots; ++slot)
                sum += weights[slot] * x[(size_t)slot * p->columns + i];
            out[i] = sum;
        }
    }
}

// ---- One row: out[s] (+)= weight[ids[s]] x[s], for the experts that are bound. A unit is ROWS outputs of a slot.

static uint64_t expert_gemv_units(const Call *call)
{
    const struct expert_gemv_params *p = call->params;
    return ((uint64_t)p->columns + ROWS - 1) / ROWS * p->slots;
}

// ---- out[t, s] (+)= weight[ids[t, s]] x[t, s], for the experts that are bound. A unit is COLUMNS outputs of an expert,
// whose weights are expanded a STRETCH at a time, for up to HEIGHT slots that have it.

enum { TALL = 3, WIDE = 2, COLUMNS = 8, HEIGHT = 128 };
enum { PITCH = STRETCH + LANES }; // of rows of expanded weights, as in linear.c

static uint64_t expert_gemm_units(const Call *call)
{
    const struct expert_gemm_params *p = call->params;
    return ((uint64_t)p->columns + COLUMNS - 1) / COLUMNS * p->bound_experts;
}

// Up to HEIGHT of ``slots`` slots that have the expert, from number ``*from`` on, which is moved on.
static uint32_t find_slots(const uint32_t *ids, uint64_t slots, uint32_t last, uint32_t expert, uint64_t *from,
                           uint64_t found[HEIGHT])
{
    uint32_t count = 0;
    for (; *from < slots && count < HEIGHT; ++*from)
        if (min_u32(ids[*from], last) == expert)
            found[count++] = *from;
    return count;
}

// A stretch of TALL rows of x times WIDE rows of expanded weights.
INLINE void expert_tile(const float *const x[TALL], const float *w, uint32_t length, float out[TALL][WIDE])
{
    const uint32_t even = length / LANES * LANES;
    Floats sums[TALL][WIDE] = {0};
    for (uint32_t i = 0; i < even; i += LANES)
        for (uint32_t r = 0; r < TALL; ++r)
            for (uint32_t c = 0; c < WIDE; ++c)
                sums[r][c] += load(x[r] + i) * load(w + c * PITCH + i);
    for (uint32_t r = 0; r < TALL; ++r)
        for (uint32_t c = 0; c < WIDE; ++c) {
            out[r][c] = sum(sums[r][c]);
            for (uint32_t i = even; i < length; ++i)
                out[r][c] += x[r][i] * w[c * PITCH + i];
        }
}

// The found slots' rows of x times expanded weights of one stretch, which begins at column ``from`` of x and is for
// the outputs first .. first + columns.
static void expert_stretch(const Call *call, const uint64_t *found, uint32_t count, const float *w, uint32_t first,
                           uint32_t columns, uint32_t from, uint32_t length)
{
    const struct expert_gemm_params *p = call->params;
    const float *all = (const float *)call->buffers[0] + p->x_offset + from;
    float *outs = (float *)call->buffers[3] + p->out_offset + first;
    for (uint32_t top = 0; top < count; top += TALL) {
        const float *x[TALL];
        for (uint32_t r = 0; r < TALL; ++r) { // past the last one, the last again
            const uint64_t slot = found[min_u32(top + r, count - 1)];
            x[r] = all + slot / p->slots * p->x_stride + slot % p->slots * p->x_slot;
        }
        for (uint32_t left = 0; left < columns; left += WIDE) {
            float sums[TALL][WIDE];
            expert_tile(x, w + left * PITCH, length, sums);
            for (uint32_t r = 0; r < min_u32(TALL, count - top); ++r) {
                const uint64_t slot = found[top + r];
                float *out = outs + slot / p->slots * p->out_stride + slot % p->slots * p->n + left;
                for (uint32_t c = 0; c < min_u32(WIDE, columns - left); ++c)
                    out[c] = p->accumulate || from ? out[c] + sums[r][c] : sums[r][c];
            }
        }
    }
}

#define KERNELS "experts_format.h"
#include "every_format.h"

#define ENTRIES(format)                                                                                                \
    {"expert_gemv_" #format, expert_gemv_units, expert_gemv_##format, 8, sum_slots_##format},                          \
        {"expert_gemv_rounded_" #format, expert_gemv_units, expert_gemv_rounded_##format, 8, round_slots_##format},    \
        {"expert_gemm_" #format, expert_gemm_units, expert_gemm_##format, 1},

const Kernel EXPERT_KERNELS[] = {
    FORMATS(ENTRIES){"top_k", top_k_units, top_k, 4},
    {"weighted_sum", weighted_sum_units, weighted_sum, 4},
    {0},
};
