// Dropout: npgpt/layers/dropout.py.
//
// The mask is computed where it is needed, in the forward and again in the backward, and never
// stored: a GPU computes the hash in less time than a memory access takes.

constexpr int CHUNK = 1024;      // elements of a row that one warp processes

// Wellons' lowbias32, with a second word of the key added half-way.
__device__ __forceinline__ unsigned scramble(unsigned z, unsigned salt)
{
    z ^= z >> 16;
    z *= 0x7FEB352Du;
    z += salt;
    z ^= z >> 15;
    z *= 0x846CA68Bu;
    z ^= z >> 16;
    return z;
}

// A row of the mask; first and second are the key's words. With threshold 0 everything is kept.
struct Mask {
    unsigned first, second, threshold;

    __device__ __forceinline__ Mask(unsigned first, unsigned second, unsigned row,
                                    unsigned threshold)
        : first(scramble(row ^ first, 0)), second(scramble(row ^ second, 0)), threshold(threshold)
    {
    }

    __device__ __forceinline__ bool keeps(unsigned element) const
    {
        return scramble(element ^ first, second) >= threshold;
    }
};

// x (B, E) -> y (B, E). Both directions: y = x * kept * scale, dx = dy * kept * scale, with scale
// 1 / (1 - p). row: the index of x's first row in the whole batch. One warp per CHUNK elements.
template <typename Real>
__global__ void dropout(
    const Real* __restrict__ x, long long B, long long E, unsigned first, unsigned second,
    unsigned row, unsigned threshold, Real scale, Real* __restrict__ y)
{
    const long long chunks = (E - 1) / CHUNK + 1;        // of a row; the last may be shorter
    const long long warp = thread_in_grid() / LANES;
    const long long b = warp / chunks;
    if (b >= B) return;
    const long long start = warp % chunks * CHUNK;
    const long long stop = start + CHUNK < E ? start + CHUNK : E;
    const Mask mask(first, second, row + (unsigned)b, threshold);
    x += b * E;
    y += b * E;
    for (long long e = start + threadIdx.x % LANES; e < stop; e += LANES)
        y[e] = x[e] * scale * Real(mask.keeps((unsigned)e));
}
