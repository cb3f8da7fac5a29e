// Runs kernels a threadgroup at a time, each of its threads a fibre on this one CPU thread, and checks what they do.
//
// A fibre runs until it reaches a barrier or a simd function; the scheduler goes on when all that must be there are.
// Before each load and store stands a call of __tsan_*, which the compiler puts there: they must lie in a bound buffer,
// in threadgroup memory that is declared, written and free of races, or on the thread's own stack. A fault abandons the
// launch and leaves one line of text.
using uint = unsigned int;
using ulong = unsigned long;
using uint3 = uint __attribute__((ext_vector_type(3)));
using uint4 = uint __attribute__((ext_vector_type(4)));

constexpr uint SIMD = 32, MAX_THREADS = 1024, MAX_BUFFERS = 31;
constexpr uint MAX_VARIABLES = 64;
constexpr ulong STACK = 64 << 10, THREADGROUP_MEMORY = 32 << 10, GAP = 64;  // In bytes; GAP lies between variables.
enum Flags { MEM_THREADGROUP = 2 };

// ---- Shared with metal_stdlib, which says what they are.
struct Position {
    uint3 thread_position_in_grid, threadgroup_position_in_grid, thread_position_in_threadgroup;
    uint3 threads_per_grid, threadgroups_per_grid, threads_per_threadgroup;
    uint thread_index_in_threadgroup, thread_index_in_simdgroup, simdgroup_index_in_threadgroup;
    uint threads_per_simdgroup, simdgroups_per_threadgroup;
};
struct Lanes {
    uint active, self;
    uint4 values[SIMD];
};

// ---- Shared with library.py.
struct Buffer {
    ulong address, nbytes;
};
struct Launch {
    void (*kernel)(const ulong* addresses, const Position*);
    Buffer buffers[MAX_BUFFERS];  // Unbound ones have no bytes.
    uint buffer_count;            // The highest index, and one.
    uint groups[3], threads[3];
    uint seed;  // Which groups run their threads forwards, backwards or shuffled.
    char error[512];
};

namespace {

enum class State { READY, AT_BARRIER, AT_SIMD, AT_SIMDGROUP_BARRIER, DONE };
struct Fibre {
    void* stack_pointer;
    State state;
    uint flags, line;
};
struct Variable {
    uint number, line;
    ulong offset, nbytes;
};
// Who touched a byte of threadgroup memory last, and when; see race().
struct Touch {
    uint time, thread;
    bool operator==(const Touch&) const = default;
};
constexpr uint ALL = 0xffff, SIMDGROUP = 0x8000;  // Several threads; several of simdgroup (thread & 31).

Launch* launch;
uint thread_count, current;
Position position;
Lanes lanes[MAX_THREADS / SIMD][2];  // One is read while the next is filled.
uint turn[MAX_THREADS / SIMD];
Fibre fibres[MAX_THREADS];
void* scheduler_stack;
char* stacks;
bool failed;
Buffer recent;  // The bound buffer that was accessed last.

constexpr ulong ARENA = THREADGROUP_MEMORY + MAX_VARIABLES * 2 * GAP;
alignas(GAP) char memory[ARENA];
Variable variables[MAX_VARIABLES];
uint variable_count;
ulong memory_used, memory_declared;
Touch writes[ARENA], reads[ARENA];
uint now, group_began, group_synced, simd_synced[MAX_THREADS / SIMD];

// Saves the registers that a call must keep, changes stacks, and returns on the other one.
extern "C" void shim_switch(void** save, void* load);
#if defined(__x86_64__)
constexpr ulong FRAME = 8, RETURN = 6;  // Words on a new fibre's stack, and which of them is the return address.
asm(R"(
    .text
    .globl shim_switch
shim_switch:
    push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp
    ret
)");
#elif defined(__aarch64__)
constexpr ulong FRAME = 20, RETURN = 11;
#ifdef __APPLE__
#define SWITCH "_shim_switch"
#else
#define SWITCH "shim_switch"
#endif
asm(".text\n.globl " SWITCH "\n.balign 4\n" SWITCH R"(:
    sub sp, sp, #160
    stp x19, x20, [sp]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
)");
#endif

void pause_fibre() { shim_switch(&fibres[current].stack_pointer, scheduler_stack); }

template <class... A> __attribute__((cold, noinline)) void report(const char* format, A... arguments) {
    __builtin_snprintf(launch->error, sizeof launch->error, format, arguments...);
    failed = true;
}

// Ends the launch from within a fibre, which is never resumed.
template <class... A> __attribute__((cold, noinline)) void fail(const char* format, A... arguments) {
    char what[256];
    __builtin_snprintf(what, sizeof what, format, arguments...);
    uint3 t = position.thread_position_in_threadgroup, g = position.threadgroup_position_in_grid;
    report("thread (%u, %u, %u) of group (%u, %u, %u): %s", t.x, t.y, t.z, g.x, g.y, g.z, what);
    pause_fibre();
}

void fibre_main() {
    ulong addresses[MAX_BUFFERS];
    for (uint i = 0; i < MAX_BUFFERS; i++) addresses[i] = launch->buffers[i].address;
    launch->kernel(addresses, &position);
    fibres[current].state = State::DONE;
    pause_fibre();
}

char* stack_of(uint thread) { return stacks + thread * STACK; }

void start(uint thread) {
    void** frame = (void**)(stack_of(thread) + STACK) - FRAME;
    __builtin_memset(frame, 0, FRAME * sizeof(void*));
    frame[RETURN] = (void*)fibre_main;
    fibres[thread] = {frame, State::READY, 0, 0};
}

void run(uint thread) {
    current = thread;
    const uint* size = launch->threads;
    uint3 at = {thread % size[0], thread / size[0] % size[1], thread / size[0] / size[1]};
    position.thread_position_in_threadgroup = at;
    position.thread_position_in_grid = position.threadgroup_position_in_grid * position.threads_per_threadgroup + at;
    position.thread_index_in_threadgroup = thread;
    position.thread_index_in_simdgroup = thread % SIMD;
    position.simdgroup_index_in_threadgroup = thread / SIMD;
    shim_switch(&scheduler_stack, fibres[thread].stack_pointer);
}

const char* where(State state) {
    switch (state) {
        case State::AT_BARRIER: return "waits at the threadgroup barrier of line";
        case State::AT_SIMD: return "waits at the simd function of line";
        case State::AT_SIMDGROUP_BARRIER: return "waits at the simdgroup barrier of line";
        default: return "has left the kernel after line";
    }
}

void wait(State state, uint flags, uint line) {
    fibres[current].state = state;
    fibres[current].flags = flags;
    fibres[current].line = line;
    pause_fibre();
}

bool together(const Fibre& a, const Fibre& b) { return a.state == b.state && a.line == b.line; }

// Lets go the lanes of a simdgroup that have all, but for those that have left, come to the same simd function.
bool release_simdgroup(uint first) {
    uint end = first + SIMD < thread_count ? first + SIMD : thread_count, active = 0;
    const Fibre* one = nullptr;
    for (uint i = first; i < end; i++) {
        if (fibres[i].state == State::DONE) continue;
        if (!one) one = &fibres[i];
        if (!together(fibres[i], *one)) return false;
        active |= 1u << (i - first);
    }
    if (!one || one->state == State::AT_BARRIER) return false;
    uint group = first / SIMD;
    if (one->state == State::AT_SIMD) {
        lanes[group][turn[group]].active = active;
        turn[group] ^= 1;
    } else if (one->flags & MEM_THREADGROUP) {
        simd_synced[group] = ++now;
    }
    for (uint i = first; i < end; i++)
        if (active >> (i - first) & 1) fibres[i].state = State::READY;
    return true;
}

// Lets go all threads where all wait at one barrier. Says which two do not agree where they do not.
bool release_group() {
    for (uint i = 0; i < thread_count; i++) {
        if (together(fibres[i], fibres[0]) && fibres[i].state == State::AT_BARRIER) continue;
        uint other = 0;
        while (together(fibres[other], fibres[i]) && other < i) other++;
        uint3 g = position.threadgroup_position_in_grid;
        report("group (%u, %u, %u) has diverged: thread %u %s %u, thread %u %s %u", g.x, g.y, g.z, other,
               where(fibres[other].state), fibres[other].line, i, where(fibres[i].state), fibres[i].line);
        return false;
    }
    if (fibres[0].flags & MEM_THREADGROUP) group_synced = ++now;
    for (uint i = 0; i < thread_count; i++) fibres[i].state = State::READY;
    return true;
}

void order_threads(uint* order, uint how) {
    uint random = how + 1;
    for (uint i = 0; i < thread_count; i++) order[i] = how % 3 == 1 ? thread_count - 1 - i : i;
    for (uint i = thread_count; how % 3 == 2 && i > 1; i--) {
        random = random * 1664525 + 1013904223;
        uint j = (random >> 8) % i, swap = order[i - 1];
        order[i - 1] = order[j];
        order[j] = swap;
    }
}

void run_group(uint number) {
    uint order[MAX_THREADS];
    order_threads(order, number + launch->seed);
    variable_count = memory_used = memory_declared = 0;
    group_began = group_synced = ++now;
    for (uint i = 0; i < thread_count; i++) start(i);
    for (;;) {
        bool done = true, released = false;
        for (uint i = 0; i < thread_count; i++) {
            if (fibres[order[i]].state == State::READY) run(order[i]);
            if (failed) return;
        }
        for (uint i = 0; i < thread_count; i++) done &= fibres[i].state == State::DONE;
        if (done) return;
        for (uint first = 0; first < thread_count; first += SIMD) released |= release_simdgroup(first);
        if (!released && !release_group()) return;
    }
}

// ---- Memory.

// Whether an earlier touch of another thread is not ordered before the current thread's by a barrier.
bool race(const Touch& touch) {
    uint group = current / SIMD;
    if (touch.time < group_synced || touch.thread == current) return false;
    if (touch.thread == ALL) return true;
    bool same = touch.thread & SIMDGROUP ? (touch.thread & 31) == group : touch.thread / SIMD == group;
    return !same || touch.time >= simd_synced[group];
}

void note_read(Touch& touch) {
    if (race(touch)) {
        bool same = touch.thread != ALL &&
                    (touch.thread & SIMDGROUP ? touch.thread & 31 : touch.thread / SIMD) == current / SIMD;
        touch = {now, same ? SIMDGROUP | current / SIMD : ALL};
    } else {
        touch = {now, current};
    }
}

const Variable* variable_at(ulong offset, ulong nbytes) {
    for (const Variable *v = variables, *end = v + variable_count; v < end; v++)
        if (offset >= v->offset && offset + nbytes <= v->offset + v->nbytes) return v;
    return nullptr;
}

void access_threadgroup(ulong offset, ulong nbytes, bool write) {
    const char* verb = write ? "writes" : "reads";
    const Variable* in = variable_at(offset, nbytes);
    if (!in) return fail("%s %lu bytes outside every threadgroup variable", verb, nbytes);
    Touch written, read;  // Before this access, the byte before.
    for (ulong i = offset; i < offset + nbytes; i++) {
        bool same = i > offset && writes[i] == written && reads[i] == read;
        written = writes[i], read = reads[i];
        if (same) {  // Then so is what follows.
            writes[i] = writes[i - 1], reads[i] = reads[i - 1];
            continue;
        }
        if (!write && writes[i].time < group_began)
            return fail("reads byte %lu of the threadgroup variable of line %u, which nothing has written",
                        i - in->offset, in->line);
        if (race(writes[i]) || (write && race(reads[i])))
            return fail("%s byte %lu of the threadgroup variable of line %u, which another thread %s "
                        "with no barrier between",
                        verb, i - in->offset, in->line, race(writes[i]) ? "writes" : "reads");
        if (write) writes[i] = {now, current};
        else note_read(reads[i]);
    }
}

bool within(ulong address, ulong nbytes, const void* begin, ulong size) {
    return address - (ulong)begin < size && address - (ulong)begin + nbytes <= size;
}

// Where the library that this is part of begins, and where its constants and its code end: Linux's linkers say it.
extern "C" __attribute__((weak, visibility("hidden"))) const char __ehdr_start[], etext[];

// An access anywhere but on the stack and in the buffer that was accessed last.
__attribute__((noinline)) void access_other(ulong address, ulong nbytes, bool write, bool aligned) {
    const char* verb = write ? "writes" : "reads";
    if (within(address, nbytes, lanes, sizeof lanes)) return;
    if (aligned && address & (nbytes - 1)) return fail("%s %lu bytes at a misaligned address", verb, nbytes);
    if (address - (ulong)memory < sizeof memory) return access_threadgroup(address - (ulong)memory, nbytes, write);
    for (uint i = 0; i < launch->buffer_count; i++)
        if (within(address, nbytes, (void*)launch->buffers[i].address, launch->buffers[i].nbytes)) {
            recent = launch->buffers[i];
            return;
        }
    if (within(address, nbytes, &position, sizeof position)) return;
    ulong constants = (ulong)etext - (ulong)__ehdr_start;
    if (!write && within(address, nbytes, __ehdr_start, constants)) return;
    uint nearest = MAX_BUFFERS;
    ulong least = ~0ul;
    for (uint i = 0; i < launch->buffer_count; i++) {
        const Buffer& b = launch->buffers[i];
        ulong end = b.address + b.nbytes;
        ulong distance = address < b.address ? b.address - address : address < end ? 0 : address - end;
        if (distance < least) least = distance, nearest = i;
    }
    if (nearest == MAX_BUFFERS) return fail("%s memory, but no buffer is bound", verb);
    const Buffer& b = launch->buffers[nearest];
    fail("%s %lu bytes at byte %ld of buffer %u, which has %lu", verb, nbytes, (long)(address - b.address), nearest,
         b.nbytes);
}

inline void access(ulong address, ulong nbytes, bool write, bool aligned = false) {
    if (within(address, nbytes, stack_of(current), STACK)) return;
    bool known = within(address, nbytes, (void*)recent.address, recent.nbytes);
    if (!known || (aligned && address & (nbytes - 1))) access_other(address, nbytes, write, aligned);
}

}  // namespace

extern "C" {

// Returns 0, or 1 with the text in launch->error.
int shim_launch(Launch* what) {
    launch = what;
    failed = false;
    recent = {};
    const uint *groups = launch->groups, *threads = launch->threads;
    thread_count = threads[0] * threads[1] * threads[2];
    if (!stacks) stacks = (char*)__builtin_malloc(MAX_THREADS * STACK);
    position.threads_per_threadgroup = {threads[0], threads[1], threads[2]};
    position.threadgroups_per_grid = {groups[0], groups[1], groups[2]};
    position.threads_per_grid = position.threads_per_threadgroup * position.threadgroups_per_grid;
    position.threads_per_simdgroup = SIMD;
    position.simdgroups_per_threadgroup = (thread_count + SIMD - 1) / SIMD;
    uint count = groups[0] * groups[1] * groups[2];
    for (uint i = 0; i < count && !failed; i++) {
        uint group = launch->seed % 2 ? count - 1 - i : i;
        position.threadgroup_position_in_grid = {
            group % groups[0], group / groups[0] % groups[1], group / groups[0] / groups[1]};
        run_group(group);
    }
    return failed;
}

// ---- Called by metal_stdlib.
void shim_threadgroup_barrier(uint flags, uint line) { wait(State::AT_BARRIER, flags, line); }
void shim_simdgroup_barrier(uint flags, uint line) { wait(State::AT_SIMDGROUP_BARRIER, flags, line); }

const Lanes* shim_exchange(const void* value, uint nbytes, uint line) {
    uint group = current / SIMD, self = current % SIMD;
    Lanes& all = lanes[group][turn[group]];
    __builtin_memcpy(&all.values[self], value, nbytes);
    wait(State::AT_SIMD, 0, line);
    all.self = self;
    return &all;
}

// All threads of a group get the same memory for a variable, and none of it counts as written.
void* shim_threadgroup_memory(uint nbytes, uint number, uint line) {
    for (uint i = 0; i < variable_count; i++)
        if (variables[i].number == number) return memory + variables[i].offset;
    memory_declared += nbytes;
    if (memory_declared > THREADGROUP_MEMORY || variable_count == MAX_VARIABLES)
        fail("more threadgroup memory than %lu bytes in %u variables", THREADGROUP_MEMORY, MAX_VARIABLES);
    variables[variable_count++] = {number, line, memory_used, nbytes};
    char* variable = memory + memory_used;
    memory_used += (nbytes / GAP + 2) * GAP;
    return variable;
}

void shim_atomic_access(ulong address, uint nbytes) {
    ulong offset = address - (ulong)memory;
    if (!variable_at(offset, nbytes)) return access(address, nbytes, true, true);
    for (uint i = 0; i < nbytes; i++) writes[offset + i] = {now, current};
}

void shim_index_out_of_bounds(uint index, uint count) { fail("index %u of an array of %u", index, count); }

// ---- Called by the compiler's instrumentation: -fsanitize=thread, and undefined behaviour's minimal runtime.
void __tsan_init() {}
void __tsan_read1(void* p) { access((ulong)p, 1, false); }
void __tsan_write1(void* p) { access((ulong)p, 1, true); }
#define ACCESS(n)                                                          \
    void __tsan_read##n(void* p) { access((ulong)p, n, false, true); }      \
    void __tsan_write##n(void* p) { access((ulong)p, n, true, true); }      \
    void __tsan_unaligned_read##n(void* p) { access((ulong)p, n, false); }  \
    void __tsan_unaligned_write##n(void* p) { access((ulong)p, n, true); }
ACCESS(2) ACCESS(4) ACCESS(8) ACCESS(16)
void* __tsan_memcpy(void* to, const void* from, ulong n) {
    access((ulong)from, n, false);
    access((ulong)to, n, true);
    return __builtin_memcpy(to, from, n);
}
void* __tsan_memmove(void* to, const void* from, ulong n) {
    access((ulong)from, n, false);
    access((ulong)to, n, true);
    return __builtin_memmove(to, from, n);
}
void* __tsan_memset(void* to, int value, ulong n) {
    access((ulong)to, n, true);
    return __builtin_memset(to, value, n);
}
void __ubsan_handle_divrem_overflow_minimal_abort() { fail("divides an integer by zero"); }
void __ubsan_handle_out_of_bounds_minimal_abort() { fail("index outside of an array"); }
void __ubsan_handle_float_cast_overflow_minimal_abort() { fail("makes an integer of a float that has no such"); }
void __ubsan_handle_missing_return_minimal_abort() { fail("leaves a function without a return value"); }
}
