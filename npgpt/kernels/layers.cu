// Layer normalisation and GELU as CUDA kernels. Not yet run on a GPU.
//
// Array code runs one operation at a time: each reads its operands from the GPU's memory and writes
// its result back there. A GPU computes far faster than its memory delivers: an H200, by NVIDIA's
// figures, 67 TFLOP a second in float32 and 4.8 TB, so 14 operations for each byte, or 56 for each
// number. These layers need fewer, and so take as long as their memory traffic does. Fused, a layer
// reads what it needs once, keeps everything between in registers, and writes its result once.
//
// The mathematics is that of npgpt/layers/layernorm.py and npgpt/layers/activations.py, in the same
// names. Arrays are contiguous, (N, C): N tokens, C channels.
//
// A GPU runs threads in warps of 32 lanes, which take each step together. In the layer norm one
// warp has one token: lane i takes the channels i, i + 32, i + 64, ... of its row. Neighbouring
// lanes then touch neighbouring numbers, which the memory delivers together, and any C will do.
// Lanes add up their parts of a sum by handing registers to one another ("shuffle"), so nothing has
// to be stored, no thread waits for another warp, and the order of every sum is fixed: the same
// input gives the same bits. Arithmetic is in the type of the arrays, Real: float, or double for
// proofs. Literals are written Real(...), since a bare 0.5 would pull a float through slow doubles.

constexpr int LANES = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;      // one bit for each that takes part in a shuffle

constexpr double GELU_LINEAR = 0.7978845608028654;                  // sqrt(2 / pi)
constexpr double GELU_CUBIC = 0.044715 * GELU_LINEAR;

__device__ __forceinline__ long long thread_in_grid()
{
    return (long long)blockIdx.x * blockDim.x + threadIdx.x;
}

// The sum of `part` over the lanes of a warp. Lanes 16 apart swap what they have and add it, then
// those 8, 4, 2 and 1 apart: after five steps each lane has all 32 parts. Two that swap add the
// same two numbers, so every lane ends with the same bits, and none has to be told the result.
template <typename Real>
__device__ __forceinline__ Real warp_sum(Real part)
{
    for (int distance = LANES / 2; distance > 0; distance /= 2)
        part += __shfl_xor_sync(ALL_LANES, part, distance);
    return part;
}

// x (N, C), w (C,), b (C,) -> y (N, C), mean (N,), rstd (N,). A warp for each of N tokens.
//
// The variance is the mean of (x - mean)², which needs the mean first: a second pass over the row.
// The one-pass form mean(x²) - mean² is faster and wrong where mean² is much the larger, since the
// digits that make the difference are gone. The row comes from memory once; the second and third
// time it is still in the cache.
template <typename Real>
__global__ void layernorm_forward(
    const Real* __restrict__ x, const Real* __restrict__ w, const Real* __restrict__ b, Real eps,
    long long N, int C, Real* __restrict__ y, Real* __restrict__ mean, Real* __restrict__ rstd)
{
    const long long n = thread_in_grid() / LANES;
    if (n >= N) return;                          // a whole warp: its lanes share n
    const int lane = threadIdx.x % LANES;
    x += n * C;
    y += n * C;

    Real sum = 0;
    for (int c = lane; c < C; c += LANES) sum += x[c];
    const Real m = warp_sum(sum) / C;

    Real squares = 0;
    for (int c = lane; c < C; c += LANES) squares += (x[c] - m) * (x[c] - m);
    const Real r = Real(1) / sqrt(warp_sum(squares) / C + eps);

    for (int c = lane; c < C; c += LANES) y[c] = (x[c] - m) * r * w[c] + b[c];
    if (lane == 0) {
        mean[n] = m;
        rstd[n] = r;
    }
}

// dy (N, C), x (N, C), mean (N,), rstd (N,), w (C,) -> dx (N, C). A warp for each of N tokens.
//
//     dxhat = dy * w
//     dx    = rstd * (dxhat - mean(dxhat) - xhat * mean(dxhat * xhat))
//
// xhat = (x - mean) * rstd is computed again, by the very operations of the forward.
template <typename Real>
__global__ void layernorm_backward_dx(
    const Real* __restrict__ dy, const Real* __restrict__ x, const Real* __restrict__ mean,
    const Real* __restrict__ rstd, const Real* __restrict__ w, long long N, int C,
    Real* __restrict__ dx)
{
    const long long n = thread_in_grid() / LANES;
    if (n >= N) return;
    const int lane = threadIdx.x % LANES;
    const Real m = mean[n], r = rstd[n];
    dy += n * C;
    x += n * C;
    dx += n * C;

    Real sum = 0, along = 0;
    for (int c = lane; c < C; c += LANES) {
        const Real dxhat = dy[c] * w[c];
        sum += dxhat;
        along += dxhat * ((x[c] - m) * r);
    }
    sum = warp_sum(sum) / C;
    along = warp_sum(along) / C;

    for (int c = lane; c < C; c += LANES)
        dx[c] = r * (dy[c] * w[c] - sum - (x[c] - m) * r * along);
}

// dy (N, C), x (N, C), mean (N,), rstd (N,) -> partial (2, G, C), whose sum over G is dw, db.
//
//     dw = sum(dy * xhat)        db = sum(dy)        over the N tokens
//
// Here the sum runs down the columns. One warp has 32 columns, a lane each, and walks down a group
// of rows: neighbouring lanes again read neighbouring numbers, and no lane needs another. One group
// of all N rows would leave most of the GPU idle, so they are cut into G groups, each with its own
// row of `partial`. Adding atomically into one row would need no second sum, but in an order that
// changes from run to run, and with it the last digits of the gradient.
template <typename Real>
__global__ void layernorm_backward_dwdb(
    const Real* __restrict__ dy, const Real* __restrict__ x, const Real* __restrict__ mean,
    const Real* __restrict__ rstd, long long N, int C, int G, Real* __restrict__ partial)
{
    const int strips = (C - 1) / LANES + 1;      // of 32 columns; the last may be narrower
    const long long warp = thread_in_grid() / LANES;
    const long long g = warp / strips;
    const int c = warp % strips * LANES + threadIdx.x % LANES;
    if (g >= G || c >= C) return;                // lanes on their own: there is no shuffle here

    const long long stop = N * (g + 1) / G;
    Real dw = 0, db = 0;
    for (long long n = N * g / G; n < stop; ++n) {
        const long long i = n * C + c;
        dw += dy[i] * ((x[i] - mean[n]) * rstd[n]);
        db += dy[i];
    }
    partial[g * C + c] = dw;
    partial[(G + g) * C + c] = db;
}

// x (size,) -> y (size,). Each thread takes every so-many-th element, as many as there are threads.
template <typename Real>
__global__ void gelu_forward(const Real* __restrict__ x, long long size, Real* __restrict__ y)
{
    const long long threads = (long long)gridDim.x * blockDim.x;
    for (long long i = thread_in_grid(); i < size; i += threads) {
        const Real a = x[i];
        const Real t = tanh((Real(GELU_LINEAR) + Real(GELU_CUBIC) * a * a) * a);
        y[i] = Real(0.5) * a * (1 + t);
    }
}

// dy (size,), x (size,) -> dx (size,).
//
// t is computed again rather than kept: a tanh costs some twenty operations, and a GPU has time for
// more than that while the next number arrives. Kept, it would be one more array to write, to read
// and to hold, as large as the widest in the model. A CPU decides the other way, and keeps s.
template <typename Real>
__global__ void gelu_backward(const Real* __restrict__ dy, const Real* __restrict__ x,
                              long long size, Real* __restrict__ dx)
{
    const long long threads = (long long)gridDim.x * blockDim.x;
    for (long long i = thread_in_grid(); i < size; i += threads) {
        const Real a = x[i];
        const Real t = tanh((Real(GELU_LINEAR) + Real(GELU_CUBIC) * a * a) * a);
        const Real du = Real(GELU_LINEAR) + Real(3 * GELU_CUBIC) * a * a;       // du/dx
        dx[i] = Real(0.5) * dy[i] * (1 + t + a * (1 - t * t) * du);
    }
}
