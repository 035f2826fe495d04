"""Which tensors of a GGUF file make which parameters of the model."""

from dataclasses import dataclass, field

import torch

from layermesh.shared.checkpoints.rows import Combine, Shape
from layermesh.shared.errors import CheckpointError

_BLANK = -1.0  # a value that every family's conversion takes: mamba's is the logarithm of the negative


@dataclass(frozen=True, slots=True)
class GGUFGroup:
    """Tensors of a GGUF file that are needed together, and the parameters they make.

    `targets` are names in the model's `state_dict()`, `sources` the file's names in the order that `convert` wants.
    `plain`: one source is one target as it is, so it may be decoded straight into place.
    """

    targets: tuple[str, ...]
    sources: tuple[str, ...]
    shapes: tuple[Shape, ...]
    source_shapes: tuple[Shape, ...]
    plain: bool
    convert: Combine = field(repr=False, compare=False)

    def check_made_shapes(self) -> None:
        """Convert stand-ins that take next to no memory, and see whether the targets come out as the model wants them.

        Raises CheckpointError where they do not.
        """
        blank = [torch.tensor(_BLANK).expand(shape) for shape in self.source_shapes]
        try:
            made = {name: tuple(tensor.shape) for name, tensor in self.convert(blank).items()}
        except Exception as error:  # any code of any family, given shapes it may not expect
            raise self._misfit(f"nothing ({error})", self.targets[0], self.shapes[0]) from error
        for target, shape in zip(self.targets, self.shapes, strict=True):
            if made.get(target) != shape:
                raise self._misfit(str(list(made[target])) if target in made else "nothing", target, shape)

    def _misfit(self, found: str, target: str, shape: Shape) -> CheckpointError:
        return CheckpointError(
            f"{', '.join(self.sources)} make {found} for {target}, where the model has {list(shape)}. The file "
            "does not fit its own metadata: fetch it again, or look for another conversion."
        )
