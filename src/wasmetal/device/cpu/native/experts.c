// Mixtures of experts: which experts a row's slots have, the experts' matrices, and the sum of what they make.
#include <math.h>

#include "panels.h"

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
// for all slots that have it: their x are gathered, HEIGHT at a time.

enum {
    HEIGHT = 64,
    GATHERED = HEIGHT * DEEP > FEW * STRETCH ? HEIGHT * DEEP : FEW * STRETCH,
};

static uint64_t expert_gemm_units(const Call *call)
{
    const struct expert_gemm_params *p = call->params;
    return ((uint64_t)p->columns + COLUMNS - 1) / COLUMNS * p->bound_experts;
}

// Slots that have an expert: their rows of x and of the output.
typedef struct {
    const float *x[HEIGHT];
    float *out[HEIGHT];
    uint32_t count;
} Rows;

// The next slots that have the expert, from number ``*next`` on, which is moved on. Returns whether there are any.
static bool find_rows(const Call *call, uint32_t expert, uint64_t *next, Rows *rows)
{
    const struct expert_gemm_params *p = call->params;
    const uint32_t *ids = (const uint32_t *)call->buffers[2] + p->ids_offset;
    const uint64_t slots = (uint64_t)VALID_ROWS(p, call->buffers[4]) * p->slots;
    rows->count = 0;
    for (; *next < slots && rows->count < HEIGHT; ++*next) {
        if (min_u32(ids[*next], p->experts - 1) != expert)
            continue;
        const uint64_t row = *next / p->slots, slot = *next % p->slots;
        rows->x[rows->count] = (const float *)call->buffers[0] + p->x_offset + row * p->x_stride + slot * p->x_slot;
        rows->out[rows->count++] = (float *)call->buffers[3] + p->out_offset + row * p->out_stride + slot * p->n;
    }
    return rows->count > 0;
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
