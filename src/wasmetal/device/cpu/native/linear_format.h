// The kernels of linear.c for one format of weights: FORMAT, its name, and UNIT, the bytes of GEMV's unit of offsets.

static void OF(gemv)(const Call *call, uint64_t begin, uint64_t end)
{
    const struct gemv_params *p = call->params;
    const uint8_t *weight = call->buffers[0] + (size_t)p->weight_offset * UNIT;
    const float *x = (const float *)call->buffers[1] + (size_t)p->x_offset * 4;
    float *out = (float *)call->buffers[2] + p->out_offset;
    const size_t pitch = OF(row_bytes)(p->k), whole = p->k / 32, of_group = OF(row_bytes)(32) * ROWS;
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
                OF(expand)(row[r], i, w);
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

static void OF(gemm)(const Call *call, uint64_t begin, uint64_t end)
{
    const struct gemm_params *p = call->params;
    const uint8_t *weight = call->buffers[1] + (size_t)p->weight_offset * 4;
    const uint32_t valid = VALID_ROWS(p, call->buffers[3]), across = (p->n + COLUMNS - 1) / COLUMNS;
    const size_t pitch = OF(row_bytes)(p->k);
    float w[COLUMNS * STRETCH] __attribute__((aligned(64)));
    for (uint64_t unit = begin; unit < end; ++unit) {
        const uint32_t first = (uint32_t)(unit % across) * COLUMNS, columns = min_u32(COLUMNS, p->n - first);
        const uint32_t top = (uint32_t)(unit / across) * HEIGHT, rows = min_u32(HEIGHT, valid - top);
        const float *x = (const float *)call->buffers[0] + p->x_offset + (size_t)top * p->x_stride;
        float *out = (float *)call->buffers[2] + p->out_offset + (size_t)top * p->out_stride;
        for (uint32_t from = 0; from < p->k; from += STRETCH) {
            const uint32_t length = min_u32(STRETCH, p->k - from);
            for (uint32_t c = 0; c < columns; ++c) {
                const uint8_t *row = weight + (first + c) * pitch;
                for (uint32_t i = 0; i < length / 32; ++i) {
                    Floats some[2];
                    OF(expand)(row, from / 32 + i, some);
                    memcpy(w + c * STRETCH + 32 * i, some, sizeof some);
                }
                for (uint32_t i = length / 32 * 32; i < length; ++i)
                    w[c * STRETCH + i] = OF(one)(row, from + i);
            }
            gemm_stretch(p, x, w, out, rows, first, columns, from, length);
        }
    }
}

static void OF(embed)(const Call *call, uint64_t begin, uint64_t end)
{
    const struct embed_params *p = call->params;
    const uint8_t *table = call->buffers[0] + (size_t)p->table_offset * 4;
    const uint32_t *ids = (const uint32_t *)call->buffers[1] + p->ids_offset;
    for (uint32_t t = (uint32_t)begin; t < end; ++t) {
        const uint32_t id = min_u32(ids[t], p->table_rows - 1);
        if (id < p->first_row || id - p->first_row >= p->bound_rows)
            continue;
        const uint8_t *row = table + (id - p->first_row) * OF(row_bytes)(p->columns);
        float *out = (float *)call->buffers[2] + p->out_offset + (size_t)t * p->out_stride;
        for (uint32_t i = 0; i < p->columns / 32; ++i) {
            Floats some[2];
            OF(expand)(row, i, some);
            memcpy(out + 32 * i, some, sizeof some);
        }
        for (uint32_t i = p->columns / 32 * 32; i < p->columns; ++i)
            out[i] = OF(one)(row, i);
    }
}

#undef FORMAT
#undef UNIT
