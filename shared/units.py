"""Bytes, rates and durations as people write and read them."""

import re
from decimal import ROUND_CEILING, ROUND_HALF_EVEN, Decimal
from typing import Final

_FACTORS: Final = {
    "": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
    "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40,
}  # fmt: skip
_SIZE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?\s*", re.IGNORECASE)


def parse_bytes(size: int | str) -> int:
    """Return the bytes that `size` names: 64000000, "64MB", "1.5GiB" or "2g" (decimal unless written with an i).

    Raises ValueError for anything else, and for less than one byte.
    """
    match = _SIZE.fullmatch(str(size))
    if match is None or match[2].upper() not in _FACTORS:
        raise ValueError(f"not an amount of memory: {size!r}; write it like 512MB, 4GB or 1.5GiB")
    num_bytes = int(Decimal(match[1]) * _FACTORS[match[2].upper()])
    if num_bytes < 1:
        raise ValueError(f"an amount of memory must be at least one byte, not {size!r}")
    return num_bytes


def format_bytes(num_bytes: float, *, round_up: bool = False) -> str:
    """Return `num_bytes` in decimal units with three digits: "64.0MB", "1.24GB"; `parse_bytes` reads it back.

    With `round_up` that is never less than `num_bytes`.
    """
    value, unit = Decimal(num_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < Decimal("999.5"):
            break
        value, unit = value / 1000, larger
    decimals = 0 if unit == "B" or value >= Decimal("99.95") else 1 if value >= Decimal("9.995") else 2
    rounded = value.quantize(Decimal(1).scaleb(-decimals), ROUND_CEILING if round_up else ROUND_HALF_EVEN)
    return f"{rounded}{unit}"


def format_seconds(seconds: float) -> str:
    """Return a duration as a person says it: "340 ms", "2.1 s", "3 min 20 s"."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 99.5:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
