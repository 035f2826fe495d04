"""What a packed model says of itself in its config.json, under `quantization_config`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from layermesh.shared.errors import CheckpointError, UnsupportedModelError
from layermesh.shared.quant.forms import QuantForm
from layermesh.shared.quant.sizes import KINDS

METHOD: Final = "layermesh"
VERSION: Final = 3
TILES: Final = (32, 64)


@dataclass(frozen=True, slots=True)
class PackedTable:
    """An embedding's rows as they lie in a pack: `encoding` is one of StoredTensor's."""

    encoding: str
    shape: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Packing:
    """How a model is packed: asked for were `bits` and `group_size`; `modules` has the form of each packed linear layer.

    `tile` is the rows per tile that its processor reads. `embeddings` has the tables stored in an encoding of GGUF's, by the
    parameter's name. `head_bounds` are the rows at which pieces of the output projection begin, and the last one's end; empty
    where it is not packed. `fused` says that layers were put together differently before they were packed.
    """

    bits: int
    group_size: int
    tile: int
    modules: Mapping[str, QuantForm]
    embeddings: Mapping[str, PackedTable]
    head_bounds: tuple[int, ...] = ()
    fused: bool = False

    def to_config(self) -> dict[str, Any]:
        """Return it as `quantization_config`."""
        return {
            "quant_method": METHOD,
            "version": VERSION,
            "bits": self.bits,
            "group_size": self.group_size,
            "tile": self.tile,
            "fused": self.fused,
            "head_bounds": list(self.head_bounds),
            "embeddings": {name: [table.encoding, list(table.shape)] for name, table in self.embeddings.items()},
            "modules": {name: [form.bits, form.group, int(form.nested)] for name, form in self.modules.items()},
        }

    @classmethod
    def parse(cls, config: Mapping[str, Any], where: object) -> "Packing":
        """Read what `to_config` wrote, for the model at `where`.

        Raises UnsupportedModelError for another version of the format, CheckpointError for anything else that makes no sense.
        """
        if config.get("version") != VERSION:
            raise UnsupportedModelError(
                f"{where} was packed by another version of layermesh (format {str(config.get('version'))[:20]}, this one "
                f"reads {VERSION}). Pack the original again: layermesh quantize."
            )
        try:
            return cls(
                bits=_among(config["bits"], tuple(KINDS.values())),
                group_size=_whole(config["group_size"]),
                tile=_among(config["tile"], TILES),
                modules={str(name): _form(*form) for name, form in config["modules"].items()},
                embeddings={str(name): _table(*table) for name, table in config["embeddings"].items()},
                head_bounds=_bounds(config["head_bounds"]),
                fused=bool(config["fused"]),
            )
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"{where} describes its packed weights in a way that makes no sense ({error}). Pack the original again: "
                "layermesh quantize."
            ) from error


def is_packed(config: Mapping[str, Any]) -> bool:
    """Return whether a config.json, or the configuration made of it, is that of a packed model."""
    quantisation = config.get("quantization_config")
    return isinstance(quantisation, Mapping) and quantisation.get("quant_method") == METHOD


def _form(bits: object, group: object, nested: object) -> QuantForm:
    return QuantForm(_whole(bits), _whole(group), bool(_among(nested, (0, 1))))


def _table(encoding: object, shape: Any) -> PackedTable:
    rows, columns = map(_whole, shape)
    return PackedTable(str(encoding), (rows, columns))


def _bounds(value: Any) -> tuple[int, ...]:
    bounds = tuple(_whole(bound) for bound in value)
    if bounds and (len(bounds) < 2 or bounds[0] != 0 or list(bounds) != sorted(set(bounds))):
        raise ValueError(f"the pieces of the head do not follow each other: {str(bounds)[:80]}")
    return bounds


def _among(value: object, allowed: tuple[int, ...]) -> int:
    number = _whole(value)
    if number not in allowed:
        raise ValueError(f"{number} is none of {allowed}")
    return number


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{str(value)[:40]} is no whole number")
    return value
