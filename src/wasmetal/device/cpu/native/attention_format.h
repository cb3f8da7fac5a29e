// The kernels of attention.c for one type of pool: FORMAT, its name, TYPE, its elements, and LOAD, a vector of them.

static void OF(kv_append)(const Call *call, uint64_t begin, uint64_t end)
{
    const struct kv_append_params *p = call->params;
    TYPE *k_pages = (TYPE *)call->buffers[2] + (size_t)p->k_pages_offset * 4;
    TYPE *v_pages = (TYPE *)call->buffers[3] + (size_t)p->v_pages_offset * 4;
    for (uint32_t row = (uint32_t)begin; row < end; ++row) {
        const uint32_t position = ROW_POSITION(p, call->buffers[4], row);
        const Sequence sequence = SEQUENCE(p, call->buffers[5], ROW_SEQUENCE(p, call->buffers[4], row));
        if (position >= sequence.length)
            continue;
        const size_t to = slot(&sequence, position) * p->columns;
        const float *k = (const float *)call->buffers[0] + p->k_offset + (size_t)row * p->k_stride;
        const float *v = (const float *)call->buffers[1] + p->v_offset + (size_t)row * p->v_stride;
        for (uint32_t i = 0; i < p->columns; ++i)
            k_pages[to + i] = (TYPE)k[i];
        for (uint32_t i = 0; i < p->columns; ++i)
            v_pages[to + i] = (TYPE)v[i];
    }
}

// Of the run's positions, the row sees past .. seen.
static void OF(add_values)(const struct attention_params *p, Row *row, const TYPE *values, const size_t where[RUN],
                           const float *weights, uint32_t past, uint32_t seen)
{
    const uint32_t vectors = p->head_dim / LANES, even = vectors * LANES;
    for (uint32_t j = past; j < seen; ++j) {
        const TYPE *v = values + where[j];
        for (uint32_t i = 0; i < vectors; ++i)
            row->sums[i] += weights[j] * LOAD(v + LANES * i);
        for (uint32_t i = even; i < p->head_dim; ++i)
            row->tail[i - even] += weights[j] * (float)v[i];
    }
}

// Add a run of positions to one row: scores of single keys, as in decoding.
static void OF(attend_one)(const struct attention_params *p, Row *row, const float *q, const TYPE *keys,
                           const TYPE *values, const size_t where[RUN], uint32_t seen)
{
    const uint32_t vectors = p->head_dim / LANES, even = vectors * LANES;
    float scores[RUN] __attribute__((aligned(64)));
    for (uint32_t j = 0; j < seen; ++j) {
        const TYPE *k = keys + where[j];
        Floats products = 0;
        for (uint32_t i = 0; i < vectors; ++i)
            products += load(q + LANES * i) * LOAD(k + LANES * i);
        float score = sum(products);
        for (uint32_t i = even; i < p->head_dim; ++i)
            score += q[i] * (float)k[i];
        scores[j] = score * p->scale;
    }
    weigh(row, scores, seen, p->head_dim);
    OF(add_values)(p, row, values, where, scores, 0, seen);
}

// Add a run of positions to several rows: scores of LANES keys at a time, which are transposed once for all rows. Of the
// run's positions, row r sees past[r] .. seen[r].
static void OF(attend_many)(const struct attention_params *p, Row *rows, const float *const q[TALL], uint32_t count,
                            const TYPE *keys, const TYPE *values, const size_t where[RUN], const uint32_t past[TALL],
                            const uint32_t seen[TALL])
{
    float transposed[MAX_HEAD * RUN] __attribute__((aligned(64)));
    uint32_t most = 0;
    for (uint32_t r = 0; r < count; ++r)
        most = seen[r] > most ? seen[r] : most;
    for (uint32_t j = 0; j < RUN; ++j) {
        const TYPE *k = keys + where[j < most ? j : 0];
        for (uint32_t i = 0; i < p->head_dim; ++i)
            transposed[i * RUN + j] = (float)k[i];
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
        OF(add_values)(p, &rows[r], values, where, scores, past[r], seen[r]);
    }
}

// Rows first .. first + count, all of one sequence.
static void OF(attend)(const Call *call, uint32_t first, uint32_t count, uint32_t head)
{
    const struct attention_params *p = call->params;
    const Sequence sequence = SEQUENCE(p, call->buffers[4], ROW_SEQUENCE(p, call->buffers[3], first));
    const size_t of_head = (size_t)(head / (p->heads / p->kv_heads)) * p->head_dim;
    const TYPE *keys = (const TYPE *)call->buffers[1] + (size_t)p->k_pages_offset * 4 + of_head;
    const TYPE *values = (const TYPE *)call->buffers[2] + (size_t)p->v_pages_offset * 4 + of_head;
    const size_t pitch = (size_t)p->kv_heads * p->head_dim;
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
        for (uint32_t j = 0; j < min_u32(RUN, most - from); ++j)
            where[j] = slot(&sequence, from + j) * pitch;
        for (uint32_t r = 0; r < count; ++r) {
            past[r] = begin[r] > from ? min_u32(begin[r] - from, RUN) : 0;
            now[r] = begin[r] < seen[r] && seen[r] > from ? min_u32(seen[r] - from, RUN) : 0;
        }
        if (count == 1)
            OF(attend_one)(p, rows, q[0], keys, values, where, now[0]);
        else
            OF(attend_many)(p, rows, q, count, keys, values, where, past, now);
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
#undef TYPE
#undef LOAD
