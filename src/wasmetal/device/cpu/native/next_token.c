// Each row's next token, chosen from its largest logits: see kernels/next_token.slang.
#include "kernel.h"

enum { SETTINGS = 6, MOST = 64 };
static const uint32_t NONE = 0xffffffff;

INLINE float float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// The number of the candidate that a random number of 0 to 1 chooses.
static uint32_t drawn(const float *weights, uint32_t count, float top_p, float min_p, float random)
{
    float total = 0, mass = 0;
    for (uint32_t i = 0; i < count; ++i)
        total += weights[i];
    uint32_t kept = 0, result = 0;
    while (kept < count && (kept == 0 || ((top_p >= 1 || mass < top_p * total) && weights[kept] >= min_p)))
        mass += weights[kept++];
    float left = random * mass;
    for (uint32_t i = 0; i < kept && left >= 0 && weights[i] > 0; ++i) {
        result = i;
        left -= weights[i];
    }
    return result;
}

static uint64_t next_token_units(const Call *call)
{
    return ((const struct next_token_params *)call->params)->rows;
}

static void next_token(const Call *call, uint64_t begin, uint64_t end)
{
    const struct next_token_params *p = call->params;
    const uint32_t *ids = (const uint32_t *)call->buffers[0] + p->ids_offset;
    const float *values = (const float *)call->buffers[1] + p->values_offset;
    const uint32_t *settings = (const uint32_t *)call->buffers[2] + p->settings_offset;
    uint32_t *tokens = (uint32_t *)call->buffers[3] + p->tokens_offset;
    uint32_t *batch = (uint32_t *)call->buffers[4] + p->batch_offset;
    uint32_t *sequences = (uint32_t *)call->buffers[5] + p->sequences_offset;
    uint32_t *chosen = (uint32_t *)call->buffers[6] + p->chosen_offset;
    for (uint64_t row = begin; row < end && row < batch[0]; ++row) {
        const uint32_t position = batch[2 + 2 * row], sequence = min_u32(batch[3 + 2 * row], p->sequence_count - 1);
        uint32_t *length = sequences + (uint64_t)sequence * (p->table_length + 1);
        const uint32_t *own = settings + row * (SETTINGS + p->steps);
        const uint32_t count = min_u32(own[5], p->steps);
        const uint32_t step = position - own[4]; // wraps around beyond `count` if the row begins later
        if (position >= *length || step >= count)
            continue;
        const float temperature = float_of(own[0]);
        const uint32_t candidates = min_u32(own[3], p->k < MOST ? p->k : MOST);
        const float *some = values + row * p->k;
        uint32_t candidate = 0;
        if (temperature > 0 && some[0] - some[0] == 0) { // it is finite
            float weights[MOST];
            for (uint32_t i = 0; i < candidates; ++i) {
                const float apart = (some[i] - some[0]) / temperature;
                weights[i] = apart > -100 ? exponential((Floats)apart).s0 : 0;
            }
            candidate = drawn(weights, candidates, float_of(own[1]), float_of(own[2]), float_of(own[SETTINGS + step]));
        }
        const uint32_t id = ids[row * p->k + candidate], token = id == NONE ? 0 : id;
        chosen[row * p->steps + step] = token;
        if (step + 1 < count) {
            tokens[row] = token;
            batch[2 + 2 * row] = position + 1;
            *length = position + 2;
        } else {
            *length = 0; // the row appends nothing more
        }
    }
}

const Kernel NEXT_TOKEN[] = {
    {"next_token", next_token_units, next_token, 64},
    {0},
};
