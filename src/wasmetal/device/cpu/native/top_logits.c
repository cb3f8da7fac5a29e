// The k largest logits of each row: those of each part of it, and then those of all parts. Keys are those of
// kernels/top_logits.slang, as one number: the first word is the upper half.
#include <float.h>
#include <math.h>
#include <stdbool.h>

#include "kernel.h"

enum { MOST = 64, RUN = 32 };
static const uint32_t MINUS_INFINITY = 0x007fffff, SIGN = 0x80000000;

static uint64_t key_of(float logit, uint32_t column)
{
    uint32_t bits;
    memcpy(&bits, &logit, sizeof bits);
    uint32_t word = logit != logit ? MINUS_INFINITY : logit == 0 ? SIGN : bits & SIGN ? ~bits : bits | SIGN;
    return (uint64_t)word << 32 | (uint32_t)~column;
}

// The bits of a key's logit; of -infinity for 0, which is no logit's key.
static uint32_t bits_of(uint64_t key)
{
    uint32_t word = key >> 32 > MINUS_INFINITY ? (uint32_t)(key >> 32) : MINUS_INFINITY;
    return word & SIGN ? word & ~SIGN : ~word;
}

static float logit_of(uint64_t key)
{
    uint32_t bits = bits_of(key);
    float logit;
    memcpy(&logit, &bits, sizeof logit);
    return logit;
}

// Infinities become the largest floats, so that no difference is NaN.
INLINE Floats limited(Floats x)
{
    return __builtin_elementwise_min(__builtin_elementwise_max(x, (Floats)-FLT_MAX), (Floats)FLT_MAX);
}

INLINE Floats power(Floats x, float peak, float inverse_temperature)
{
    return exponential(__builtin_elementwise_max(x - peak, (Floats)-1e37f) * inverse_temperature);
}

// Put a key, which must come before the last of `best`, into its place.
INLINE void insert(uint64_t *best, uint32_t k, uint64_t key)
{
    uint32_t i = k - 1;
    for (; i > 0 && best[i - 1] < key; --i)
        best[i] = best[i - 1];
    best[i] = key;
}

// `count` logits, of which `column` is the first; `all` or fewer than LANES of them.
INLINE void choose(uint64_t *best, uint32_t k, const float *x, uint32_t column, uint32_t count, bool all)
{
    // Of equal logits the first stays: later ones must be greater. NaN and -infinity change no full list.
    if (all && best[k - 1] && !__builtin_reduce_or((Ints)(load(x + column) > logit_of(best[k - 1]))))
        return;
    for (uint32_t i = column; i < column + count; ++i) {
        const uint64_t key = key_of(x[i], i);
        if (key > best[k - 1])
            insert(best, k, key);
    }
}

static uint64_t top_logits_part_units(const Call *call)
{
    const struct top_logits_part_params *p = call->params;
    return (uint64_t)p->rows * p->parts;
}

static void top_logits_part(const Call *call, uint64_t begin, uint64_t end)
{
    const struct top_logits_part_params *p = call->params;
    const uint64_t step = (uint64_t)p->parts * RUN;
    for (uint64_t unit = begin; unit < end; ++unit) {
        const uint64_t row = unit / p->parts, part = unit % p->parts;
        const float *x = (const float *)call->buffers[0] + p->logits_offset + row * p->logits_stride;
        uint64_t best[MOST] = {0};
        for (uint64_t run = part * RUN; run < p->columns; run += step) {
            const uint32_t to = run + RUN < p->columns ? run + RUN : p->columns;
            uint32_t i = run;
            for (; i + LANES <= to; i += LANES)
                choose(best, p->k, x, i, LANES, true);
            choose(best, p->k, x, i, to - i, false);
        }
        const float peak = limited((Floats)logit_of(best[0])).s0;
        Floats totals = 0;
        float total = 0;
        for (uint64_t run = part * RUN; run < p->columns; run += step) {
            const uint32_t to = run + RUN < p->columns ? run + RUN : p->columns;
            uint32_t i = run;
            for (; i + LANES <= to; i += LANES) {
                const Floats some = load(x + i);
                totals += some > -INFINITY ? power(limited(some), peak, p->inverse_temperature) : (Floats)0;
            }
            for (; i < to; ++i)
                total += x[i] > -INFINITY ? power(limited((Floats)x[i]), peak, p->inverse_temperature).s0 : 0;
        }
        total += sum(totals);
        uint32_t *out = (uint32_t *)call->buffers[1] + 2 * (p->scratch_offset + row * (p->k + 1) * p->parts + part);
        for (uint32_t i = 0; i < p->k; ++i, out += 2 * p->parts) {
            out[0] = best[i] >> 32;
            out[1] = (uint32_t)best[i];
        }
        memcpy(out, &peak, sizeof peak);
        memcpy(out + 1, &total, sizeof total);
    }
}

static uint64_t top_logits_merge_units(const Call *call)
{
    return ((const struct top_logits_merge_params *)call->params)->rows;
}

static void top_logits_merge(const Call *call, uint64_t begin, uint64_t end)
{
    const struct top_logits_merge_params *p = call->params;
    for (uint64_t row = begin; row < end; ++row) {
        const uint64_t offset = p->scratch_offset + row * (p->k + 1) * p->parts;
        const uint32_t *from = (const uint32_t *)call->buffers[0] + 2 * offset;
        uint64_t best[MOST] = {0};
        for (uint32_t i = 0; i < p->k * p->parts; ++i, from += 2) {
            const uint64_t key = (uint64_t)from[0] << 32 | from[1];
            if (key > best[p->k - 1])
                insert(best, p->k, key);
        }
        const float peak = limited((Floats)logit_of(best[0])).s0;
        float total = 0;
        for (uint32_t part = 0; part < p->parts; ++part, from += 2) {
            float of_part[2];
            memcpy(of_part, from, sizeof of_part);
            total += of_part[1] * power((Floats)of_part[0], peak, p->inverse_temperature).s0;
        }
        uint32_t *ids = (uint32_t *)call->buffers[1] + p->ids_offset + row * p->k;
        uint32_t *values = (uint32_t *)call->buffers[2] + p->values_offset + row * p->k;
        for (uint32_t i = 0; i < p->k; ++i) {
            ids[i] = ~(uint32_t)best[i];
            values[i] = bits_of(best[i]);
        }
        uint32_t *totals = (uint32_t *)call->buffers[3] + p->totals_offset + 2 * row;
        totals[0] = bits_of(best[0]);
        memcpy(totals + 1, &total, sizeof total);
    }
}

const Kernel TOP_LOGITS[] = {
    {"top_logits_part", top_logits_part_units, top_logits_part, 4},
    {"top_logits_merge", top_logits_merge_units, top_logits_merge, 4},
    {0},
};
