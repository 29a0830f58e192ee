// Enough of CUDA C++ for g++ to compile the kernels as they stand and run it on the host, a warp at a
// time. Arithmetic and indexing are the kernel's own; time and memory are not those of a GPU.
//
// The 32 lanes of a warp are 32 fibers in one thread. They run in turn, each to its next shuffle,
// where it puts its value in a slot and lets the others go on; when its turn comes again, all have
// put theirs, and it takes the one it wants. The slots are double: in that same turn it may reach
// its next shuffle, before a later lane has taken what it put there for this one.
//
// What a GPU leaves undefined is an error here: a lane that has returned while others shuffle, a
// shuffle that names other lanes than all 32, lanes that are in different shuffles, a block that is
// not whole warps. __syncthreads, shared memory and atomics are not there: a kernel
// that uses them does not compile.

#include <math.h>
#include <string.h>
#include <ucontext.h>

#include <functional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__ static
#define __device__
#define __forceinline__ inline
#define __restrict__ __restrict

struct Dim { unsigned x, y, z; };
static Dim threadIdx, blockIdx, blockDim, gridDim;

namespace host {

constexpr int LANES = 32;
constexpr size_t STACK = 64 * 1024;

struct Lane {
    ucontext_t at;
    std::vector<char> stack = std::vector<char>(STACK);
    bool left;             // has returned from the kernel
    unsigned shuffles;     // that it has come to
    size_t size;           // of the value in its last one
    int distance;          // of that one
    double slot[2];        // what it put there, in turn
};

static Lane lanes[LANES];
static int current;
static ucontext_t scheduler;
static std::function<void()> body;       // the kernel with its arguments
static const char* error;

static void enter()
{
    body();
    lanes[current].left = true;          // uc_link leads back to the scheduler
}

static void run_warp(unsigned first_thread)
{
    for (Lane& lane : lanes) {
        getcontext(&lane.at);
        lane.at.uc_stack.ss_sp = lane.stack.data();
        lane.at.uc_stack.ss_size = lane.stack.size();
        lane.at.uc_link = &scheduler;
        lane.left = false;
        lane.shuffles = 0;
        makecontext(&lane.at, enter, 0);
    }
    for (;;) {
        for (current = 0; current < LANES; ++current) {
            threadIdx.x = first_thread + current;
            swapcontext(&scheduler, &lanes[current].at);
        }
        int left = 0, alike = 0;
        for (const Lane& lane : lanes) {
            left += lane.left;
            alike += lane.size == lanes[0].size && lane.distance == lanes[0].distance;
        }
        if (left == LANES) return;
        if (left > 0)
            error = "a lane has left the kernel while others of its warp shuffle";
        else if (alike < LANES)
            error = "the lanes of a warp are in different shuffles";
        if (error) return;               // the fibers are abandoned where they stand
    }
}

template <typename... P, size_t... i>
static const char* launch(void (*kernel)(P...), unsigned grid, unsigned block, void** args,
                          std::index_sequence<i...>)
{
    error = nullptr;
    if (block == 0 || block % LANES) return "a block must be whole warps of 32 threads";
    body = [=] { kernel(*static_cast<P*>(args[i])...); };
    gridDim = {grid, 1, 1};
    blockDim = {block, 1, 1};
    for (blockIdx = {0, 0, 0}; blockIdx.x < grid && !error; ++blockIdx.x)
        for (unsigned first = 0; first < block && !error; first += LANES) run_warp(first);
    return error;
}

template <typename... P>
static const char* launch(void (*kernel)(P...), unsigned grid, unsigned block, void** args)
{
    return launch(kernel, grid, block, args, std::index_sequence_for<P...>());
}

template <typename T> struct name_of;
template <> struct name_of<float> { static constexpr const char* value = "float32"; };
template <> struct name_of<double> { static constexpr const char* value = "float64"; };
template <> struct name_of<bool> { static constexpr const char* value = "bool"; };
template <> struct name_of<unsigned> { static constexpr const char* value = "uint32"; };
template <> struct name_of<int> { static constexpr const char* value = "int32"; };
template <> struct name_of<long long> { static constexpr const char* value = "int64"; };

// "in float32" for an array that is read, "out float32" for one that is written, "float32" for a
// scalar.
template <typename P>
static std::string describe()
{
    if constexpr (std::is_pointer_v<P>) {
        using T = std::remove_pointer_t<P>;
        return (std::is_const_v<T> ? "in " : "out ") + describe<std::remove_const_t<T>>();
    } else {
        return name_of<P>::value;
    }
}

template <typename... P>
static const char* signature(void (*)(P...))
{
    static std::string text;
    text.clear();
    ((text += describe<P>() + ","), ...);
    return text.c_str();
}

}  // namespace host

template <typename T>
static T __shfl_xor_sync(unsigned mask, T value, int distance)
{
    host::Lane& mine = host::lanes[host::current];
    const unsigned turn = mine.shuffles++ % 2;
    const int other = host::current ^ distance;
    static_assert(sizeof(T) <= sizeof(double));
    if (mask != 0xffffffffu) host::error = "a shuffle does not name all 32 lanes";
    if (other < 0 || other >= host::LANES) host::error = "a shuffle reaches beyond the warp";
    mine.size = sizeof(T);
    mine.distance = distance;
    memcpy(&mine.slot[turn], &value, sizeof(T));
    swapcontext(&mine.at, &host::scheduler);
    memcpy(&value, &host::lanes[other].slot[turn], sizeof(T));
    return value;
}
