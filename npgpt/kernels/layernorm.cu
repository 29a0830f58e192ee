// Layer norm: npgpt/layers/layernorm.py. Arrays are (N, C): N tokens, C channels.

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

// dy (N, C), x (N, C), mean (N,), rstd (N,) -> partial (G, 2, C), whose sum over G is dw, db.
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
    partial[2 * g * C + c] = dw;
    partial[(2 * g + 1) * C + c] = db;
}
