// Layer normalisation and GELU as CUDA kernels.
//
// Array code runs one operation at a time: each reads its operands from the GPU's memory and writes
// its result back. A GPU computes far faster than its memory delivers: an H200 has, by NVIDIA's
// figures, 67 TFLOP/s in float32 and 4.8 TB/s, so 14 operations per byte, or 56 per number. These
// layers need fewer, so memory traffic determines their time. A fused kernel reads its inputs once,
// keeps intermediate values in registers, and writes its results once.
//
// The mathematics is that of npgpt/layers/layernorm.py and npgpt/layers/activations.py, in the same
// names. Arrays are contiguous, (N, C): N tokens, C channels.
//
// A GPU runs threads in warps of 32 lanes, which execute each instruction together. In the layer
// norm one warp processes one token: lane i takes the channels i, i + 32, i + 64, ... of its row.
// Neighbouring lanes then access neighbouring numbers, so accesses are coalesced, and C is
// arbitrary. Lanes sum their parts by exchanging registers ("shuffle"): this needs no shared memory
// and no synchronisation between warps, and the order of every sum is fixed, so the same input
// gives the same bits. Arithmetic is in the type of the arrays, Real: float, or double for gradient
// checks. Literals are written Real(...), because 0.5 alone would make a float computation double,
// which is slow.

constexpr int LANES = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;      // one bit for each lane in a shuffle

constexpr double GELU_LINEAR = 0.7978845608028654;                  // sqrt(2 / pi)
constexpr double GELU_CUBIC = 0.044715 * GELU_LINEAR;

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

// x (N, C), w (C,), b (C,) -> y (N, C), mean (N,), rstd (N,). One warp per token.
//
// The variance is the mean of (x - mean)², which needs the mean first: a second pass over the row.
// The one-pass form mean(x²) - mean² is faster, but wrong by cancellation if mean² is much larger
// than the variance. The row is read from memory once; the second and third pass find it in the
// cache.
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

// dy (N, C), x (N, C), mean (N,), rstd (N,), w (C,) -> dx (N, C). One warp per token.
//
//     dxhat = dy * w
//     dx    = rstd * (dxhat - mean(dxhat) - xhat * mean(dxhat * xhat))
//
// xhat = (x - mean) * rstd is recomputed, with the same operations as in the forward.
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
// Here the sums are over columns. One warp has 32 columns, one per lane, and loops over a group of
// rows: accesses are again coalesced, and lanes are independent. A single group of all N rows would
// leave most of the GPU idle, so the rows are divided into G groups, each with its own row of
// `partial`. Atomic additions into one row would need no second sum, but their order changes from
// run to run, and with it the last digits of the gradient.
template <typename Real>
__global__ void layernorm_backward_dwdb(
    const Real* __restrict__ dy, const Real* __restrict__ x, const Real* __restrict__ mean,
    const Real* __restrict__ rstd, long long N, int C, int G, Real* __restrict__ partial)
{
    const int strips = (C - 1) / LANES + 1;      // of 32 columns; the last may be narrower
    const long long warp = thread_in_grid() / LANES;
    const long long g = warp / strips;
    const int c = warp % strips * LANES + threadIdx.x % LANES;
    if (g >= G || c >= C) return;                // single lanes may leave: there is no shuffle

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

// x (size,) -> y (size,). Each thread takes every n-th element, for n threads in the grid.
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
// t is recomputed, not stored: a tanh costs about twenty operations, and a GPU can do more than
// that in the time of one memory access. Stored, it would be one more array to write, to read and
// to keep, as large as the widest in the model. On a CPU storing it is faster: npgpt.layers does.
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
