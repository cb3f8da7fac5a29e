// The kernels of linear.c for one format of weights: FORMAT, its name.

INLINE const void *OF(prepare_x)(const Call *call, bool rounded, void *scratch, size_t nbytes)
{
    const struct gemv_params *p = call->params;
    const float *x = (const float *)call->buffers[1] + (size_t)p->x_offset * 4;
    return OF(PARTS) > 0 && prepare_all(x, p->k, OF(PARTS), rounded, scratch, nbytes) ? scratch : NULL;
}

static const void *OF(sum_x)(const Call *call, void *scratch, size_t nbytes)
{
    return OF(prepare_x)(call, false, scratch, nbytes);
}

static const void *OF(round_x)(const Call *call, void *scratch, size_t nbytes)
{
    return OF(prepare_x)(call, true, scratch, nbytes);
}

INLINE void OF(gemv_units_of)(const Call *call, bool rounded, uint64_t begin, uint64_t end)
{
    const struct gemv_params *p = call->params;
    const size_t pitch = OF(row_bytes)(p->k);
    const uint8_t *weight = call->buffers[0] + (size_t)p->weight_offset * OF(UNIT);
    const float *x = (const float *)call->buffers[1] + (size_t)p->x_offset * 4;
    float *out = (float *)call->buffers[2] + p->out_offset;
    const Prepared *prepared = prepared_by_caller;
    for (uint32_t n = (uint32_t)begin * ROWS; n < min_u32((uint32_t)end * ROWS, p->n); n += ROWS)
        OF(multiply)(weight + n * pitch, p->n - n, x, p->k, prepared, rounded, out + n, p->accumulate);
}

static void OF(gemv)(const Call *call, uint64_t begin, uint64_t end) { OF(gemv_units_of)(call, false, begin, end); }
static void OF(gemv_rounded)(const Call *call, uint64_t begin, uint64_t end) { OF(gemv_units_of)(call, true, begin, end); }

static void OF(gemm)(const Call *call, uint64_t begin, uint64_t end)
{
    const struct gemm_params *p = call->params;
    const uint8_t *weight = call->buffers[1] + (size_t)p->weight_offset * 4;
    const uint32_t valid = VALID_ROWS(p, call->buffers[3]), across = (p->n + COLUMNS - 1) / COLUMNS;
    const size_t pitch = OF(row_bytes)(p->k);
    float expanded[LANES][PITCH] __attribute__((aligned(64))), panel[DEEP * COLUMNS] __attribute__((aligned(64)));
    for (uint64_t unit = begin; unit < end; ++unit) {
        const uint32_t first = (uint32_t)(unit % across) * COLUMNS, columns = min_u32(COLUMNS, p->n - first);
        const uint32_t top = (uint32_t)(unit / across) * HEIGHT, rows = min_u32(HEIGHT, valid - top);
        const uint32_t deep = rows > FEW ? DEEP : STRETCH;
        const float *x = (const float *)call->buffers[0] + p->x_offset + (size_t)top * p->x_stride;
        float *out = (float *)call->buffers[2] + p->out_offset + (size_t)top * p->out_stride + first;
        for (uint32_t from = 0; from < p->k; from += deep, x += deep) {
            const uint32_t length = min_u32(deep, p->k - from);
            const bool add = p->accumulate || from;
            for (uint32_t left = 0; left < columns; left += LANES) {
                const uint32_t some = min_u32(LANES, columns - left);
                for (uint32_t c = 0; c < some; ++c)
                    OF(expand)(weight + (first + left + c) * pitch, from, length, expanded[c]);
                if (rows > FEW)
                    to_panel(expanded, length, panel + left);
                else
                    gemm_few(p, x, expanded, length, out + left, rows, some, add);
            }
            if (rows > FEW)
                gemm_panel(p, x, panel, length, out, rows, columns, add);
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
        for (uint32_t from = 0; from < p->columns; from += STRETCH)
            OF(expand)(row, from, min_u32(STRETCH, p->columns - from), out + from);
    }
}
