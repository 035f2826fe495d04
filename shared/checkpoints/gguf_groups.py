"""Which tensors of a GGUF file make which parameters of the model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import prod

import torch

from layermesh.shared.errors import CheckpointError

Shape = tuple[int, ...]
Combine = Callable[[Sequence[torch.Tensor]], dict[str, torch.Tensor]]


@dataclass(frozen=True, slots=True)
class GGUFGroup:
    """Tensors of a GGUF file that are needed together, and the parameters they make.

    `targets` are names in the model's `state_dict()`, `sources` the file's names in the order that `combine` wants.
    `plain`: one source is one target as it is, so it may be decoded straight into place.
    """

    targets: tuple[str, ...]
    sources: tuple[str, ...]
    shapes: tuple[Shape, ...]
    source_shapes: tuple[Shape, ...]
    plain: bool
    convert: Combine = field(repr=False, compare=False)

    @property
    def rows_plain(self) -> bool:
        """Whether row i of the target is row i of the source, so that rows may be read one by one."""
        return self.plain and len(self.shapes[0]) > 1

    def target_rows(self) -> list[torch.Tensor] | None:
        """Return for each source which row of the target each of its rows becomes, unchanged: int64 [source_rows].

        A row runs along the last dimension, and rows count through all others. None where rows are altered or cut: then
        only `combine` will do. With it, a group too large to decode at once is decoded a few rows at a time.
        """
        if len(self.targets) != 1 or any(len(shape) < 2 for shape in (*self.shapes, *self.source_shapes)):
            return None
        counts = [prod(shape[:-1]) for shape in self.source_shapes]
        starts = list(accumulate(counts, initial=0))
        numbered = [
            torch.arange(start + 1, start + count + 1, dtype=torch.float64).view(*shape[:-1], 1)
            for start, count, shape in zip(starts, counts, self.source_shapes, strict=False)
        ]
        try:  # the sources with their columns gone and each row's number in their place
            made = self.convert(numbered)[self.targets[0]]
        except (ValueError, RuntimeError, IndexError):
            return None
        if tuple(made.shape) != (*self.shapes[0][:-1], 1):
            return None
        numbers, order = made.reshape(-1).sort()
        if not torch.equal(numbers, torch.arange(1, starts[-1] + 1, dtype=torch.float64)):
            return None
        return [order[start : start + count] for start, count in zip(starts, counts, strict=False)]

    def combine(self, decoded: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the targets made of the `decoded` sources; they may share memory with them.

        decoded: float32, contiguous, on the CPU, of the sources' shapes. Raises CheckpointError where the result
        has not the shapes that the model wants.
        """
        combined = self.convert(decoded)
        for target, shape in zip(self.targets, self.shapes, strict=True):
            if target not in combined or combined[target].shape != shape:
                found = list(combined[target].shape) if target in combined else "nothing"
                raise CheckpointError(
                    f"{', '.join(self.sources)} make {found} for {target}, where the model has {list(shape)}. The file "
                    "does not fit its own metadata: fetch it again, or look for another conversion."
                )
        return combined
