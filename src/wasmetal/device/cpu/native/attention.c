// Rotary position embedding, the paged KV cache, and attention over it.
#include <math.h>
#include <stdbool.h>

#include "kernel.h"
#include "kv_pool.h"

// ---- Batch metadata. Its words may be a guest's, so each is clamped.

typedef struct {
    const uint32_t *table;
    uint32_t length; // in positions
    uint32_t page_size, last_page;
} Sequence;

#define ROW_POSITION(p, batch, row) (((const uint32_t *)(batch))[(p)->batch_offset + 2 + 2 * ((p)->batch_row + (row))])
#define ROW_SEQUENCE(p, batch, row) (((const uint32_t *)(batch))[(p)->batch_offset + 3 + 2 * ((p)->batch_row + (row))])
#define SEQUENCE(p, words, number)                                                                                     \
    find_sequence((const uint32_t *)(words) + (p)->sequences_offset, number, (p)->sequence_count, (p)->table_length,   \
                  (p)->page_size, (p)->pages)

static Sequence find_sequence(const uint32_t *words, uint32_t number, uint32_t count, uint32_t table_length,
                              uint32_t page_size, uint32_t pages)
{
    const uint32_t *at = words + (size_t)min_u32(number, count - 1) * (1 + (size_t)table_length);
    const uint64_t longest = (uint64_t)min_u32(table_length, pages) * page_size;
    return (Sequence){at + 1, at[0] < longest ? at[0] : (uint32_t)longest, page_size, pages - 1};
}

INLINE size_t slot(const Sequence *sequence, uint32_t position)
{
    const uint32_t page = min_u32(sequence->table[position / sequence->page_size], sequence->last_page);
    return (size_t)page * sequence->page_size + position % sequence->page_size;
}

// Where the slots of ``count`` positions begin, ``pitch`` bytes each.
static void find_slots(const Sequence *sequence, uint32_t first, uint32_t count, size_t pitch, size_t *where)
{
    uint32_t page = first / sequence->page_size, in_page = first % sequence->page_size;
    for (uint32_t j = 0; j < count; ++page, in_page = 0) {
        const size_t begin = (size_t)min_u32(sequence->table[page], sequence->last_page) * sequence->page_size;
        for (; j < count && in_page < sequence->page_size; ++j, ++in_page)
            where[j] = (begin + in_page) * pitch;
    }
}

// ---- rope: rotate pairs of elements by the angle of the row's position. A unit is a row.

static uint64_t rope_units(const Call *call)
{
    const struct rope_params *p = call->params;
    return VALID_ROWS(p, call->buffers[2]);
}

static void rope(const Call *call, uint64_t begin, uint64_t end)
{
    const struct rope_params *p = call->params;
    for (uint32_t row = (uint32_t)begin; row < end; ++row) {
        const uint32_t position = min_u32(ROW_POSITION(p, call->buffers[2], row), p->positions - 1);
        const float *turn = (const float *)call->buffers[1] + p->table_offset + (size_t)position * p->pairs * 2;
        const uint32_t step = p->interleaved ? 2 : 1, other = p->interleaved ? 1 : p->pairs;
        for (uint32_t head = 0; head < p->heads; ++head) {
            float *x = (float *)call->buffers[0] + p->x_offset + (size_t)row * p->x_stride + (size_t)head * p->head_dim;
            for (uint32_t i = 0; i < p->pairs; ++i) {
                const float a = x[i * step], b = x[i * step + other], c = turn[2 * i], s = turn[2 * i + 1];
                x[i * step] = a * c - b * s;
                x[i * step + other] = a * s + b * c;
            }
        }
    }
}

// ---- kv_append: each valid row of k and v to its position's slot. A unit is a row.

static uint64_t kv_append_units(const Call *call)
{
    const struct kv_append_params *p = call->params;
    return VALID_ROWS(p, call->buffers[4]);
}

// ---- attention: out[t] = softmax(scale q[t] kᵀ) v over the positions that row t sees. A unit is TALL rows and a head.
// Positions come in runs; the softmax is rescaled from run to run (M. Milakov and N. Gimelshein, "Online normalizer
// calculation for softmax", 2018).

static const uint32_t NO_SINKS = 0xffffffff; // of sinks_offset: there are none

enum { AHEAD = 8, TALL = 32, RUN = 64, MAX_HEAD = 256, MAX_VECTORS = MAX_HEAD / LANES };

// What has been summed up for a row.
typedef struct {
    Floats sums[MAX_VECTORS];
    float tail[LANES]; // of the elements past the last whole vector
    float peak, total;
} Row;

static uint64_t attention_units(const Call *call)
{
    const struct attention_params *p = call->params;
    return ((uint64_t)VALID_ROWS(p, call->buffers[3]) + TALL - 1) / TALL * p->head_count;
}

// Turn the scores of a run, of which ``seen`` count, into weights; what has been summed up is rescaled to fit.
static void weigh(Row *row, float *scores, uint32_t seen, uint32_t head_dim)
{
    float highest = row->peak;
    for (uint32_t j = 0; j < seen; ++j)
        highest = scores[j] > highest || scores[j] != scores[j] ? scores[j] : highest;
    const float rescale = exponential((Floats)(row->peak - highest)).s0;
    for (uint32_t i = 0; i < head_dim / LANES; ++i)
        row->sums[i] *= rescale;
    for (uint32_t i = 0; i < head_dim % LANES; ++i)
        row->tail[i] *= rescale;
    for (uint32_t j = seen; j < (seen + LANES - 1) / LANES * LANES; ++j)
        scores[j] = -INFINITY;
    Floats totals = 0;
    for (uint32_t j = 0; j < seen; j += LANES) {
        const Floats weights = exponential(load(scores + j) - highest);
        store(scores + j, weights);
        totals += weights;
    }
    row->total = row->total * rescale + sum(totals);
    row->peak = highest;
}

static void finish(const Row *row, bool seen, uint32_t head_dim, float *out)
{
    const float factor = seen ? 1.0f / row->total : 0.0f;
    for (uint32_t i = 0; i < head_dim / LANES; ++i)
        store(out + LANES * i, row->sums[i] * factor);
    for (uint32_t i = 0; i < head_dim % LANES; ++i)
        out[head_dim / LANES * LANES + i] = row->tail[i] * factor;
}

#define FORMAT f32
#include "attention_format.h"
#define FORMAT f16
#include "attention_format.h"
#define FORMAT q8_0
#include "attention_format.h"

const Kernel ATTENTION_KERNELS[] = {
    {"rope", rope_units, rope, 4},
    {"kv_append_f32", kv_append_units, kv_append_f32, 16},
    {"kv_append_f16", kv_append_units, kv_append_f16, 16},
    {"kv_append_q8_0", kv_append_units, kv_append_q8_0, 16},
    {"attention_f32", attention_units, attention_f32, 1},
    {"attention_f16", attention_units, attention_f16, 1},
    {"attention_q8_0", attention_units, attention_q8_0, 1},
    {0},
};
