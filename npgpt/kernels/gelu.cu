// GELU: npgpt/layers/activations.py.

constexpr double GELU_LINEAR = 0.7978845608028654;                  // sqrt(2 / pi)
constexpr double GELU_CUBIC = 0.044715 * GELU_LINEAR;

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
