"""Compiling and launching the kernels in the .cu files here with CuPy."""

from importlib import resources

BLOCK = 256      # threads in a block: 8 warps
C_TYPES = {"float32": "float", "float64": "double"}
LANES = 32       # threads in a warp
KERNELS = (
    "layernorm_forward", "layernorm_backward_dx", "layernorm_backward_dwdb",
    "gelu_forward", "gelu_backward", "dropout", "attention_softmax", "attention_softmax_backward",
)
FILES = ("warp.cu", "layernorm.cu", "gelu.cu", "dropout.cu", "attention.cu")    # in this order
OPTIONS = ("--std=c++17",)
EXPRESSIONS = {(kernel, dtype): f"{kernel}<{c_type}>"       # their names in C++
               for kernel in KERNELS for dtype, c_type in C_TYPES.items()}


def source():
    """-> the text of all kernels."""
    folder = resources.files("npgpt.kernels")
    return "\n".join(folder.joinpath(name).read_text(encoding="utf-8") for name in FILES)


def compile_kernels(xp):
    """-> launch(kernel, dtype, threads, *args), which starts a kernel with at least this number of
    threads. Scalars in args must have the type that the kernel declares, because CuPy passes their
    bytes unchanged."""
    module = xp.RawModule(
        code=source(), options=OPTIONS, name_expressions=list(EXPRESSIONS.values())
    )
    functions = {key: module.get_function(name) for key, name in EXPRESSIONS.items()}

    def launch(kernel, dtype, threads, *args):
        blocks = -(-threads // BLOCK)
        functions[kernel, dtype.name]((blocks,), (BLOCK,), args)

    return launch


def takes(*arrays):
    """Whether the kernels support these arrays: all of one supported dtype, and none empty."""
    dtype = arrays[0].dtype
    return dtype.name in C_TYPES and all(a.dtype == dtype and a.ndim and a.size for a in arrays)


def require_like(dy, shape, dtype):
    """Raise ValueError unless dy has the shape and the dtype of the layer's result."""
    if (dy.shape, dy.dtype) != (shape, dtype):
        raise ValueError(f"dy must be {dtype} {shape}, like y, got {dy.dtype} {dy.shape}")
