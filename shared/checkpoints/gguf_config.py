"""The transformers configuration of a model that only its GGUF metadata describes."""

from typing import Any

from layermesh.shared.checkpoints.gguf_families import FAMILIES
from layermesh.shared.checkpoints.gguf_header import GGUFHeader
from layermesh.shared.checkpoints.gguf_keys import FamilyKeys
from layermesh.shared.checkpoints.gguf_rope import check_factors_read
from layermesh.shared.errors import CheckpointError, LayermeshError, UnsupportedModelError


def make_config(header: GGUFHeader) -> Any:
    """Return the transformers configuration for `header`, in which everything stands that the file's own keys say.

    Raises UnsupportedModelError for an architecture or a key that layermesh does not apply, CheckpointError for metadata
    that make no model.
    """
    keys = FamilyKeys(header)
    try:
        model_type, values = _family(header)(keys)
        keys.check_all_read()
        check_factors_read(keys)
        config = _build(header, model_type, values)
    except LayermeshError:
        raise
    except Exception as error:  # metadata of another type than they should be, and whatever transformers makes of them
        raise CheckpointError(
            f"{header.path}: its metadata make no {header.architecture} model ({type(error).__name__}: {error}). Fetch "
            "the file again, or look for another conversion of this model."
        ) from error
    _check_values(header, config, values)
    return config


def _family(header: GGUFHeader) -> Any:
    if header.architecture not in FAMILIES:
        raise UnsupportedModelError(
            f"{header.path} is of the architecture {ascii(header.architecture)[:60]}, which layermesh does not read from "
            f"GGUF. It reads {', '.join(sorted(FAMILIES))}. Look for this model in safetensors."
        )
    return FAMILIES[header.architecture]


def _build(header: GGUFHeader, model_type: str, values: dict[str, Any]) -> Any:
    from transformers import CONFIG_MAPPING

    from layermesh.shared.transformers_api import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if model_type not in CONFIG_MAPPING or model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UnsupportedModelError(
            f"{header.path} is of the architecture {header.architecture}, which the installed transformers does not have. "
            "Install a newer one (pip install -U transformers), or look for another model."
        )
    config = CONFIG_MAPPING[model_type](**values)
    config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]]
    return config


def _check_values(header: GGUFHeader, config: Any, values: dict[str, Any]) -> None:
    """Check that a configuration read back from a file still has `values`; raises UnsupportedModelError."""
    again = type(config).from_dict(config.to_dict())
    stated = again.to_dict()
    for name, value in values.items():
        made = stated[name] if name in stated else getattr(again, name, None)
        if isinstance(value, dict) and isinstance(made, dict):
            same = all(made.get(key) == each for key, each in value.items())
        else:
            same = made == value
        if not same:
            raise UnsupportedModelError(
                f"cannot run {header.path}: its metadata make {name} = {ascii(value)[:80]}, and the installed transformers "
                f"makes {ascii(made)[:80]} of it. Use this model's safetensors."
            )


def directly_loaded_architectures() -> frozenset[str]:
    """Return the GGUF architectures that transformers, from 5.17, loads like any other checkpoint."""
    from layermesh.shared.transformers_api import GGUF_ARCHS

    return frozenset(GGUF_ARCHS)
