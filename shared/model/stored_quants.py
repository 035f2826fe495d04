"""Checkpoints that arrive quantised."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layermesh.shared.checkpoints.packing import Packing, is_packed
from layermesh.shared.checkpoints.tensors import Checkpoint
from layermesh.shared.errors import UnsupportedModelError
from layermesh.shared.model.recipes import Recipe


@dataclass(frozen=True, slots=True)
class QuantScheme:
    """How the weights of a checkpoint are quantised."""

    method: str


def take_quantisation(config: Any, config_dir: Path) -> tuple[Packing | None, QuantScheme | None]:
    """Take what `config` says of quantised weights out of it."""
    quantisation = config.__dict__.pop("quantization_config", None)
    if quantisation is None:
        return None, None
    values = quantisation if isinstance(quantisation, dict) else quantisation.to_dict()
    if is_packed({"quantization_config": values}):
        return Packing.parse(values, config_dir), None
    raise UnsupportedModelError(f"{config_dir.name} is quantised, which layermesh cannot read yet.")


def quantised_recipes(checkpoint: Checkpoint, model: Any, scheme: QuantScheme) -> list[Recipe]:
    raise NotImplementedError
