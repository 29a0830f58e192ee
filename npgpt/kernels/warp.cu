// What the fused kernels share. They are compiled as one text: this file first.
//
// Array code runs one operation at a time: each reads its operands from the GPU's memory and writes
// its result back. A GPU computes far faster than its memory delivers: an H200 has, by NVIDIA's
// figures, 67 TFLOP/s in float32 and 4.8 TB/s, so 14 operations per byte, or 56 per number. These
// layers need fewer, so memory traffic determines their time. A fused kernel reads its inputs once,
// keeps intermediate values in registers, and writes its results once.
//
// The mathematics is that of npgpt/layers, in the same names. Arrays are contiguous.
//
// A GPU runs threads in warps of 32 lanes, which execute each instruction together. Where a layer
// sums or takes a maximum over a row, one warp processes one row: lane i takes the elements i,
// i + 32, i + 64, ... Neighbouring lanes then access neighbouring numbers, so accesses are
// coalesced, and the row's length is arbitrary. Lanes combine their parts by exchanging registers
// ("shuffle"): this needs no shared memory and no synchronisation between warps, and the order of
// every sum is fixed, so the same input gives the same bits. Arithmetic is in the type of the
// arrays, Real: float, or double for gradient checks. Literals are written Real(...), because 0.5
// alone would make a float computation double, which is slow.

constexpr int LANES = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;      // one bit for each lane in a shuffle

__device__ __forceinline__ long long thread_in_grid()
{
    return (long long)blockIdx.x * blockDim.x + threadIdx.x;
}

// The sum of `part` over the lanes of a warp. Lanes 16 apart exchange and add their values, then
// those 8, 4, 2 and 1 apart: after five steps each lane has the sum of all 32. Both lanes of a pair
// add the same two numbers, so all lanes get the same bits.
template <typename Real>
__device__ __forceinline__ Real warp_sum(Real part)
{
    for (int distance = LANES / 2; distance > 0; distance /= 2)
        part += __shfl_xor_sync(ALL_LANES, part, distance);
    return part;
}

// The largest part, in the same way.
template <typename Real>
__device__ __forceinline__ Real warp_max(Real part)
{
    for (int distance = LANES / 2; distance > 0; distance /= 2) {
        const Real other = __shfl_xor_sync(ALL_LANES, part, distance);
        part = part < other ? other : part;
    }
    return part;
}
