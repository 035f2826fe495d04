"""What a model should be packed into, and what identifies it."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from layermesh.shared.checkpoints.json_files import unreadable
from layermesh.shared.checkpoints.packing import VERSION
from layermesh.shared.checkpoints.tensors import Checkpoint
from layermesh.shared.errors import CheckpointError
from layermesh.shared.quant.choosing import has_own_forms
from layermesh.shared.quant.sizes import DEFAULT_GROUP, GROUP_SIZES, KINDS
from layermesh.shared.quant.tiles import packing_tile


@dataclass(frozen=True, slots=True)
class PackRequest:
    """Pack to `bits` per weight with `group_size` weights to a scale; `fused` where layers were put together differently."""

    bits: int
    group_size: int = DEFAULT_GROUP
    fused: bool = False

    def __post_init__(self) -> None:
        if self.bits not in KINDS.values() or self.group_size not in GROUP_SIZES:
            raise ValueError(f"nothing is packed to {self.bits} bits in groups of {self.group_size}")

    @property
    def label(self) -> str:
        """What it is called in names: int4, or int8-g128 where the groups are not the usual ones."""
        return f"int{self.bits}" + (f"-g{self.group_size}" if self.group_size != DEFAULT_GROUP else "")


@dataclass(frozen=True, slots=True)
class Source:
    """The files a model is packed from, as they are now: path, bytes, time of change in nanoseconds."""

    files: tuple[tuple[str, int, int], ...]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "Source":
        """Look at the files of `checkpoint`; raises CheckpointError where one is gone."""
        paths = {tensor.path for tensor in checkpoint.tensors.values()}
        if checkpoint.gguf_architecture is None:
            paths.add(checkpoint.config_dir / "config.json")
        elif checkpoint.path.is_file():
            paths.add(checkpoint.path)  # of several pieces the first describes the model, and need not have any tensors
        return cls(tuple(_look(path) for path in sorted(paths)))

    def key(self, request: PackRequest) -> str:
        """Return what tells packs of different sources, settings and formats apart."""
        parts: Iterable[object] = (
            *self.files, request.bits, request.group_size, request.fused, packing_tile(), VERSION,
            request.bits == 4 and has_own_forms(),
        )  # fmt: skip
        return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:32]

    def check_unchanged(self) -> None:
        """Raise CheckpointError if a file is no longer what it was."""
        for noted in self.files:
            if _look(Path(noted[0])) != noted:
                raise CheckpointError(f"{noted[0]} changed while the model was being packed. Pack it again.")


def _look(path: Path) -> tuple[str, int, int]:
    try:
        status = path.stat()
        return str(path.resolve()), status.st_size, status.st_mtime_ns
    except OSError as error:
        raise unreadable(path, error) from error
