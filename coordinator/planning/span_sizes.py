"""What every span of a model consists of, ready to look up."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from layermesh.coordinator.planning.model_cost import ModelCost

Reals = NDArray[np.float64]  # bytes are exact in them up to 2 ** 53
Bounds = int | NDArray[np.int_]


@dataclass(frozen=True, slots=True)
class SpanSizes:
    """What spans consist of, in bytes; arrays of one shape, an entry a span. A head counts where it goes with them.

    `largest` is the largest layer, `largest_piece` the largest of what layers can be streamed in. `stored_ratio` is how many
    bytes are read for one of a layer, `head_ratio` for one of the head.
    """

    num_layers: Reals
    loaded: Reals
    stored_ratio: Reals
    working: Reals
    largest: Reals
    largest_piece: Reals
    head_loaded: int = 0
    head_ratio: float = 0.0

    @property
    def everything(self) -> Reals:
        """Layers and head."""
        return self.loaded + self.head_loaded


class SpanTable:
    """Sums over the spans of a model, and their largest layers."""

    def __init__(self, model: ModelCost) -> None:
        self._head = model.head
        self._loaded = _sums(layer.loaded_bytes for layer in model.layers)
        self._stored = _sums(layer.stored_bytes for layer in model.layers)
        self._working = _sums(layer.working_bytes for layer in model.layers)
        self._largest = _maxima([layer.loaded_bytes for layer in model.layers])
        self._largest_piece = _maxima([layer.largest_piece for layer in model.layers])

    def sizes(self, starts: Bounds, ends: Bounds, *, has_head: bool) -> SpanSizes:
        """Return the sizes of the spans from `starts` up to `ends`, of which at least one is an array."""
        loaded = self._loaded[ends] - self._loaded[starts]
        sizes = SpanSizes(
            num_layers=np.asarray(ends - starts, np.float64),
            loaded=loaded,
            stored_ratio=(self._stored[ends] - self._stored[starts]) / np.maximum(loaded, 1),
            working=self._working[ends] - self._working[starts],
            largest=self._largest[starts, ends],
            largest_piece=self._largest_piece[starts, ends],
        )
        return self._with_head(sizes) if has_head else sizes

    def _with_head(self, sizes: SpanSizes) -> SpanSizes:
        """Add the head, which is divided to fit the slots of layers; alone, it has slots of its own."""
        head, is_alone = self._head, sizes.num_layers == 0
        return replace(
            sizes,
            working=sizes.working + head.working_bytes,
            largest=np.where(is_alone, head.largest_piece, sizes.largest),
            largest_piece=np.where(is_alone, head.largest_piece, sizes.largest_piece),
            head_loaded=head.loaded_bytes,
            head_ratio=head.stored_bytes / max(head.loaded_bytes, 1),
        )


def _sums(numbers: Iterable[int]) -> Reals:
    return np.array([0, *numbers], np.float64).cumsum()


def _maxima(numbers: list[int]) -> Reals:
    """Return the largest number of every span, by start and end; 0 where it is empty."""
    later = np.triu(np.ones((len(numbers) + 1, len(numbers)), np.bool_))  # which numbers lie at or behind a start
    reached = np.maximum.accumulate(np.where(later, np.array(numbers, np.float64), 0), axis=1)
    return np.hstack([np.zeros((len(numbers) + 1, 1)), reached])
