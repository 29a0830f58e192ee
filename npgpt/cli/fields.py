"""Fields that several configurations have."""

from npgpt.cli.options import option

DATA_CACHE = "data/cache"


def device_field():
    """`device`: str."""
    return option("auto", "where to compute; auto: on the GPU if there is one",
                  choices=("auto", "cpu", "gpu"))


def dtype_field():
    """`dtype`: str, or None for the device's default."""
    return option(
        None, "precision: float32 or float64; tf32 and bfloat16 need a GPU (default: tf32 on a "
        "GPU that has it, else float32)", choices=("float32", "float64", "tf32", "bfloat16"))


def data_cache_field():
    """`data_cache`: str."""
    return option(DATA_CACHE, "where large texts are kept as token files", metavar="DIR")
