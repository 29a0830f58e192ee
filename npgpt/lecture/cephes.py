"""log, sin and cos of float32, in the arithmetic that PyTorch uses to draw normal numbers.

NumPy's versions sometimes differ from these in the last bit. PyTorch's come from Moshier's Cephes
library (https://www.netlib.org/cephes/, logf.c and sinf.c) by way of
aten/src/ATen/native/cpu/avx_mathfun.h: the argument is reduced to a small range, where a polynomial
is accurate. PyTorch's compiler fuses some products and sums into one instruction that rounds once,
`_fma` here. Which ones was found by comparison.

    log(m 2ᵉ) = log(1 + x) + e log(2)          x = m - 1 between √½ - 1 and √2 - 1
    sin and cos of jπ/4 + x, j even            are ± sin(x) and ± cos(x), exchanged for j = 2, 6
"""

import numpy as np

FLOAT = np.float32
LOG = (7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
       -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1)
SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
COS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
SQRT_HALF = FLOAT(0.707106781186547524)
LOG_2 = FLOAT(0.693359375), FLOAT(-2.12194440e-4)          # their sum, in two parts
FOUR_OVER_PI = FLOAT(1.27323954473516)
MINUS_PI_4 = -0.78515625, -2.4187564849853515625e-4, -3.77489497744594108e-8    # in three


def log(x):
    """x (...) float32, above 0 -> y (...) float32."""
    m, e = np.frexp(x)                                     # x = m 2ᵉ, m in [½, 1)
    is_low = m < SQRT_HALF
    e = (e - is_low).astype(FLOAT)
    x = np.where(is_low, m + m, m) - 1
    z = x * x
    y = _fma(_polynomial(LOG, x) * x, z, e * LOG_2[1])     # x³ and above
    y = _fma(-0.5, z, y)
    return _fma(e, LOG_2[0], x + y)


def sincos(angle):
    """angle (...) float32, 0 and above -> sin (...), cos (...) float32."""
    j = (angle * FOUR_OVER_PI).astype(np.int32) + 1 & ~1   # the nearest even number
    x = angle
    for part in MINUS_PI_4:
        x = _fma(j, FLOAT(part), x)
    z = x * x
    sin = _fma(_polynomial(SIN, z) * z, x, x)
    cos = _polynomial(COS, z) * z
    cos = _fma(cos, z, FLOAT(-0.5) * z) + 1
    is_swapped = j % 4 == 2
    return (np.where(is_swapped, cos, sin) * _sign(j % 8 < 4),
            np.where(is_swapped, sin, cos) * _sign((j + 2) % 8 < 4))


def _polynomial(coefficients, x):
    """Horner's rule: the coefficient of the highest power is first."""
    y = FLOAT(coefficients[0])
    for coefficient in coefficients[1:]:
        y = _fma(y, x, FLOAT(coefficient))
    return y


def _fma(a, b, c):
    """a * b + c with float32 values: the product is exact in float64."""
    return (np.multiply(a, b, dtype=np.float64) + c).astype(FLOAT)


def _sign(is_positive):
    return np.where(is_positive, FLOAT(1), FLOAT(-1))
