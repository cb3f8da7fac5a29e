// GEMV and GEMM with a matrix of weights, which has one row per output, and rows of a table of weights.
#include "panels.h"

// ---- out (+)= weight x. A unit is ROWS outputs.

static uint64_t gemv_units(const Call *call)
{
    const struct gemv_params *p = call->params;
    return ((uint64_t)p->n + ROWS - 1) / ROWS;
}

// ---- out (+)= x weightᵀ. A unit is COLUMNS outputs of HEIGHT rows, which stay in the processor's cache from one unit to
// the next.

enum { HEIGHT = 128 };

static uint64_t gemm_units(const Call *call)
{
    const struct gemm_params *p = call->params;
    const uint64_t down = ((uint64_t)VALID_ROWS(p, call->buffers[3]) + HEIGHT - 1) / HEIGHT;
    return down * (((uint64_t)p->n + COLUMNS - 1) / COLUMNS);
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
