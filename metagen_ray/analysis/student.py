"""Student's t and the normal distribution from the standard library's math alone."""

from functools import lru_cache
from math import erfc, exp, fabs, inf, lgamma, log, sqrt


def t_upper(t: float, df: float) -> float:
    """P(T > t) with df degrees of freedom."""
    if df <= 0:
        raise ValueError(f"df must be positive, got {df}")
    tail = 0.5 * incomplete_beta(df / 2.0, 0.5, df / (df + t * t))
    return tail if t >= 0 else 1.0 - tail


@lru_cache(maxsize=1024)
def t_quantile(level: float, df: float) -> float:
    """The t below which a share `level` (0 < level < 1) lies, by bisection to 1e-12."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    if level < 0.5:
        return -t_quantile(1.0 - level, df)
    low, high = 0.0, 1.0
    while t_upper(high, df) > 1.0 - level:
        high *= 2.0
    while high - low > 1e-12 * max(1.0, high):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if t_upper(middle, df) > 1.0 - level else (low, middle)
    return 0.5 * (low + high)


def normal_upper(z: float) -> float:
    """P(Z > z) of the standard normal."""
    return 0.5 * erfc(z / sqrt(2.0))


def incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularised incomplete beta I_x(a, b) by Lentz's continued fraction (Numerical Recipes 6.4)."""
    if x <= 0.0 or x >= 1.0:
        return float(x >= 1.0)
    front = exp(lgamma(a + b) - lgamma(a) - lgamma(b) + a * log(x) + b * log(1.0 - x))
    if x < (a + 1.0) / (a + b + 2.0):
        return front * _fraction(a, b, x) / a
    return 1.0 - front * _fraction(b, a, 1.0 - x) / b


def _fraction(a: float, b: float, x: float) -> float:
    c, d = 1.0, _safe(1.0 - (a + b) * x / (a + 1.0))
    value, before, m = d, inf, 0
    while fabs(value - before) > 1e-16 * fabs(value) and m < 10_000:
        m += 1
        before = value
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = _safe(1.0 + numerator * d)
            c = 1.0 + numerator / c if c else 1e300
            value *= d * c
    return value


def _safe(x: float) -> float:
    return 1.0 / (x if fabs(x) > 1e-300 else 1e-300)
