// Runs a command list on a few threads: each kernel's units are shared out, and the next begins when all are done.
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "kernel.h"

extern const Kernel LINEAR[], EXPERT_KERNELS[], ROW_KERNELS[], TOP_LOGITS[], NEXT_TOKEN[], ATTENTION_KERNELS[], COPIES[];
static const Kernel *const GROUPS[] = {LINEAR,     EXPERT_KERNELS,    ROW_KERNELS, TOP_LOGITS,
                                       NEXT_TOKEN, ATTENTION_KERNELS, COPIES};
enum { GROUPS_COUNT = sizeof GROUPS / sizeof *GROUPS, GROUP = 256 };

#define API __attribute__((visibility("default")))

// The number of a kernel, for ``Call.kernel``; -1 if there is none of that name.
API int32_t wasmetal_kernel(const char *name)
{
    for (int32_t group = 0; group < GROUPS_COUNT; ++group)
        for (int32_t i = 0; GROUPS[group][i].name; ++i)
            if (!strcmp(GROUPS[group][i].name, name))
                return group * GROUP + i;
    return -1;
}

static const Kernel *kernel_of(const Call *call) { return &GROUPS[call->kernel / GROUP][call->kernel % GROUP]; }

// ---- Threads. One job at a time is shared: whoever finds the helpers busy computes alone. Helpers join a job while
// it has units left; the caller computes too, and waits only for helpers that have joined. So a helper that the
// system does not run holds nobody up unless it has units in hand.

enum { MOST_THREADS = 64, SPINS = 2000, JOINED = 0x7fffffff, SCRATCH = 64 << 10, LINE = 128 };
static const uint32_t CLOSED = 0x80000000;

static struct {
    pthread_mutex_t in_use; // held by the caller of the current job
    pthread_mutex_t lock;   // of the two conditions
    pthread_cond_t begun, ended;
    uint32_t helpers; // threads that were started
    _Atomic uint32_t sleeping;
    _Atomic uint64_t state; // number of the job << 32 | CLOSED | how many helpers have joined it
    // What threads write often is apart from what they only read.
    _Alignas(LINE) _Atomic uint64_t next; // unit
    _Alignas(LINE) const Kernel *kernel;
    const Call *call;
    const void *prepared;
    uint64_t units, at_once;
    _Alignas(LINE) uint8_t scratch[SCRATCH];
} pool = {
    .in_use = PTHREAD_MUTEX_INITIALIZER,
    .lock = PTHREAD_MUTEX_INITIALIZER,
    .begun = PTHREAD_COND_INITIALIZER,
    .ended = PTHREAD_COND_INITIALIZER,
    .state = 0x80000000,
};

INLINE void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

_Thread_local const void *prepared_by_caller;

static void compute(const Kernel *kernel, const Call *call, uint64_t units, uint64_t at_once)
{
    uint64_t begin;
    while ((begin = atomic_fetch_add(&pool.next, at_once)) < units)
        kernel->run(call, begin, begin + at_once < units ? begin + at_once : units);
}

static bool is_open(uint64_t state, uint32_t seen) { return (uint32_t)(state >> 32) != seen && !(state & CLOSED); }

static void *help(void *unused)
{
    uint32_t seen = 0;
    for (;;) {
        uint64_t state = atomic_load(&pool.state);
        for (uint32_t spins = 0; !is_open(state, seen) && spins < SPINS; ++spins) {
            relax();
            state = atomic_load(&pool.state);
        }
        if (!is_open(state, seen)) {
            pthread_mutex_lock(&pool.lock);
            atomic_fetch_add(&pool.sleeping, 1);
            while (!is_open(state = atomic_load(&pool.state), seen))
                pthread_cond_wait(&pool.begun, &pool.lock);
            atomic_fetch_sub(&pool.sleeping, 1);
            pthread_mutex_unlock(&pool.lock);
        }
        if (!atomic_compare_exchange_strong(&pool.state, &state, state + 1))
            continue;
        seen = (uint32_t)(state >> 32);
        prepared_by_caller = pool.prepared;
        compute(pool.kernel, pool.call, pool.units, pool.at_once);
        state = atomic_fetch_sub(&pool.state, 1) - 1;
        if ((state & CLOSED) && !(state & JOINED)) {
            pthread_mutex_lock(&pool.lock);
            pthread_cond_signal(&pool.ended);
            pthread_mutex_unlock(&pool.lock);
        }
    }
    return unused;
}

static void after_fork(void)
{
    pthread_mutex_init(&pool.in_use, NULL);
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.begun, NULL);
    pthread_cond_init(&pool.ended, NULL);
    pool.helpers = 0;
    atomic_store(&pool.sleeping, 0);
    atomic_fetch_and(&pool.state, ~(uint64_t)JOINED);
    atomic_fetch_or(&pool.state, CLOSED);
}

static void start_helpers(uint32_t wanted)
{
    static bool registered;
    if (!registered)
        registered = !pthread_atfork(NULL, NULL, after_fork);
    for (; pool.helpers < wanted; ++pool.helpers) {
        pthread_t thread;
        pthread_attr_t attributes;
        pthread_attr_init(&attributes);
        pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
        pthread_attr_setstacksize(&attributes, 1 << 20);
        const bool failed = pthread_create(&thread, &attributes, help, NULL);
        pthread_attr_destroy(&attributes);
        if (failed) // fewer threads are slower, and no error
            return;
    }
}

static void share(const Kernel *kernel, const Call *call, uint64_t units)
{
    // Small pieces, so that a thread that loses its core with one in hand holds the others up only briefly.
    const uint64_t even = units / (8 * (pool.helpers + 1));
    pool.kernel = kernel, pool.call = call, pool.units = units;
    pool.prepared = kernel->prepare ? kernel->prepare(call, pool.scratch, sizeof pool.scratch) : NULL;
    pool.at_once = even > kernel->at_once ? even : kernel->at_once;
    atomic_store(&pool.next, 0);
    const uint64_t job = (atomic_load(&pool.state) >> 32) + 1;
    atomic_store(&pool.state, job << 32);
    if (atomic_load(&pool.sleeping)) {
        pthread_mutex_lock(&pool.lock);
        pthread_cond_broadcast(&pool.begun);
        pthread_mutex_unlock(&pool.lock);
    }
    prepared_by_caller = pool.prepared;
    compute(kernel, call, units, pool.at_once);
    uint64_t state = atomic_fetch_or(&pool.state, CLOSED);
    for (uint32_t spins = 0; (state & JOINED) && spins < SPINS; ++spins) {
        relax();
        state = atomic_load(&pool.state);
    }
    if (state & JOINED) {
        pthread_mutex_lock(&pool.lock);
        while (atomic_load(&pool.state) & JOINED)
            pthread_cond_wait(&pool.ended, &pool.lock);
        pthread_mutex_unlock(&pool.lock);
    }
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

// Run calls from ``first`` on for about ``seconds``, but at least one, on at most ``threads`` threads, or until *stop.
// Returns the number of the next call.
API uint32_t wasmetal_run(const Call *calls, uint32_t count, uint32_t first, uint32_t threads, double seconds,
                          const _Atomic uint8_t *stop)
{
    const double end = now() + seconds;
    const bool shared = threads > 1 && !pthread_mutex_trylock(&pool.in_use);
    if (shared)
        start_helpers((threads < MOST_THREADS ? threads : MOST_THREADS) - 1);
    void *own = shared ? NULL : malloc(SCRATCH), *scratch = shared ? pool.scratch : own;
    uint32_t i = first;
    while (i < count) {
        const Call *call = &calls[i++];
        const Kernel *kernel = kernel_of(call);
        const uint64_t units = kernel->units(call);
        if (shared && pool.helpers && units > kernel->at_once)
            share(kernel, call, units);
        else if (units) {
            prepared_by_caller = kernel->prepare ? kernel->prepare(call, scratch, scratch ? SCRATCH : 0) : NULL;
            kernel->run(call, 0, units);
        }
        if (atomic_load_explicit(stop, memory_order_relaxed) || now() >= end)
            break;
    }
    if (shared)
        pthread_mutex_unlock(&pool.in_use);
    prepared_by_caller = NULL;
    free(own);
    return i;
}
