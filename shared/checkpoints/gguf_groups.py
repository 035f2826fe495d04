"""Which tensors of a GGUF file make which parameters of the model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from layermesh.shared.checkpoints.rows import Shape
from layermesh.shared.errors import CheckpointError

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
