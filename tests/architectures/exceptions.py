"""Architectures that are not equal to plain transformers in some way of running them, and why."""

_DIVIDED = ("two stages", "three stages")


def _in(ways: tuple[str, ...], reason: str) -> dict[str, str]:
    return dict.fromkeys(ways, reason)


_STATE = "keeps its state in a list of its own that is indexed by layer, not in a cache that could hold places"
_REFEEDS = "is fed earlier tokens again in every step, so a frame's new tokens are not what its layers see"
_SHARED_KEYS = "its last layers use the keys and values of earlier ones, which a frame does not carry"

EXCEPTIONS: dict[str, dict[str, str]] = {
    "cpmant": _in(_DIVIDED, _REFEEDS),
    "gemma3n_text": _in(_DIVIDED, _SHARED_KEYS),
    "gemma4_text": _in(_DIVIDED, _SHARED_KEYS),
    "hrm_text": _in(_DIVIDED, "goes through its layers several times per token; refused with that reason"),
    "inkling2_text": _in(_DIVIDED, "its model collects states of earlier layers between the layers, out of any layer's sight"),
    "recurrent_gemma": _in(("three sessions",), "keeps its recurrent state in its modules, one for all sequences"),
    "reformer": _in(_DIVIDED, "runs its layers inside an autograd function and takes their outputs apart by name"),
    "rwkv": _in(_DIVIDED, _STATE),
    "xlm": _in(_DIVIDED, "has no layer modules, only parallel lists of attentions, norms and feed-forwards"),
    "xlnet": _in(_DIVIDED, _REFEEDS),
    "xlstm": _in(_DIVIDED, _STATE),
}
