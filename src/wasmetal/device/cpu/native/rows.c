// Kernels that work along rows. A unit is a row, or a stretch of one for those that look at each element by itself.
#include <math.h>

#include "kernel.h"

enum { STRETCH = 4096 };

static const float *row_of(const uint8_t *buffer, uint32_t offset, uint32_t row, uint32_t stride)
{
    return (const float *)buffer + offset + (size_t)row * stride;
}

// ---- Elementwise. Units number the stretches of the first row, then of the second, and so on.

#define STRETCHES(p, rows) ((uint64_t)(rows) * (((p)->columns + STRETCH - 1) / STRETCH))

#define ELEMENTWISE(name, count_rows, operands, vector, scalar)                                                        \
    static uint64_t name##_units(const Call *call)                                                                     \
    {                                                                                                                  \
        const struct name##_params *p = call->params;                                                                  \
        return STRETCHES(p, count_rows);                                                                               \
    }                                                                                                                  \
    static void name(const Call *call, uint64_t begin, uint64_t end)                                                   \
    {                                                                                                                  \
        const struct name##_params *p = call->params;                                                                  \
        const uint32_t stretches = (p->columns + STRETCH - 1) / STRETCH;                                               \
        for (uint32_t unit = begin; unit < end; ++unit) {                                                              \
            const uint32_t row = unit / stretches, from = unit % stretches * STRETCH;                                  \
            const uint32_t to = min_u32(from + STRETCH, p->columns);                                                   \
            operands uint32_t i = from;                                                                                \
            for (; i + LANES <= to; i += LANES)                                                                        \
                vector;                                                                                                \
            for (; i < to; ++i)                                                                                        \
                scalar;                                                                                                \
        }                                                                                                              \
    }

#define ROW(tensor, buffer)                                                                                            \
    float *tensor = (float *)row_of(call->buffers[buffer], p->tensor##_offset, row, p->tensor##_stride);

ELEMENTWISE(add, p->rows, ROW(a, 0) ROW(b, 1) ROW(out, 2), store(out + i, load(a + i) + load(b + i)),
            out[i] = a[i] + b[i])

ELEMENTWISE(scale, p->rows, ROW(x, 0) ROW(out, 1), store(out + i, load(x + i) * p->factor), out[i] = x[i] * p->factor)

// A unit is a stretch of vectors of 16 bytes.
static uint64_t copy_units(const Call *call)
{
    return ((uint64_t)((const struct copy_params *)call->params)->vectors + STRETCH - 1) / STRETCH;
}

static void copy(const Call *call, uint64_t begin, uint64_t end)
{
    const struct copy_params *p = call->params;
    const size_t from = begin * STRETCH, to = end * STRETCH < p->vectors ? end * STRETCH : p->vectors;
    memcpy(call->buffers[1] + 16 * (p->out_offset + from), call->buffers[0] + 16 * (p->x_offset + from),
           16 * (to - from));
}

INLINE Floats silu(Floats x) { return x / (1.0f + exponential(-x)); }

ELEMENTWISE(silu_mul, VALID_ROWS(p, call->buffers[3]), ROW(gate, 0) ROW(up, 1) ROW(out, 2),
            store(out + i, silu(load(gate + i)) * load(up + i)), out[i] = silu((Floats)gate[i]).s0 * up[i])

// x (1 + tanh(y)) / 2 = x / (1 + e^-2y), with y = sqrt(2 / pi) (x + 0.044715 x^3)
INLINE Floats tanh_gelu(Floats x) { return x / (1.0f + exponential(-1.5957691216f * x * (1.0f + 0.044715f * x * x))); }

ELEMENTWISE(gelu_mul, VALID_ROWS(p, call->buffers[3]), ROW(gate, 0) ROW(up, 1) ROW(out, 2),
            store(out + i, tanh_gelu(load(gate + i)) * load(up + i)), out[i] = tanh_gelu((Floats)gate[i]).s0 * up[i])

// x (1 + erf(x / sqrt(2))) / 2 = max(x, 0) - |x| erfc(|x| / sqrt(2)) / 2, with erfc within 1.5e-7 (M. Abramowitz and
// I. Stegun, "Handbook of Mathematical Functions", 1964, 7.1.26).
INLINE Floats exact_gelu(Floats x)
{
    const Floats size = __builtin_elementwise_abs(x), t = 1.0f / (1.0f + 0.2316418882f * size);
    Floats series = 1.061405429f;
    series = series * t - 1.453152027f;
    series = series * t + 1.421413741f;
    series = series * t - 0.284496736f;
    series = series * t + 0.254829592f;
    return (x > 0 ? x : 0 * x) - size * (0.5f * series * t * exponential(-0.5f * x * x));
}

ELEMENTWISE(gelu, VALID_ROWS(p, call->buffers[2]), ROW(x, 0) ROW(out, 1), store(out + i, exact_gelu(load(x + i))),
            out[i] = exact_gelu((Floats)x[i]).s0)

// As in gpt-oss: the gate is limited above, the other factor on both sides and 1 is added to it.
INLINE Floats limited(Floats x, float least)
{
    return __builtin_elementwise_min(__builtin_elementwise_max(x, (Floats)least), (Floats)7.0f);
}
INLINE Floats swiglu(Floats gate, Floats up)
{
    const Floats g = limited(gate, -INFINITY);
    return g / (1.0f + exponential(-1.702f * g)) * (limited(up, -7.0f) + 1.0f);
}

ELEMENTWISE(swiglu_oai, VALID_ROWS(p, call->buffers[3]), ROW(gate, 0) ROW(up, 1) ROW(out, 2),
            store(out + i, swiglu(load(gate + i), load(up + i))), out[i] = swiglu((Floats)gate[i], (Floats)up[i]).s0)

// ---- Reductions

// A unit is a head of a row.
static uint64_t rms_norm_units(const Call *call)
{
    const struct rms_norm_params *p = call->params;
    return (uint64_t)VALID_ROWS(p, call->buffers[3]) * p->heads;
}

static void rms_norm(const Call *call, uint64_t begin, uint64_t end)
{
    const struct rms_norm_params *p = call->params;
    const float *weight = row_of(call->buffers[1], p->weight_offset, 0, 0);
    for (uint64_t unit = begin; unit < end; ++unit) {
        const uint32_t row = (uint32_t)(unit / p->heads);
        ROW(x, 0) ROW(out, 2)
        x += unit % p->heads * p->columns;
        out += unit % p->heads * p->columns;
        Floats squares = 0;
        uint32_t i = 0;
        for (; i + LANES <= p->columns; i += LANES)
            squares += load(x + i) * load(x + i);
        float total = sum(squares);
        for (; i < p->columns; ++i)
            total += x[i] * x[i];
        const float factor = 1.0f / sqrtf(total / p->columns + p->eps);
        for (i = 0; i + LANES <= p->columns; i += LANES)
            store(out + i, load(x + i) * factor * load(weight + i));
        for (; i < p->columns; ++i)
            out[i] = x[i] * factor * weight[i];
    }
}

static uint64_t layer_norm_units(const Call *call)
{
    const struct layer_norm_params *p = call->params;
    return VALID_ROWS(p, call->buffers[4]);
}

static void layer_norm(const Call *call, uint64_t begin, uint64_t end)
{
    const struct layer_norm_params *p = call->params;
    const float *weight = row_of(call->buffers[1], p->weight_offset, 0, 0);
    const float *bias = row_of(call->buffers[2], p->bias_offset, 0, 0);
    for (uint32_t row = (uint32_t)begin; row < end; ++row) {
        ROW(x, 0) ROW(out, 3)
        Floats parts = 0;
        uint32_t i = 0;
        for (; i + LANES <= p->columns; i += LANES)
            parts += load(x + i);
        float total = sum(parts);
        for (; i < p->columns; ++i)
            total += x[i];
        const float mean = total / p->columns;
        parts = 0;
        for (i = 0; i + LANES <= p->columns; i += LANES) {
            const Floats apart = load(x + i) - mean;
            parts += apart * apart;
        }
        total = sum(parts);
        for (; i < p->columns; ++i)
            total += (x[i] - mean) * (x[i] - mean);
        const float factor = 1.0f / sqrtf(total / p->columns + p->eps);
        for (i = 0; i + LANES <= p->columns; i += LANES)
            store(out + i, (load(x + i) - mean) * factor * load(weight + i) + load(bias + i));
        for (; i < p->columns; ++i)
            out[i] = (x[i] - mean) * factor * weight[i] + bias[i];
    }
}

static uint64_t softmax_units(const Call *call) { return ((const struct softmax_params *)call->params)->rows; }

static void softmax(const Call *call, uint64_t begin, uint64_t end)
{
    const struct softmax_params *p = call->params;
    for (uint32_t row = (uint32_t)begin; row < end; ++row) {
        ROW(x, 0) ROW(out, 1)
        float peak = -INFINITY, total = 0;
        for (uint32_t i = 0; i < p->columns; ++i)
            peak = x[i] > peak || x[i] != x[i] ? x[i] : peak; // NaN makes the row NaN
        if (peak == -INFINITY)
            peak = 0;
        uint32_t i = 0;
        Floats totals = 0;
        for (; i + LANES <= p->columns; i += LANES) {
            Floats e = exponential(load(x + i) - peak);
            store(out + i, e);
            totals += e;
        }
        total = sum(totals);
        for (; i < p->columns; ++i)
            total += out[i] = exponential((Floats)(x[i] - peak)).s0;
        const float factor = total == 0 ? 1 : total;
        for (i = 0; i < p->columns; ++i)
            out[i] = out[i] / factor;
    }
}

static uint64_t argmax_units(const Call *call) { return ((const struct argmax_params *)call->params)->rows; }

static void argmax(const Call *call, uint64_t begin, uint64_t end)
{
    const struct argmax_params *p = call->params;
    int32_t *out = (int32_t *)call->buffers[1] + p->out_offset;
    for (uint32_t row = (uint32_t)begin; row < end; ++row) {
        ROW(x, 0)
        float peak = NAN;
        int32_t at = 0;
        for (uint32_t i = 0; i < p->columns; ++i)
            if (x[i] > peak || (peak != peak && x[i] == x[i])) { // NaN is less than everything
                peak = x[i];
                at = (int32_t)i;
            }
        out[row] = at;
    }
}

const Kernel ROW_KERNELS[] = {
    {"add", add_units, add, 4},
    {"scale", scale_units, scale, 4},
    {"copy", copy_units, copy, 1},
    {"silu_mul", silu_mul_units, silu_mul, 2},
    {"gelu_mul", gelu_mul_units, gelu_mul, 2},
    {"swiglu_oai", swiglu_oai_units, swiglu_oai, 2},
    {"gelu", gelu_units, gelu, 2},
    {"rms_norm", rms_norm_units, rms_norm, 16},
    {"layer_norm", layer_norm_units, layer_norm, 16},
    {"softmax", softmax_units, softmax, 1},
    {"argmax", argmax_units, argmax, 1},
    {0},
};
