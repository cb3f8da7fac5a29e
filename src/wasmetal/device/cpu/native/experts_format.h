// The kernels of experts.c for one format of weights: FORMAT, its name, and UNIT, the bytes of GEMV's unit of offsets.

static void OF(expert_gemv)(const Call *call, uint64_t begin, uint64_t end)
{
    const struct expert_gemv_params *p = call->params;
    const uint32_t *ids = (const uint32_t *)call->buffers[2] + p->ids_offset, across = (p->columns + ROWS - 1) / ROWS;
    const size_t pitch = OF(row_bytes)(p->k), whole = p->k / 32, of_group = OF(row_bytes)(32) * ROWS;
    for (uint64_t unit = begin; unit < end; ++unit) {
        const uint32_t slot = (uint32_t)(unit / across), n = (uint32_t)(unit % across) * ROWS;
        const uint32_t expert = min_u32(ids[slot], p->experts - 1) - p->first_expert; // wraps around before the first
        if (expert >= p->bound_experts)
            continue;
        const uint8_t *weight = call->buffers[0] + (size_t)p->weight_offset * UNIT +
                                ((size_t)expert * p->n + p->first_column) * pitch;
        const float *x = (const float *)call->buffers[1] + (size_t)p->x_offset * 4 + (size_t)slot * p->x_slot;
        float *out = (float *)call->buffers[3] + p->out_offset + (size_t)slot * p->n + p->first_column + n;
        const uint8_t *row[ROWS], *ahead = weight + n * pitch + AHEAD;
        for (uint32_t r = 0; r < ROWS; ++r) // past the last row, the last again
            row[r] = weight + min_u32(n + r, p->columns - 1) * pitch;
        Floats sums[ROWS] = {0};
        for (size_t i = 0; i < whole; ++i) {
            for (size_t byte = 0; byte < of_group; byte += 64)
                __builtin_prefetch(ahead + i * of_group + byte);
            const Floats low = load(x + 32 * i), high = load(x + 32 * i + LANES);
            for (uint32_t r = 0; r < ROWS; ++r) {
                Floats w[2];
                OF(expand)(row[r], i, w);
                sums[r] += w[0] * low;
                sums[r] += w[1] * high;
            }
        }
        for (uint32_t r = 0; r < min_u32(ROWS, p->columns - n); ++r) {
            float total = sum(sums[r]);
            for (uint32_t i = 32 * whole; i < p->k; ++i)
                total += OF(one)(row[r], i) * x[i];
            out[r] = p->accumulate ? out[r] + total : total;
        }
    }
}

static void OF(expert_gemm)(const Call *call, uint64_t begin, uint64_t end)
{
    const struct expert_gemm_params *p = call->params;
    const uint32_t *ids = (const uint32_t *)call->buffers[2] + p->ids_offset;
    const uint64_t slots = (uint64_t)VALID_ROWS(p, call->buffers[4]) * p->slots;
    const uint32_t across = (p->columns + COLUMNS - 1) / COLUMNS;
    const size_t pitch = OF(row_bytes)(p->k);
    float w[COLUMNS * STRETCH] __attribute__((aligned(64)));
    for (uint64_t unit = begin; unit < end; ++unit) {
        const uint32_t bound = (uint32_t)(unit / across), expert = p->first_expert + bound;
        const uint32_t left = (uint32_t)(unit % across) * COLUMNS, columns = min_u32(COLUMNS, p->columns - left);
        const uint8_t *weight = call->buffers[1] + (size_t)p->weight_offset * 4 +
                                ((size_t)bound * p->n + p->first_column + left) * pitch;
        uint64_t found[HEIGHT], next = 0;
        for (uint32_t count; (count = find_slots(ids, slots, p->experts - 1, expert, &next, found));)
            for (uint32_t from = 0; from < p->k; from += STRETCH) {
                const uint32_t length = min_u32(STRETCH, p->k - from);
                for (uint32_t c = 0; c < columns; ++c) {
                    const uint8_t *row = weight + c * pitch;
                    for (uint32_t i = 0; i < length / 32; ++i) {
                        Floats some[2];
                        OF(expand)(row, from / 32 + i, some);
                        memcpy(w + c * STRETCH + 32 * i, some, sizeof some);
                    }
                    for (uint32_t i = length / 32 * 32; i < length; ++i)
                        w[c * STRETCH + i] = OF(one)(row, from + i);
                }
                expert_stretch(call, found, count, w, p->first_column + left, columns, from, length);
            }
    }
}

#undef FORMAT
#undef UNIT
