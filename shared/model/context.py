"""The most tokens that a sequence of a model may have."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from layermesh.shared.errors import UsageError

if TYPE_CHECKING:
    from layermesh.shared.model.definition import ModelDefinition

_LENGTH_NAMES: Final = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")
_DYNAMIC: Final = "dynamic"


def stated_context(config: Any) -> int | None:
    """Return the length that a text model's configuration allows; None where it sets no limit.

    Some configurations keep the length before scaling in `max_position_embeddings`: for YaRN the limit is the original length
    times the factor. Where the length is stated after scaling (Llama 3, LongRoPE, Gemma's factors for some layers), it is the
    limit; so it is for linear scaling, which is published with either. Dynamic scaling depends on the length so far, and this
    module sets the limit where it would begin.
    """
    stated = next((length for name in _LENGTH_NAMES if (length := _length(config, name))), None)
    ropes = _rope_settings(config)
    if stated is None or ropes is None:
        return stated
    return max(stated, *(_scaled(rope, stated) for rope in ropes.values()))


def choose_context(definition: "ModelDefinition", asked: int | None, model: str) -> int | None:
    """Return the limit to hold sequences to: what the caller asks for, else what the model states.

    Raises UsageError for a longer one where the model has no positions beyond what it states.
    """
    stated = definition.context_length
    if asked is None:
        return stated
    if stated is not None and asked > stated and (why := why_not_longer(definition)) is not None:
        raise UsageError(f"a context of {asked} tokens is too long for {model}: {why}. Use --context {stated} or less.")
    return asked


def context_notices(definition: "ModelDefinition", chosen: int | None) -> tuple[str, ...]:
    """Return what a user should know about a context longer than the model states."""
    stated = definition.context_length
    if stated is None or chosen is None or chosen <= stated:
        return ()
    return (f"the model was made for {stated} tokens: with a context of {chosen} the text beyond them may be nonsense",)


def _length(config: Any, name: str) -> int | None:
    length = getattr(config, name, None)
    return length if isinstance(length, int) and not isinstance(length, bool) and length > 0 else None


def _rope_settings(config: Any) -> dict[str, Mapping[str, Any]] | None:
    """Return the settings of position scaling by the kind of layer; "" where there is one for all."""
    ropes = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    if not isinstance(ropes, Mapping):
        return None
    nested = {str(kind): rope for kind, rope in ropes.items() if isinstance(rope, Mapping)}
    return nested or {"": ropes}


def _kind(rope: Mapping[str, Any]) -> str:
    return str(rope.get("rope_type") or rope.get("type") or "default")


def _scaled(rope: Mapping[str, Any], stated: int) -> int:
    original = rope.get("original_max_position_embeddings") or stated
    return _times(original, rope.get("factor")) if _kind(rope) == "yarn" else stated


def _times(length: object, factor: object) -> int:
    is_factor = isinstance(factor, int | float) and not isinstance(factor, bool) and 1 <= factor < 2**32
    return int(length * factor) if isinstance(length, int) and is_factor and isinstance(factor, int | float) else 0


def why_not_longer(definition: "ModelDefinition") -> str | None:
    """Return why positions end where the configuration says; None where they are computed for any length."""
    stated = definition.context_length
    ropes = _rope_settings(definition.model.config.get_text_config(decoder=True)) or {}
    if any(_DYNAMIC in _kind(rope) for rope in ropes.values()):
        return f"its position scaling (dynamic) changes with the length beyond {stated}, which layermesh does not compute"
    buffers = dict(definition.model.named_buffers())
    if not any(name.endswith("inv_freq") for name in buffers):
        return f"it has positions up to {stated} only"
    return None
