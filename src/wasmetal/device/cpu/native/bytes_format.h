// Products and float32 values of rows of weights that are scaled bytes: FORMAT, their format.

enum { OF(UNIT) = 4 }; // bytes of GEMV's unit of offsets

INLINE void OF(eight_scales)(const uint8_t *row, size_t i, size_t count, Eight *scale, Eight *offset)
{
    if (count < 8)
        OF(scales)(row, i, count, scale, offset);
    else // with a constant, so that nothing is compared for each part
        OF(scales)(row, i, 8, scale, offset);
}

INLINE Floats OF(as_floats)(Bytes bytes)
{
    return OF(BIAS) == 128 ? __builtin_convertvector((SignedBytes)bytes, Floats) : __builtin_convertvector(bytes, Floats);
}

// Sums of 32 weights times x.
INLINE Floats OF(products)(ManyBytes w, Floats low, Floats high, const float *scale)
{
    const Floats first = OF(as_floats)(w.lo), second = OF(as_floats)(w.hi);
    return OF(PARTS) == 1 ? (first * low + second * high) * scale[0] : first * low * scale[0] + second * high * scale[1];
}

// The same of x that is rounded to bytes.
INLINE Eight OF(rounded_products)(ManyBytes w, ManyBytes x, const float *scale)
{
    const ManyBytes unsigned_w = OF(BIAS) == 128 ? w ^ (uint8_t)128 : w;
    const Eight sums = __builtin_convertvector(dot(unsigned_w, x), Eight);
    Eight scales = scale[0];
    if (OF(PARTS) == 2)
        scales.hi = scale[1];
    return sums * scales;
}

// out (+)= rows of weights, ROWS of the ``left`` that begin at ``weight``, times x, which is rounded to bytes if that is
// wanted. ``prepared``: what ``prepare_all`` gave for x; NULL if there is none.
INLINE void OF(multiply)(const uint8_t *weight, uint32_t left, const float *x, uint32_t k, const Prepared *prepared,
                         bool rounded, float *out, bool add)
{
    const size_t pitch = OF(row_bytes)(k), of_group = OF(row_bytes)(32) * ROWS;
    const float bias = OF(BIAS) == 128 && !rounded ? 0 : OF(BIAS);
    const uint8_t *row[ROWS];
    for (uint32_t r = 0; r < ROWS; ++r) // past the last row, the last again
        row[r] = weight + min_u32(r, left - 1) * pitch;
    Floats sums[ROWS] = {0};
    Eight eights[ROWS] = {0}; // the rest of the sums
    for (uint32_t from = 0; from < k; from += STRETCH) {
        const uint32_t length = min_u32(STRETCH, k - from), count = length / 32 * OF(PARTS);
        Prepared here;
        const Prepared *of_x = prepared ? prepared + from / STRETCH : &here;
        if (!prepared)
            prepare(x + from, length, OF(PARTS), rounded, &here);
        float scales[ROWS][PER_STRETCH];
        for (uint32_t r = 0; r < ROWS; ++r)
            for (uint32_t i = 0; i < count; i += 8) {
                const uint32_t at = eight_from(i, count);
                Eight scale, offset;
                OF(eight_scales)(row[r], from / 32 * OF(PARTS) + at, count - at, &scale, &offset);
                if (bias || OF(OFFSETS)) // the products below are of bytes with their bias
                    eights[r] += (offset - scale * bias) * load_eight(of_x->sums + i);
                store_eight(scales[r] + at, rounded ? scale * load_eight(of_x->scale + at) : scale);
            }
        for (uint32_t i = from / 32, part = 0; part < count; ++i, part += OF(PARTS)) {
            for (size_t byte = 0; byte < of_group; byte += 64)
                __builtin_prefetch(weight + AHEAD + i * of_group + byte);
            const Floats low = load(x + 32 * (size_t)i), high = load(x + 32 * (size_t)i + LANES);
            const ManyBytes of_both = load_many_bytes(of_x->rounded + 32 * (size_t)i - from);
            for (uint32_t r = 0; r < ROWS; ++r)
                if (rounded)
                    eights[r] += OF(rounded_products)(OF(bytes)(row[r], i), of_both, scales[r] + part);
                else
                    sums[r] += OF(products)(OF(bytes)(row[r], i), low, high, scales[r] + part);
        }
    }
    for (uint32_t r = 0; r < min_u32(ROWS, left); ++r) {
        const float total = rounded ? sum_eight(eights[r]) : sum(sums[r]) + sum_eight(eights[r]);
        out[r] = add ? out[r] + total : total;
    }
}

// Weights from .. from + length of a row as float32. ``from`` is a multiple of 256, ``length`` at most STRETCH.
static void OF(expand)(const uint8_t *row, uint32_t from, uint32_t length, float *out)
{
    const uint32_t count = length / 32 * OF(PARTS), first = from / 32 * OF(PARTS);
    float scales[PER_STRETCH], offsets[PER_STRETCH];
    for (uint32_t i = 0; i < count; i += 8) {
        const uint32_t at = eight_from(i, count);
        Eight scale, offset;
        OF(eight_scales)(row, first + at, count - at, &scale, &offset);
        store_eight(scales + at, scale);
        store_eight(offsets + at, offset);
    }
    for (uint32_t i = 0; i < length; i += 32) {
        const ManyBytes w = OF(bytes)(row, (from + i) / 32);
        for (uint32_t j = 0; j < 2; ++j) {
            const uint32_t part = OF(PARTS) == 2 ? i / 16 + j : i / 32;
            const Floats all = OF(as_floats)(j ? w.hi : w.lo) - (OF(BIAS) == 128 ? 0 : (float)OF(BIAS));
            store(out + i + LANES * j, all * scales[part] + (OF(OFFSETS) ? offsets[part] : 0));
        }
    }
}
