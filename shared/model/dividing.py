"""Families whose layers cannot be divided among machines, and why."""

from typing import Any, Final

_STATE: Final = "keeps its state in a list of its own that is indexed by layer, not in a cache that could hold places"
_REFEEDS: Final = "is fed earlier tokens again in every step, so a frame's new tokens are not what its layers see"
_REPEATS: Final = "goes through its layers several times per token"
_SHARED_KEYS: Final = "its last layers use the keys and values of earlier ones, which a frame does not carry"

UNDIVIDED: Final[dict[str, str]] = {
    "cpmant": _REFEEDS,
    "dory": _REPEATS,
    "gemma3n_text": _SHARED_KEYS,
    "gemma4_text": _SHARED_KEYS,
    "hrm_text": _REPEATS,
    "inkling2_text": "its model collects states of earlier layers between the layers, out of any layer's sight",
    "reformer": "runs its layers inside an autograd function and takes their outputs apart by name",
    "rwkv": _STATE,
    "xlm": "has no layer modules, only parallel lists of attentions, norms and feed-forwards",
    "xlnet": _REFEEDS,
    "xlstm": _STATE,
}


STATE_IN_MODULES: Final = frozenset({"recurrent_gemma"})  # one state for all sequences, which therefore come one by one


def keeps_state_in_modules(model: Any) -> bool:
    """Return whether sequences of `model` share a state, so that only one may be under way."""
    return model.config.get_text_config(decoder=True).model_type in STATE_IN_MODULES


def why_undivided(model: Any) -> str | None:
    """Return why the layers of `model` all have to run on one machine; None where they need not."""
    config = model.config.get_text_config(decoder=True)
    if getattr(config, "num_kv_shared_layers", 0):
        return _SHARED_KEYS
    return next((UNDIVIDED[name] for name in (config.model_type, model.config.model_type) if name in UNDIVIDED), None)
