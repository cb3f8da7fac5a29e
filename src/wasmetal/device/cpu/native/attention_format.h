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

static void OF(attend)(const struct attention_params *p, const Sequence *sequence, uint32_t seen,
                            const float *q, const TYPE *keys, const TYPE *values, float *out)
{
    const uint32_t vectors = p->head_dim / LANES, even = vectors * LANES;
    const size_t pitch = (size_t)p->kv_heads * p->head_dim;
    Floats query[MAX_VECTORS], sums[MAX_VECTORS] = {0};
    float tail[LANES] = {0}, peak = -INFINITY, total = 0, scores[RUN] __attribute__((aligned(64)));
    for (uint32_t i = 0; i < vectors; ++i)
        query[i] = load(q + LANES * i) * p->scale;
    for (uint32_t from = 0; from < seen; from += RUN) {
        const uint32_t run = min_u32(RUN, seen - from);
        size_t where[RUN];
        float highest = -INFINITY;
        for (uint32_t j = 0; j < run; ++j) {
            where[j] = slot(sequence, from + j) * pitch;
            const TYPE *k = keys + where[j];
            Floats products = 0;
            for (uint32_t i = 0; i < vectors; ++i)
                products += query[i] * LOAD(k + LANES * i);
            float score = sum(products);
            for (uint32_t i = even; i < p->head_dim; ++i)
                score += q[i] * p->scale * (float)k[i];
            scores[j] = score;
            highest = score > highest || score != score ? score : highest;
        }
        const float higher = highest > peak || highest != highest ? highest : peak;
        const float rescale = exponential((Floats)(peak - higher)).s0;
        total *= rescale;
        for (uint32_t i = 0; i < vectors; ++i)
            sums[i] *= rescale;
        for (uint32_t i = even; i < p->head_dim; ++i)
            tail[i - even] *= rescale;
        for (uint32_t j = run; j < (run + LANES - 1) / LANES * LANES; ++j)
            scores[j] = -INFINITY;
        Floats totals = 0;
        for (uint32_t j = 0; j < run; j += LANES) {
            const Floats weights = exponential(load(scores + j) - higher);
            store(scores + j, weights);
            totals += weights;
        }
        total += sum(totals);
        for (uint32_t j = 0; j < run; ++j) {
            const TYPE *v = values + where[j];
            for (uint32_t i = 0; i < vectors; ++i)
                sums[i] += scores[j] * LOAD(v + LANES * i);
            for (uint32_t i = even; i < p->head_dim; ++i)
                tail[i - even] += scores[j] * (float)v[i];
        }
        peak = higher;
    }
    const float factor = seen ? 1.0f / total : 0.0f;
    for (uint32_t i = 0; i < vectors; ++i)
        store(out + LANES * i, sums[i] * factor);
    for (uint32_t i = even; i < p->head_dim; ++i)
        out[i] = tail[i - even] * factor;
}
static void OF(attention)(const Call *call, uint64_t begin, uint64_t end)
{
    const struct attention_params *p = call->params;
    for (uint64_t unit = begin; unit < end; ++unit) {
        const uint32_t row = (uint32_t)(unit / p->head_count);
        const uint32_t head = p->first_head + (uint32_t)(unit % p->head_count);
        const uint32_t kv_head = head / (p->heads / p->kv_heads);
        const Sequence sequence = SEQUENCE(p, call->buffers[4], ROW_SEQUENCE(p, call->buffers[3], row));
        const uint32_t position = ROW_POSITION(p, call->buffers[3], row);
        const size_t of_head = (size_t)kv_head * p->head_dim;
        OF(attend)(p, &sequence, position < sequence.length ? position + 1 : sequence.length,
                        (const float *)call->buffers[0] + p->q_offset + (size_t)row * p->q_stride +
                            (size_t)head * p->head_dim,
                        (const TYPE *)call->buffers[1] + (size_t)p->k_pages_offset * 4 + of_head,
                        (const TYPE *)call->buffers[2] + (size_t)p->v_pages_offset * 4 + of_head,
                        (float *)call->buffers[5] + p->out_offset + (size_t)row * p->out_stride +
                            (size_t)head * p->head_dim);
    }
}

#undef FORMAT
#undef TYPE
#undef LOAD
