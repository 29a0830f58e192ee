// The softmax of attention, with its scale, mask and dropout: npgpt/layers/attention.py. The
// products with q, k and v before and after it are matrix products.
//
// Scores are (B, H, Tq, Tk), and one warp has the row of one query. It passes over its row three
// times, but only the first pass reads from memory: a row of a few thousand numbers then stays in
// the cache.

// scores (B, H, Tq, Tk) -> itself, now att; kept (B, H, Tq, Tk), att after dropout.
//
// seen: bool, True where a query sees a key; element (b, h, q, k) is at the sum of each index times
// its stride, which is 0 along an axis that the mask lacks. In a row without a visible key all att
// are 0. If nothing is dropped, threshold is 0, and kept is not written.
template <typename Real>
__global__ void attention_softmax(
    Real* __restrict__ scores, Real scale, const bool* __restrict__ seen, long long seen_b,
    long long seen_h, long long seen_q, long long seen_k, long long B, int H, int Tq, int Tk,
    unsigned first, unsigned second, unsigned row, unsigned threshold, Real dropout_scale,
    Real* __restrict__ kept)
{
    const long long n = thread_in_grid() / LANES;
    if (n >= B * H * Tq) return;                 // a whole warp: its lanes share n
    const int lane = threadIdx.x % LANES;
    const int q = n % Tq, h = n / Tq % H;
    const long long b = n / Tq / H;
    scores += n * Tk;
    seen += b * seen_b + h * seen_h + q * seen_q;

    const Real lowest = log(Real(0));            // -infinity
    Real top = lowest;
    for (int k = lane; k < Tk; k += LANES)
        if (seen[k * seen_k] && scores[k] * scale > top) top = scores[k] * scale;
    top = warp_max(top);
    if (top == lowest) top = 0;                  // nothing is seen; else exp cannot overflow

    Real total = 0;
    for (int k = lane; k < Tk; k += LANES) {
        const Real e = seen[k * seen_k] ? exp(scores[k] * scale - top) : Real(0);
        scores[k] = e;
        total += e;
    }
    total = warp_sum(total);
    if (total == 0) total = 1;                   // only where no key is seen

    const Mask mask(first, second, row + (unsigned)b, threshold);
    const unsigned element = (unsigned)(n % ((long long)H * Tq) * Tk);
    kept += n * Tk;
    for (int k = lane; k < Tk; k += LANES) {
        const Real att = scores[k] / total;
        scores[k] = att;
        if (threshold) kept[k] = att * dropout_scale * Real(mask.keeps(element + k));
    }
}

// att (B, H, Tq, Tk), dkept (B, H, Tq, Tk) -> dkept itself, now dscores, with respect to the
// products before they are scaled.
//
//     datt    = dropout(dkept)
//     dscores = att * (datt - sum(datt * att)) * scale
template <typename Real>
__global__ void attention_softmax_backward(
    const Real* __restrict__ att, Real scale, long long B, int H, int Tq, int Tk, unsigned first,
    unsigned second, unsigned row, unsigned threshold, Real dropout_scale,
    Real* __restrict__ dkept)
{
    const long long n = thread_in_grid() / LANES;
    if (n >= B * H * Tq) return;
    const int lane = threadIdx.x % LANES;
    const Mask mask(first, second, row + (unsigned)(n / Tq / H), threshold);
    const unsigned element = (unsigned)(n % ((long long)H * Tq) * Tk);
    att += n * Tk;
    dkept += n * Tk;

    Real along = 0;
    for (int k = lane; k < Tk; k += LANES) {
        const Real datt = dkept[k] * dropout_scale * Real(mask.keeps(element + k));
        dkept[k] = datt;
        along += datt * att[k];
    }
    along = warp_sum(along);
    for (int k = lane; k < Tk; k += LANES) dkept[k] = att[k] * (dkept[k] - along) * scale;
}
