
// What kernels for CUDA call that Slang has no words for (slices.slang).

// 16 bytes of weights, which nobody writes while a list runs: read ahead of what the kernel waits for, once.
static __forceinline__ __device__ uint4 load_weights(const uint4* at)
{
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(at));
    return v;
}

// Four floats that the kernel before may have written: never read before `wait_for_kernel_before` returns.
static __forceinline__ __device__ float4 load_written(const float4* at)
{
    float4 v;
    asm volatile("ld.global.v4.f32 {%0, %1, %2, %3}, [%4];"
        : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "l"(at) : "memory");
    return v;
}

// Wait until the kernel before, and so all kernels before, have ended, if the launch has let this one begin earlier; and let the
// next one begin. (CUDA C++ Programming Guide, programmatic dependent launch.)
static __forceinline__ __device__ void wait_for_kernel_before()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}
