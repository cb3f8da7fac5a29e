// The kernels of experts.c for one format of weights: FORMAT, its name.

// What is prepared of each slot's x, in turn, or of the x that all slots share.
INLINE const void *OF(prepare_slots)(const Call *call, bool rounded, void *scratch, size_t nbytes)
{
    const struct expert_gemv_params *p = call->params;
    const float *x = (const float *)call->buffers[1] + (size_t)p->x_offset * 4;
    Prepared *to = OF(PARTS) > 0 ? scratch : NULL;
    for (uint32_t slot = 0; to && slot < (p->x_slot ? p->slots : 1); ++slot) {
        const size_t used = (uint8_t *)to - (uint8_t *)scratch;
        to = prepare_all(x + (size_t)slot * p->x_slot, p->k, OF(PARTS), rounded, to, nbytes - used);
    }
    return to ? scratch : NULL;
}

static const void *OF(sum_slots)(const Call *call, void *scratch, size_t nbytes)
{
    return OF(prepare_slots)(call, false, scratch, nbytes);
}

static const void *OF(round_slots)(const Call *call, void *scratch, size_t nbytes)
{
    return OF(prepare_slots)(call, true, scratch, nbytes);
}

INLINE void OF(expert_units)(const Call *call, bool rounded, uint64_t begin, uint64_t end)
{
    const struct expert_gemv_params *p = call->params;
    const uint32_t *ids = (const uint32_t *)call->buffers[2] + p->ids_offset, across = (p->columns + ROWS - 1) / ROWS;
    const size_t pitch = OF(row_bytes)(p->k), stretches = ((size_t)p->k + STRETCH - 1) / STRETCH;
    const Prepared *prepared = prepared_by_caller;
    for (uint64_t unit = begin; unit < end; ++unit) {
        const uint32_t slot = (uint32_t)(unit / across), n = (uint32_t)(unit % across) * ROWS;
        const uint32_t expert = min_u32(ids[slot], p->experts - 1) - p->first_expert; // wraps around before the first
        if (expert >= p->bound_experts)
            continue;
        const uint8_t *weight = call->buffers[0] + (size_t)p->weight_offset * OF(UNIT) +
                                ((size_t)expert * p->n + p->first_column + n) * pitch;
        const float *x = (const float *)call->buffers[1] + (size_t)p->x_offset * 4 + (size_t)slot * p->x_slot;
        float *out = (float *)call->buffers[3] + p->out_offset + (size_t)slot * p->n + p->first_column + n;
        const Prepared *of_slot = prepared && p->x_slot ? prepared + slot * stretches : prepared;
        OF(multiply)(weight, p->columns - n, x, p->k, of_slot, rounded, out, p->accumulate);
    }
}

static void OF(expert_gemv)(const Call *call, uint64_t begin, uint64_t end)
{
    OF(expert_units)(call, false, begin, end);
}

static void OF(expert_gemv_rounded)(const Call *call, uint64_t begin, uint64_t end)
{
    OF(expert_units)(call, true, begin, end);
}

static void OF(expert_gemm)(const Call *call, uint64_t begin, uint64_t end)
{
    const struct expert_gemm_params *p = call->params;
    const uint32_t *ids = (const uint32_t *)call->buffers[2] + p->ids_offset;
    const uint64_t slots = (uint64_t)VALID_ROWS(p, call->buffers[4]) * p->slots;
    const uint32_t across = (p->columns + COLUMNS - 1) / COLUMNS;
    const size_t pitch = OF(row_bytes)(p->k);
    float w[COLUMNS * PITCH] __attribute__((aligned(64)));
    for (uint64_t unit = begin; unit < end; ++unit) {
        const uint32_t bound = (uint32_t)(unit / across), expert = p->first_expert + bound;
        const uint32_t left = (uint32_t)(unit % across) * COLUMNS, columns = min_u32(COLUMNS, p->columns - left);
        const uint8_t *weight = call->buffers[1] + (size_t)p->weight_offset * 4 +
                                ((size_t)bound * p->n + p->first_column + left) * pitch;
        uint64_t found[HEIGHT], next = 0;
        for (uint32_t count; (count = find_slots(ids, slots, p->experts - 1, expert, &next, found));)
            for (uint32_t from = 0; from < p->k; from += STRETCH) {
                const uint32_t length = min_u32(STRETCH, p->k - from);
                for (uint32_t c = 0; c < columns; ++c)
                    OF(expand)(weight + c * pitch, from, length, w + c * PITCH);
                expert_stretch(call, found, count, w, p->first_column + left, columns, from, length);
            }
    }
}
