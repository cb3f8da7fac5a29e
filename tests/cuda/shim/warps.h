// What generated kernels for CUDA take from prelude.cuh and from the GPU, for those with matrix instructions. Each thread of a
// group is a fibre; one runs until it must wait for others. An index outside of an array or a buffer ends the process.
//
// Of C's headers only: there is no standard library of C++ to link.
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#define __device__
#define __shared__ static
#define __global__ static
#define __launch_bounds__(...)

using uint = unsigned;

// ---- Vectors.
#define VECTOR(T, N, ...)                                                                               \
    struct T##N {                                                                                       \
        T __VA_ARGS__;                                                                                  \
    };                                                                                                  \
    template <class F>                                                                                  \
    static T##N each(T##N a, T##N b, F f) {                                                             \
        T##N result;                                                                                    \
        for (int i = 0; i < N; ++i) ((T*)&result)[i] = f(((T*)&a)[i], ((T*)&b)[i]);                      \
        return result;                                                                                  \
    }                                                                                                   \
    static T##N operator+(T##N a, T##N b) { return each(a, b, [](T x, T y) { return T(x + y); }); }      \
    static T##N operator-(T##N a, T##N b) { return each(a, b, [](T x, T y) { return T(x - y); }); }      \
    static T##N operator*(T##N a, T##N b) { return each(a, b, [](T x, T y) { return T(x * y); }); }      \
    static T _slang_vector_get_element(T##N v, int i) { return ((T*)&v)[i]; }                            \
    static T* _slang_vector_get_element_ptr(T##N* v, int i) { return (T*)v + i; }                        \
    template <class... A>                                                                               \
    static T##N make_##T##N(T first, A... others) {                                                     \
        T values[N] = {first, T(others)...};                                                            \
        for (int i = 1; sizeof...(A) == 0 && i < N; ++i) values[i] = first;                              \
        T##N result;                                                                                    \
        memcpy(&result, values, sizeof result);                                                    \
        return result;                                                                                  \
    }
VECTOR(float, 2, x, y)
VECTOR(float, 4, x, y, z, w)
VECTOR(uint, 2, x, y)
VECTOR(uint, 3, x, y, z)
VECTOR(uint, 4, x, y, z, w)
VECTOR(int, 2, x, y)
VECTOR(int, 4, x, y, z, w)
#define SHIFT(T) \
    static T operator>>(T a, T b) { return each(a, b, [](auto x, auto y) { return x >> y; }); } \
    static T operator<<(T a, T b) { return each(a, b, [](auto x, auto y) { return decltype(x)(uint(x) << y); }); } \
    static T operator&(T a, T b) { return each(a, b, [](auto x, auto y) { return x & y; }); } \
    static T operator^(T a, T b) { return each(a, b, [](auto x, auto y) { return x ^ y; }); }
SHIFT(uint2) SHIFT(uint4) SHIFT(int2) SHIFT(int4)

// ---- Memory.
[[noreturn]] static void fail(const char* what) {
    fprintf(stderr, "shim: %s\n", what);
    abort();
}

template <class T, size_t N>
struct FixedArray {
    T values[N];
    T& operator[](size_t i) { return i < N ? values[i] : (fail("outside of an array"), values[0]); }
    const T& operator[](size_t i) const { return const_cast<FixedArray&>(*this)[i]; }
};

template <class T>
struct StructuredBuffer {
    T* begin;
    size_t count;
    T& operator[](size_t i) const { return i < count ? begin[i] : (fail("outside of a buffer"), begin[0]); }
};
template <class T>
struct RWStructuredBuffer : StructuredBuffer<T> {};

template <class T>
static T __ldg(const T* at) {
    return *at;
}

// ---- Numbers.
static float F32_min(float a, float b) { return fminf(a, b); }
static float F32_max(float a, float b) { return fmaxf(a, b); }
static float F32_exp2(float a) { return exp2f(a); }
static uint U32_min(uint a, uint b) { return a < b ? a : b; }
static uint U32_max(uint a, uint b) { return a > b ? a : b; }
template <class To, class From>
static To bits(From from) {
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
static uint F32_asuint(float a) { return bits<uint>(a); }
static float U32_asfloat(uint a) { return bits<float>(a); }
static _Float16 __float2half(float a) { return (_Float16)a; }
static float __half2float(_Float16 a) { return a; }
static uint16_t __half_as_ushort(_Float16 a) { return bits<uint16_t>(a); }
static _Float16 __ushort_as_half(uint16_t a) { return bits<_Float16>(a); }

// ---- Threads.
// THREADS, of a group: given to the compiler.
constexpr int WARP = 32;
constexpr size_t STACK = 256 << 10;
static uint3 threadIdx, blockIdx, blockDim{THREADS, 1, 1};
static ucontext_t scheduler, fibres[THREADS];
static bool done[THREADS];
static int current;

// How often some threads have met, and how many of them wait to meet again.
struct Meeting {
    long times;
    int waiting;
};
static Meeting of_group, of_warp[THREADS / WARP];
static void meet(Meeting& meeting, int all) {
    long before = meeting.times;
    if (++meeting.waiting == all) {
        meeting.waiting = 0;
        ++meeting.times;
    }
    while (meeting.times == before) swapcontext(&fibres[current], &scheduler);
}
static void __syncthreads() { meet(of_group, THREADS); }

// What each thread shows the others of its warp.
struct Shown {
    uint words[6];
    const void* row;
};
static Shown shown[THREADS];
// What `look` makes of what the threads of the warp show.
template <class F>
static auto exchange(Shown mine, F look) {
    shown[current] = mine;
    meet(of_warp[current / WARP], WARP);
    auto result = look(&shown[current / WARP * WARP], current % WARP);
    meet(of_warp[current / WARP], WARP);
    return result;
}
static float __shfl_xor_sync(uint, float value, uint bit) {
    return exchange({{F32_asuint(value)}, nullptr}, [=](Shown* all, int lane) { return U32_asfloat(all[lane ^ bit].words[0]); });
}
template <class F>
static uint reduce(uint value, F join) {
    return exchange({{value}, nullptr}, [=](Shown* all, int) {
        uint result = all[0].words[0];
        for (int i = 1; i < WARP; ++i) result = join(result, all[i].words[0]);
        return result;
    });
}
static uint __reduce_min_sync(uint, uint value) { return reduce(value, U32_min); }
static uint __reduce_max_sync(uint, uint value) { return reduce(value, U32_max); }

// ---- Matrix instructions: PTX ISA, ldmatrix and mma.m16n8k16.
static uint4 load_matrices(const uint4* row, bool transposed) {
    return exchange({{}, row}, [=](Shown* all, int lane) {
        uint words[4];
        for (int m = 0; m < 4; ++m) {
            uint16_t two[2];
            for (int k = 0; k < 2; ++k) {
                int i = lane / 4, j = lane % 4 * 2 + k;
                two[k] = ((const uint16_t*)all[8 * m + (transposed ? j : i)].row)[transposed ? i : j];
            }
            words[m] = two[0] | uint(two[1]) << 16;
        }
        return uint4{words[0], words[1], words[2], words[3]};
    });
}
static uint4 wasmetal_load_four(const uint4* row) { return load_matrices(row, false); }
static uint4 wasmetal_load_four_transposed(const uint4* row) { return load_matrices(row, true); }
static float half_of(uint word, int which) { return __ushort_as_half(word >> 16 * which); }
static float4 wasmetal_multiply_half(uint4 a, uint2 b, float4 c) {
    return exchange({{a.x, a.y, a.z, a.w, b.x, b.y}, nullptr}, [=](Shown* all, int lane) {
        float sums[4] = {c.x, c.y, c.z, c.w};
        for (int i = 0; i < 4; ++i) {
            int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
            for (int k = 0; k < 16; ++k) {
                float left = half_of(all[row % 8 * 4 + k % 8 / 2].words[row / 8 + k / 8 * 2], k % 2);
                sums[i] += left * half_of(all[column * 4 + k % 8 / 2].words[4 + k / 8], k % 2);
            }
        }
        return float4{sums[0], sums[1], sums[2], sums[3]};
    });
}
static float wasmetal_power(float exponent) { return exponent < -126 ? 0 : exp2f(exponent); }
static uint2 wasmetal_scaled_bytes(uint bytes, uint zero, uint scale) {
    uint halves[4];
    for (int i = 0; i < 4; ++i) {
        _Float16 byte = (_Float16)(1024 + (bytes >> 8 * i & 255));
        halves[i] = __half_as_ushort((_Float16)((byte - (_Float16)half_of(zero, i % 2)) * (_Float16)half_of(scale, i % 2)));
    }
    return {halves[0] | halves[1] << 16, halves[2] | halves[3] << 16};
}
static uint __funnelshift_r(uint low, uint high, uint shift) { return uint(((uint64_t)high << 32 | low) >> (shift & 31)); }
static uint wasmetal_as_halves(float low, float high) {
    return __half_as_ushort((_Float16)low) | uint(__half_as_ushort((_Float16)high)) << 16;
}

// Run groups, each with its threads forwards or backwards; `spread` of them have the same x, and others z. `clear` poisons
// group memory.
static void launch(uint groups, uint spread, void (*kernel)(), void (*clear)()) {
    static char stacks[THREADS * STACK];
    for (uint group = 0; group < groups; ++group) {
        blockIdx = {group / spread, 0, group % spread};
        clear();
        for (int i = 0; i < THREADS; ++i) {
            done[i] = false;
            getcontext(&fibres[i]);
            fibres[i].uc_stack.ss_sp = &stacks[i * STACK];
            fibres[i].uc_stack.ss_size = STACK;
            fibres[i].uc_link = &scheduler;
            makecontext(&fibres[i], kernel, 0);
        }
        for (int left = THREADS; left > 0;) {
            left = 0;
            for (int turn = 0; turn < THREADS; ++turn) {
                current = group % 2 ? THREADS - 1 - turn : turn;
                if (done[current]) continue;
                threadIdx = {uint(current), 0, 0};
                swapcontext(&scheduler, &fibres[current]);
                left += !done[current];
            }
        }
    }
}
