// Products and float32 values of rows of weights that are floats: FORMAT, their format.

enum { OF(PARTS) = 0, OF(UNIT) = 16 }; // UNIT: bytes of GEMV's unit of offsets

// out (+)= rows of weights, ROWS of the ``left`` that begin at ``weight``, times x.
INLINE void OF(multiply)(const uint8_t *weight, uint32_t left, const float *x, uint32_t k, const Prepared *prepared,
                         bool rounded, float *out, bool add)
{
    (void)prepared, (void)rounded;
    const size_t pitch = OF(row_bytes)(k), of_group = OF(row_bytes)(32) * ROWS, whole = k / 32;
    const uint8_t *row[ROWS];
    for (uint32_t r = 0; r < ROWS; ++r) // past the last row, the last again
        row[r] = weight + min_u32(r, left - 1) * pitch;
    Floats sums[ROWS] = {0};
    for (size_t i = 0; i < whole; ++i) {
        for (size_t byte = 0; byte < of_group; byte += 64)
            __builtin_prefetch(weight + AHEAD + i * of_group + byte);
        const Floats low = load(x + 32 * i), high = load(x + 32 * i + LANES);
        for (uint32_t r = 0; r < ROWS; ++r) {
            Floats w[2];
            OF(floats)(row[r], i, w);
            sums[r] += w[0] * low;
            sums[r] += w[1] * high;
        }
    }
    for (uint32_t r = 0; r < min_u32(ROWS, left); ++r) {
        float total = sum(sums[r]);
        for (uint32_t i = 32 * whole; i < k; ++i)
            total += OF(one)(row[r], i) * x[i];
        out[r] = add ? out[r] + total : total;
    }
}

// Weights from .. from + length of a row as float32. ``from`` is a multiple of 256, ``length`` at most STRETCH.
static void OF(expand)(const uint8_t *row, uint32_t from, uint32_t length, float *out)
{
    const uint32_t whole = length / 32;
    for (uint32_t i = 0; i < whole; ++i) {
        Floats w[2];
        OF(floats)(row, from / 32 + i, w);
        memcpy(out + 32 * i, w, sizeof w);
    }
    for (uint32_t i = 32 * whole; i < length; ++i)
        out[i] = OF(one)(row, from + i);
}
