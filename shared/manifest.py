"""A model as it is described to a machine that has no file of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

from msgpack import UnpackException, packb, unpackb

from layermesh.shared.checkpoints.tensors import Checkpoint
from layermesh.shared.division import divide
from layermesh.shared.errors import CheckpointError, UnsupportedModelError
from layermesh.shared.fingerprint import TensorEntry, fingerprint, read_config_files, read_entries
from layermesh.shared.manifest_checks import (
    checked_files,
    checked_name,
    checked_needs,
    checked_parts,
    checked_tensors,
    checked_word,
)
from layermesh.shared.model.blocks import BlockTable
from layermesh.shared.parts import EMBED, HEAD, REST, Placed, lay_out
from layermesh.shared.spans import LayerSpan

MAX_MANIFEST_BYTES: Final = 16 << 20
MANIFEST_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything that it takes to build a model's definition and its block table: all but the weights.

    `name` is what the user calls the model. `files` are those of its configuration, by name, `tensors` all that its checkpoint
    stores. `parts` has the names of the tensors in each part, in order, and `needs` the parts of each block: "rest", "embed",
    "layer 0" and so on, "head". `gguf_architecture` is as in Checkpoint.
    """

    fingerprint: str
    name: str
    gguf_architecture: str | None
    files: Mapping[str, bytes] = field(repr=False)
    tensors: Mapping[str, TensorEntry] = field(repr=False)
    parts: Mapping[str, tuple[str, ...]] = field(repr=False)
    needs: Mapping[str, tuple[str, ...]] = field(repr=False)

    @classmethod
    def of(cls, checkpoint: Checkpoint, table: BlockTable, name: str) -> "Manifest":
        """Describe a checkpoint whose blocks are those of `table`, reading a little of every tensor.

        Raises CheckpointError where its files cannot be read, UnsupportedModelError for more tensors than can be described.
        """
        files, tensors, architecture = read_config_files(checkpoint), read_entries(checkpoint), checkpoint.gguf_architecture
        division = divide(table)
        made = cls(
            fingerprint=fingerprint(files, tensors, architecture),
            name=name,
            gguf_architecture=architecture,
            files=files,
            tensors=tensors,
            parts=division.parts,
            needs=division.needs,
        )
        if len(made.to_bytes()) > MAX_MANIFEST_BYTES:
            raise UnsupportedModelError(f"{name} has {len(tensors):,} tensors, too many to be divided. Run it with --alone.")
        return made

    @classmethod
    def parse(cls, data: bytes) -> "Manifest":
        """Read what `to_bytes` wrote, wherever it comes from.

        Raises CheckpointError for anything that makes no sense or has not the fingerprint that it says.
        """
        if len(data) > MAX_MANIFEST_BYTES:
            raise CheckpointError(f"a manifest of {len(data):,} bytes is larger than any model's. Send the model anew.")
        try:
            made = cls._checked(unpackb(data, strict_map_key=True))
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError, UnpackException) as error:
            raise CheckpointError(f"a model's manifest makes no sense ({str(error)[:160]}). Send the model anew.") from error
        if fingerprint(made.files, made.tensors, made.gguf_architecture) != made.fingerprint:
            raise CheckpointError(f"the manifest of {made.name} describes another model than it says. Send the model anew.")
        return made

    @classmethod
    def _checked(cls, told: Any) -> "Manifest":
        if told["version"] != MANIFEST_VERSION:
            raise ValueError(f"its version is {ascii(told['version'])[:20]} and not {MANIFEST_VERSION}")
        architecture = told["gguf_architecture"]
        tensors = checked_tensors(told["tensors"])
        parts = checked_parts(told["parts"], tensors)
        return cls(
            fingerprint=str(told["fingerprint"]),
            name=checked_name(told["name"]),
            gguf_architecture=None if architecture is None else checked_word(architecture),
            files=checked_files(told["files"]),
            tensors=tensors,
            parts=parts,
            needs=checked_needs(told["needs"], parts),
        )

    def to_bytes(self) -> bytes:
        """Return it as it is stored and sent."""
        tensors = {
            name: [tensor.encoding, tensor.shape, tensor.num_bytes, tensor.sample] for name, tensor in self.tensors.items()
        }
        told = {
            "version": MANIFEST_VERSION,
            "fingerprint": self.fingerprint,
            "name": self.name,
            "gguf_architecture": self.gguf_architecture,
            "files": dict(self.files),
            "tensors": tensors,
            "parts": dict(self.parts),
            "needs": dict(self.needs),
        }
        return cast("bytes", packb(told))

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.needs.keys() - {REST, EMBED, HEAD})

    def parts_for(self, span: LayerSpan, *, with_head: bool, with_embeddings: bool) -> tuple[str, ...]:
        """Return the parts that a machine needs for the layers of `span`, in order.

        Raises ValueError for layers that the model has not.
        """
        if span.end > self.num_layers:
            raise ValueError(f"{self.name} has {self.num_layers} layers, so there are none {span}")
        blocks = [REST, *(f"layer {index}" for index in span)]
        blocks += [EMBED] * with_embeddings + [HEAD] * with_head
        needed = {part for block in blocks for part in self.needs[block]}
        return tuple(part for part in self.parts if part in needed)

    def layout(self, part: str) -> tuple[Placed, ...]:
        """Return where each tensor of `part` lies in it."""
        return lay_out((name, self.tensors[name].num_bytes) for name in self.parts[part])

    def part_bytes(self, part: str) -> int:
        """Return the size of `part`."""
        return max((placed.end for placed in self.layout(part)), default=0)
