// Rows of x times rows of weights of one format: FORMAT, its name.

// Columns from .. from + length of rows of x, times those of up to COLUMNS rows of weights that begin at ``weight``. ``from``
// is a multiple of DEEP, ``length`` at most what deep_for gives. What ``add`` says is added to is left there.
static void OF(gemm_stretch)(const float *x, size_t x_stride, const uint8_t *weight, size_t pitch, uint32_t from,
                             uint32_t length, float *out, size_t out_stride, uint32_t rows, uint32_t columns, bool add)
{
    float expanded[LANES][PITCH] __attribute__((aligned(64))), panel[DEEP * COLUMNS] __attribute__((aligned(64)));
    for (uint32_t left = 0; left < columns; left += LANES) {
        const uint32_t some = min_u32(LANES, columns - left);
        for (uint32_t c = 0; c < some; ++c)
            OF(expand)(weight + (left + c) * pitch, from, length, expanded[c]);
        if (rows > FEW)
            to_panel(expanded, length, panel + left);
        else
            gemm_few(x, x_stride, expanded, length, out + left, out_stride, rows, some, add);
    }
    if (rows > FEW)
        gemm_panel(x, x_stride, panel, length, out, out_stride, rows, columns, add);
}
