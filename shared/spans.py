"""Contiguous ranges of a model's layers."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class LayerSpan:
    """The half-open range `[start, end)` of a model's layers, counted from zero; of no layers where the two are equal."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end:
            raise ValueError(f"a span runs from its start up to an end that is not smaller, not [{self.start}, {self.end})")

    def __len__(self) -> int:
        return self.end - self.start

    def __contains__(self, layer: object) -> bool:
        return isinstance(layer, int) and self.start <= layer < self.end

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.end))

    def __str__(self) -> str:
        return f"[{self.start}, {self.end})"

    def overlaps(self, other: "LayerSpan") -> bool:
        """Whether the two have a layer in common."""
        return max(self.start, other.start) < min(self.end, other.end)

    @classmethod
    def divide(cls, num_layers: int, num_stages: int) -> tuple["LayerSpan", ...]:
        """Return `num_stages` spans that cover `num_layers` layers in order, the longer ones first.

        Raises ValueError when there are fewer layers than stages.
        """
        if not 1 <= num_stages <= num_layers:
            raise ValueError(f"{num_layers} layers cannot be divided among {num_stages} stages")
        length, num_longer = divmod(num_layers, num_stages)
        bounds = [stage * length + min(stage, num_longer) for stage in range(num_stages + 1)]
        return tuple(cls(start, end) for start, end in itertools.pairwise(bounds))
