"""What a machine measured of itself."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Profile:
    """Rates of one machine for one model, all in seconds.

    `load_seconds_per_byte` is per byte as stored, read and made ready; `compute_seconds_per_byte` per byte of weights that
    one token is multiplied with; `block_seconds` is what every block costs on top.
    """

    load_seconds_per_byte: float
    compute_seconds_per_byte: float
    block_seconds: float
