"""Finding out where a conversion puts each row of its sources, without its sources."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import prod

import torch

Shape = tuple[int, ...]
Combine = Callable[[Sequence[torch.Tensor]], Mapping[str, torch.Tensor]]  # decoded sources, in order, to targets by name

_NEXT_COLUMN = 0.5


@dataclass(frozen=True, slots=True)
class RowMove:
    """Rows `[first, last)` of source number `source`, unchanged, become the rows `rows` (int64) of `target`.

    A row runs along the last dimension, and rows count through all others.
    """

    source: int
    first: int
    last: int
    target: str
    rows: torch.Tensor

    @property
    def start(self) -> int | None:
        """The first row of the target where the others follow it in order; None where they do not."""
        begin = int(self.rows[0])
        return begin if torch.equal(self.rows, torch.arange(begin, begin + len(self.rows))) else None


def find_row_moves(
    convert: Combine, source_shapes: Sequence[Shape], target_shapes: Mapping[str, Shape]
) -> list[RowMove] | None:
    """Return how `convert` moves whole rows, or None where it alters or cuts them: then only `convert` itself will do.

    It is run on the sources with each row's number in place of its columns, so it costs next to no memory, while a layer's
    worth of experts would take gigabytes to convert at once. Two columns that differ show whether columns keep their order.
    """
    if any(len(shape) < 2 for shape in (*source_shapes, *target_shapes.values())):
        return None
    bounds = list(accumulate((prod(shape[:-1]) for shape in source_shapes), initial=1))
    numbered = [
        torch.stack([rows := torch.arange(start, end, dtype=torch.float64), rows + _NEXT_COLUMN], -1).view(*shape[:-1], 2)
        for (start, end), shape in zip(pairwise(bounds), source_shapes, strict=True)
    ]
    try:
        made = convert(numbered)
    except Exception:  # any code of any family, given shapes it may not expect
        return None
    moves: list[RowMove] = []
    for target, shape in target_shapes.items():
        if target not in made or tuple(made[target].shape) != (*shape[:-1], 2):
            return None
        numbers, neighbours = made[target].reshape(-1, 2).unbind(-1)
        if not torch.equal(neighbours, numbers + _NEXT_COLUMN):
            return None
        found = _moves(target, numbers, bounds)
        if found is None:
            return None
        moves += found
    return moves


def _moves(target: str, numbers: torch.Tensor, bounds: Sequence[int]) -> list[RowMove] | None:
    """Take apart `numbers`, the row that each row of `target` was: every source in one piece, every row once."""
    ordered, rows = numbers.sort()
    if not torch.equal(ordered, ordered.round()) or bool((ordered.diff() == 0).any()):
        return None
    if int(ordered[0]) < bounds[0] or int(ordered[-1]) >= bounds[-1]:
        return None
    cuts = torch.searchsorted(ordered, torch.tensor(bounds, dtype=ordered.dtype)).tolist()
    moves = []
    for source, (low, high) in enumerate(pairwise(cuts)):
        if low == high:
            continue
        first, last = int(ordered[low]) - bounds[source], int(ordered[high - 1]) + 1 - bounds[source]
        if last - first != high - low:
            return None
        moves.append(RowMove(source, first, last, target, rows[low:high]))
    return moves
