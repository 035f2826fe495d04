"""What a machine measured of itself."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Profile:
    """Rates of one machine for one model, all in seconds.

    `load_seconds_per_byte` is per byte as stored, read and made ready while another block computes;
    `compute_seconds_per_byte` per byte of the blocks that one token goes through; `outside_seconds` is what a token costs
    apart from its blocks.
    """

    load_seconds_per_byte: float
    compute_seconds_per_byte: float
    outside_seconds: float
