// The kernels of attention.c for one type of pool, FORMAT, whose layout is in kv_pool.h.

static void OF(kv_append)(const Call *call, uint64_t begin, uint64_t end)
{
    const struct kv_append_params *p = call->params;
    const size_t pitch = OF(slot_bytes)(p->columns);
    uint8_t *k_pages = call->buffers[2] + (size_t)p->k_pages_offset * OF(VECTOR);
    uint8_t *v_pages = call->buffers[3] + (size_t)p->v_pages_offset * OF(VECTOR);
    for (uint32_t row = (uint32_t)begin; row < end; ++row) {
        const uint32_t position = ROW_POSITION(p, call->buffers[4], row);
        const Sequence sequence = SEQUENCE(p, call->buffers[5], ROW_SEQUENCE(p, call->buffers[4], row));
        if (position >= sequence.length)
            continue;
        const size_t to = slot(&sequence, position) * pitch;
        OF(put)(k_pages + to, (const float *)call->buffers[0] + p->k_offset + (size_t)row * p->k_stride, p->columns);
        OF(put)(v_pages + to, (const float *)call->buffers[1] + p->v_offset + (size_t)row * p->v_stride, p->columns);
    }
}

// Of the run's positions, the row sees past .. seen. ``vectors`` of a head, here and below, are constant where heads of that
// size are frequent, so that the sums stay in registers.
INLINE void OF(add_values)(const struct attention_params *p, Row *row, const uint8_t *values, Head head,
                           const size_t where[RUN], const float *weights, uint32_t past, uint32_t seen, uint32_t vectors)
{
    const uint32_t even = vectors * LANES;
    Floats sums[MAX_VECTORS];
    for (uint32_t i = 0; i < vectors; ++i)
        sums[i] = row->sums[i];
    for (uint32_t j = past; j < seen; ++j) {
        const uint8_t *v = values + where[j];
        for (uint32_t i = 0; i < vectors; ++i)
            sums[i] += weights[j] * OF(vector)(v, head, LANES * i);
        for (uint32_t i = even; i < p->head_dim; ++i)
            row->tail[i - even] += weights[j] * OF(element)(v, head, i);
    }
    for (uint32_t i = 0; i < vectors; ++i)
        row->sums[i] = sums[i];
}

// Have a head's elements of a slot brought to the cache.
INLINE void OF(fetch)(const uint8_t *slot, Head head, uint32_t head_dim)
{
    for (size_t byte = 0; byte < OF(slot_bytes)(head_dim); byte += 64)
        __builtin_prefetch(slot + head.elements + byte);
}

// Add a run of positions to one row: scores of single keys, as in decoding.
INLINE void OF(attend_one)(const struct attention_params *p, Row *row, const float *q, const uint8_t *keys,
                           const uint8_t *values, Head head, const size_t where[RUN], uint32_t seen, uint32_t vectors)
{
    const uint32_t even = vectors * LANES;
    float scores[RUN] __attribute__((aligned(64)));
    for (uint32_t j = 0; j < seen; ++j) {
        const uint8_t *k = keys + where[j];
        OF(fetch)(keys + where[min_u32(j + AHEAD, seen - 1)], head, p->head_dim);
        OF(fetch)(values + where[j], head, p->head_dim);
        Floats products = 0;
        for (uint32_t i = 0; i < vectors; ++i)
            products += load(q + LANES * i) * OF(vector)(k, head, LANES * i);
        float score = sum(products);
        for (uint32_t i = even; i < p->head_dim; ++i)
            score += q[i] * OF(element)(k, head, i);
        scores[j] = score * p->scale;
    }
    weigh(row, scores, seen, p->head_dim);
    OF(add_values)(p, row, values, head, where, scores, 0, seen, vectors);
}

// Add a run of positions to several rows: scores of LANES keys at a time, which are transposed once for all rows. Of the
// run's positions, row r sees past[r] .. seen[r].
INLINE void OF(attend_many)(const struct attention_params *p, Row *rows, const float *const q[TALL], uint32_t count,
                            const uint8_t *keys, const uint8_t *values, Head head, const size_t where[RUN],
                            const uint32_t past[TALL], const uint32_t seen[TALL], uint32_t vectors)
{
    float transposed[MAX_HEAD * RUN] __attribute__((aligned(64)));
    uint32_t most = 0;
    for (uint32_t r = 0; r < count; ++r)
        most = seen[r] > most ? seen[r] : most;
    for (uint32_t j = 0; j < RUN; ++j) {
        const uint8_t *k = keys + where[j < most ? j : 0];
        for (uint32_t i = 0; i < p->head_dim; ++i)
            transposed[i * RUN + j] = OF(element)(k, head, i);
    }
    for (uint32_t r = 0; r < count; ++r) {
        if (past[r] >= seen[r])
            continue;
        Floats products[RUN / LANES] = {0};
        for (uint32_t i = 0; i < p->head_dim; ++i)
            for (uint32_t j = 0; j < RUN / LANES; ++j)
                products[j] += q[r][i] * load(transposed + i * RUN + LANES * j);
        float scores[RUN] __attribute__((aligned(64)));
        for (uint32_t j = 0; j < RUN / LANES; ++j)
            store(scores + LANES * j, products[j] * p->scale);
        for (uint32_t j = 0; j < past[r]; ++j)
            scores[j] = -INFINITY;
        weigh(&rows[r], scores, seen[r], p->head_dim);
        OF(add_values)(p, &rows[r], values, head, where, scores, past[r], seen[r], vectors);
    }
}

INLINE void OF(attend_run)(const struct attention_params *p, Row *rows, const float *const q[TALL], uint32_t count,
                           const uint8_t *keys, const uint8_t *values, Head head, const size_t where[RUN],
                           const uint32_t past[TALL], const uint32_t seen[TALL], uint32_t vectors)
{
    if (count == 1)
        OF(attend_one)(p, rows, q[0], keys, values, head, where, seen[0], vectors);
    else
        OF(attend_many)(p, rows, q, count, keys, values, head, where, past, seen, vectors);
}

// Rows first .. first + count, all of one sequence.
static void OF(attend)(const Call *call, uint32_t first, uint32_t count, uint32_t head)
{
    const struct attention_params *p = call->params;
    const Sequence sequence = SEQUENCE(p, call->buffers[4], ROW_SEQUENCE(p, call->buffers[3], first));
    const uint32_t columns = p->kv_heads * p->head_dim;
    const Head of_head = OF(head)(columns, head / (p->heads / p->kv_heads) * p->head_dim);
    const uint8_t *keys = call->buffers[1] + (size_t)p->k_pages_offset * OF(VECTOR);
    const uint8_t *values = call->buffers[2] + (size_t)p->v_pages_offset * OF(VECTOR);
    const size_t pitch = OF(slot_bytes)(columns);
    // A sink is the score of a position that has no value. It is as if the rows had seen it before all others.
    const float sink = p->sinks_offset == NO_SINKS ? -INFINITY : ((const float *)call->buffers[5])[p->sinks_offset + head];
    Row rows[TALL];
    const float *q[TALL];
    uint32_t begin[TALL], seen[TALL], least = UINT32_MAX, most = 0; // the rows see begin .. seen, all least .. most
    for (uint32_t r = 0; r < count; ++r) {
        const uint32_t position = ROW_POSITION(p, call->buffers[3], first + r);
        seen[r] = position < sequence.length ? position + 1 : sequence.length;
        begin[r] = p->window && position >= p->window ? position - p->window + 1 : 0;
        if (begin[r] < seen[r]) {
            least = min_u32(least, begin[r]);
            most = seen[r] > most ? seen[r] : most;
        }
        q[r] = (const float *)call->buffers[0] + p->q_offset + (size_t)(first + r) * p->q_stride +
               (size_t)head * p->head_dim;
        memset(&rows[r], 0, sizeof rows[r]);
        rows[r].peak = sink;
        rows[r].total = sink > -INFINITY;
    }
    for (uint32_t from = least; from < most; from += RUN) {
        size_t where[RUN];
        uint32_t past[TALL], now[TALL];
        find_slots(&sequence, from, min_u32(RUN, most - from), pitch, where);
        for (uint32_t r = 0; r < count; ++r) {
            past[r] = begin[r] > from ? min_u32(begin[r] - from, RUN) : 0;
            now[r] = begin[r] < seen[r] && seen[r] > from ? min_u32(seen[r] - from, RUN) : 0;
        }
        if (p->head_dim == 64)
            OF(attend_run)(p, rows, q, count, keys, values, of_head, where, past, now, 64 / LANES);
        else if (p->head_dim == 128)
            OF(attend_run)(p, rows, q, count, keys, values, of_head, where, past, now, 128 / LANES);
        else
            OF(attend_run)(p, rows, q, count, keys, values, of_head, where, past, now, p->head_dim / LANES);
    }
    for (uint32_t r = 0; r < count; ++r)
        finish(&rows[r], begin[r] < seen[r], p->head_dim,
               (float *)call->buffers[6] + p->out_offset + (size_t)(first + r) * p->out_stride +
                   (size_t)head * p->head_dim);
}

static void OF(attention)(const Call *call, uint64_t begin, uint64_t end)
{
    const struct attention_params *p = call->params;
    const uint32_t valid = VALID_ROWS(p, call->buffers[3]);
    for (uint64_t unit = begin; unit < end; ++unit) {
        const uint32_t top = (uint32_t)(unit / p->head_count) * TALL, bottom = min_u32(top + TALL, valid);
        for (uint32_t first = top, last; first < bottom; first = last) {
            const uint32_t sequence = ROW_SEQUENCE(p, call->buffers[3], first);
            for (last = first + 1; last < bottom && ROW_SEQUENCE(p, call->buffers[3], last) == sequence;)
                ++last;
            OF(attend)(call, first, last - first, p->first_head + (uint32_t)(unit % p->head_count));
        }
    }
}

#undef FORMAT
