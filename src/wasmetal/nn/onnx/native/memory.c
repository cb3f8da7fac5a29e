// The allocator of ONNX Runtime's sessions: what they take is counted, and what would be over a limit is refused.
//
// ONNX Runtime has one allocator in a process for all sessions that ask for it, so whose memory it is goes by the
// thread: the one that loads or runs a model for a guest, and those that the session itself has started.
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

// ---- Of onnxruntime_c_api.h, which promises that these stay where they are

typedef struct Status Status;

typedef struct Allocator {
    uint32_t version;
    void *(*alloc)(struct Allocator *, size_t);
    void (*free)(struct Allocator *, void *);
    const void *(*info)(const struct Allocator *);
    void *(*reserve)(struct Allocator *, size_t);
} Allocator;

typedef struct {
    const void *const *(*api)(uint32_t version);
    const char *(*version)(void);
} ApiBase;

enum { VERSION = 18 }; // the first whose allocators have `reserve`, and the last that asks for no more than that

enum { // functions, by their places in OrtApi
    CREATE_ENV = 3,
    CREATE_CPU_MEMORY_INFO = 69,
    GET_ALLOCATOR_WITH_DEFAULT_OPTIONS = 78,
    REGISTER_ALLOCATOR = 176,
    SESSION_OPTIONS_SET_CUSTOM_CREATE_THREAD_FN = 196,
    SESSION_OPTIONS_SET_CUSTOM_THREAD_CREATION_OPTIONS = 197,
    SESSION_OPTIONS_SET_CUSTOM_JOIN_THREAD_FN = 198,
};

// ---- Budgets

enum {
    OBJECTS = 512,       // bytes that a block is counted for beyond its size: its header, and ONNX Runtime's own objects
                         // for a tensor, which are not allocated here (measured: 350 to 430 in all)
    KEPT_SIZE = 1 << 16, // blocks from this size on are kept for later runs: to get them from the system again is slow
    KEPT_RUNS = 4,       // as long as one of so many runs uses them
};

typedef struct Block {
    struct Budget *budget;
    struct Block *next; // among those that are kept
    size_t size, run;
    uint8_t unused[32]; // what follows is aligned as ONNX Runtime wants it
} Block;
_Static_assert(sizeof(Block) == 64, "the alignment of ONNX Runtime's own allocator");

typedef struct Budget {
    pthread_mutex_t lock; // for all below
    size_t used, kept_bytes, limit, refused, run, users;
    Block *kept;
} Budget;

static _Thread_local Budget *current;
static _Thread_local bool may_refuse; // not in a session's own threads: an exception there would end the process
static Allocator *plain;              // ONNX Runtime's own
static const void *info;

static bool release(Budget *budget) // with the lock; returns whether it was the last user
{
    return --budget->users == 0;
}

static void unlock(Budget *budget, bool last)
{
    pthread_mutex_unlock(&budget->lock);
    if (last) {
        pthread_mutex_destroy(&budget->lock);
        free(budget);
    }
}

static void discard(Budget *budget, size_t before) // with the lock: free what is kept and was last used before that run
{
    for (Block **link = &budget->kept; *link;) {
        Block *block = *link;
        if (block->run >= before) {
            link = &block->next;
            continue;
        }
        *link = block->next;
        budget->used -= block->size + OBJECTS;
        budget->kept_bytes -= block->size + OBJECTS;
        plain->free(plain, block);
    }
}

static Block *kept(Budget *budget, size_t size) // with the lock: the smallest block that is up to four times as large
{
    Block **best = NULL;
    for (Block **link = &budget->kept; *link; link = &(*link)->next)
        if ((*link)->size >= size && (*link)->size / 4 <= size && (!best || (*link)->size < (*best)->size))
            best = link;
    if (!best)
        return NULL;
    Block *block = *best;
    *best = block->next;
    budget->kept_bytes -= block->size + OBJECTS;
    return block;
}

static void *refuse(void)
{
    return plain->alloc(plain, SIZE_MAX / 2); // raises the exception that kernels expect when there is no more memory
}

static void *allocate(Allocator *self, size_t size)
{
    (void)self;
    if (size == 0)
        return NULL;
    const bool absurd = size > SIZE_MAX / 4; // so that sums do not overflow
    Budget *budget = current;
    Block *block = NULL;
    if (budget) {
        pthread_mutex_lock(&budget->lock);
        const size_t all = size + OBJECTS;
        block = size >= KEPT_SIZE ? kept(budget, size) : NULL;
        if (!block) {
            if (!absurd && budget->used + all > budget->limit)
                discard(budget, SIZE_MAX);
            if (absurd || (may_refuse && budget->used + all > budget->limit)) {
                budget->refused = size;
                pthread_mutex_unlock(&budget->lock);
                return refuse();
            }
            budget->used += all;
        }
        budget->users += 1;
        pthread_mutex_unlock(&budget->lock);
    }
    if (!block) {
        block = absurd ? refuse() : plain->alloc(plain, sizeof *block + size); // raises, too, if the system has none
        block->size = size;
    }
    block->budget = budget;
    return block + 1;
}

static void give_back(Allocator *self, void *data)
{
    (void)self;
    if (!data)
        return;
    Block *block = (Block *)data - 1;
    Budget *budget = block->budget;
    if (!budget) {
        plain->free(plain, block);
        return;
    }
    pthread_mutex_lock(&budget->lock);
    const bool keep = block->size >= KEPT_SIZE && budget->limit;
    if (keep) {
        block->run = budget->run;
        block->next = budget->kept;
        budget->kept = block;
        budget->kept_bytes += block->size + OBJECTS;
    } else
        budget->used -= block->size + OBJECTS;
    unlock(budget, release(budget));
    if (!keep)
        plain->free(plain, block);
}

static const void *memory_info(const Allocator *self)
{
    (void)self;
    return info;
}

static Allocator counting = {VERSION, allocate, give_back, memory_info, allocate};

// ---- Threads of sessions

typedef struct {
    pthread_t thread;
    Budget *budget;
    void (*work)(void *);
    void *param;
} Worker;

static void *begin(void *worker)
{
    const Worker *w = worker;
    current = w->budget;
    w->work(w->param);
    return NULL;
}

static void *create_thread(void *budget, void (*work)(void *), void *param) // returns NULL if that is impossible
{
    Worker *worker = malloc(sizeof *worker);
    if (!worker)
        return NULL;
    *worker = (Worker){.budget = budget, .work = work, .param = param};
    if (pthread_create(&worker->thread, NULL, begin, worker)) {
        free(worker);
        return NULL;
    }
    pthread_mutex_lock(&worker->budget->lock);
    worker->budget->users += 1;
    pthread_mutex_unlock(&worker->budget->lock);
    return worker;
}

static void join_thread(void *joined)
{
    Worker *worker = joined;
    pthread_join(worker->thread, NULL);
    pthread_mutex_lock(&worker->budget->lock);
    unlock(worker->budget, release(worker->budget));
    free(worker);
}

// ---- What is called from outside

#define EXPORT __attribute__((visibility("default")))
#define CALL(function, ...)                                                    \
    do {                                                                       \
        Status *status = ((Status * (*)()) api[function])(__VA_ARGS__);        \
        if (status)                                                            \
            return status;                                                     \
    } while (0)

// ONNX Runtime calls this function of a library that options of a session name: it is the way to its C API. The options
// become those of a session for the budget that this thread has entered.
EXPORT Status *RegisterCustomOps(void *options, const ApiBase *base)
{
    static bool registered; // Python calls this, with its lock
    const void *const *api = base->api(VERSION);
    if (!registered) {
        void *env; // the one that the process has already; it is held from now on
        CALL(CREATE_ENV, 4, "", &env);
        CALL(GET_ALLOCATOR_WITH_DEFAULT_OPTIONS, &plain);
        CALL(CREATE_CPU_MEMORY_INFO, 0, 0, &info);
        CALL(REGISTER_ALLOCATOR, env, &counting);
        registered = true;
    }
    CALL(SESSION_OPTIONS_SET_CUSTOM_CREATE_THREAD_FN, options, create_thread);
    CALL(SESSION_OPTIONS_SET_CUSTOM_THREAD_CREATION_OPTIONS, options, current);
    CALL(SESSION_OPTIONS_SET_CUSTOM_JOIN_THREAD_FN, options, join_thread);
    return NULL;
}

EXPORT Budget *wasmetal_budget_new(void) // NULL if there is no memory
{
    Budget *budget = calloc(1, sizeof *budget);
    if (budget) {
        pthread_mutex_init(&budget->lock, NULL);
        budget->users = 1;
    }
    return budget;
}

// From now on, this thread's allocations are counted, and refused if they would make that more than `limit`.
EXPORT void wasmetal_budget_enter(Budget *budget, size_t limit)
{
    pthread_mutex_lock(&budget->lock);
    budget->limit = limit ? limit : 1;
    budget->refused = 0;
    budget->run += 1;
    pthread_mutex_unlock(&budget->lock);
    current = budget;
    may_refuse = true;
}

EXPORT void wasmetal_budget_leave(void)
{
    Budget *budget = current;
    pthread_mutex_lock(&budget->lock);
    discard(budget, budget->run > KEPT_RUNS ? budget->run - KEPT_RUNS + 1 : 0);
    pthread_mutex_unlock(&budget->lock);
    current = NULL;
    may_refuse = false;
}

// Bytes that are in use or kept, those that are kept, and the size that was refused last since the budget was entered,
// or 0.
EXPORT void wasmetal_budget_read(Budget *budget, size_t values[3])
{
    pthread_mutex_lock(&budget->lock);
    values[0] = budget->used;
    values[1] = budget->kept_bytes;
    values[2] = budget->refused;
    pthread_mutex_unlock(&budget->lock);
}

// Free what is kept.
EXPORT void wasmetal_budget_trim(Budget *budget)
{
    pthread_mutex_lock(&budget->lock);
    discard(budget, SIZE_MAX);
    pthread_mutex_unlock(&budget->lock);
}

// The last call; blocks that are still in use are freed as their owners free them.
EXPORT void wasmetal_budget_end(Budget *budget)
{
    pthread_mutex_lock(&budget->lock);
    discard(budget, SIZE_MAX);
    budget->limit = 0; // nothing is kept from now on
    unlock(budget, release(budget));
}
