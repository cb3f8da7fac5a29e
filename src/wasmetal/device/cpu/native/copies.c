// Copies of many pieces: what the caches of a thawed session get.
#include "kernel.h"

// Row i of each source goes to target i, one source after the other. A unit is one row.
struct copy_rows_params {
    uint32_t targets, sources;
    uint32_t around; // whether it is more than caches hold, so that stores had better bypass them
};

// buffers: addresses of the targets; of the sources, the bytes from one row of each to the next, the bytes of a row, and
// where rows begin in the targets: arrays of uint64_t.
enum { TARGETS, SOURCES, STRIDES, SIZES, OFFSETS };

static uint64_t number(const Call *call, uint32_t array, uint64_t i)
{
    uint64_t value;
    memcpy(&value, call->buffers[array] + i * sizeof value, sizeof value);
    return value;
}

static void copy_around(uint8_t *to, const uint8_t *from, size_t n)
{
    const size_t unaligned = -(uintptr_t)to % sizeof(Floats), first = unaligned < n ? unaligned : n;
    memcpy(to, from, first);
    to += first, from += first, n -= first;
    for (; n >= 4 * sizeof(Floats); n -= 4 * sizeof(Floats), to += 4 * sizeof(Floats), from += 4 * sizeof(Floats)) {
        Floats values[4];
        memcpy(values, from, sizeof values);
        UNROLL for (int i = 0; i < 4; ++i)
            __builtin_nontemporal_store(values[i], (Floats *)to + i);
    }
    memcpy(to, from, n);
}

static uint64_t copy_rows_units(const Call *call)
{
    const struct copy_rows_params *p = call->params;
    return (uint64_t)p->targets * p->sources;
}

static void copy_rows(const Call *call, uint64_t begin, uint64_t end)
{
    const struct copy_rows_params *p = call->params;
    for (uint64_t unit = begin; unit < end; ++unit) { // the rows of a source follow one another
        const uint64_t source = unit / p->targets, row = unit % p->targets;
        uint8_t *to = (uint8_t *)number(call, TARGETS, row) + number(call, OFFSETS, source);
        const uint8_t *from = (uint8_t *)number(call, SOURCES, source) + row * number(call, STRIDES, source);
        if (p->around)
            copy_around(to, from, number(call, SIZES, source));
        else
            memcpy(to, from, number(call, SIZES, source));
    }
#if defined(__x86_64__)
    __builtin_ia32_sfence(); // what bypasses the caches is not ordered with what tells others that it is there
#endif
}

const Kernel COPIES[] = {{"copy_rows", copy_rows_units, copy_rows, 16}, {0}};
