"""Architectures that are not equal to plain transformers in some way of running them, and why."""

from layermesh.shared.model.dividing import UNDIVIDED

_DIVIDED = ("two stages", "three stages")


def _in(ways: tuple[str, ...], reason: str) -> dict[str, str]:
    return dict.fromkeys(ways, reason)


EXCEPTIONS: dict[str, dict[str, str]] = {name: _in(_DIVIDED, reason) for name, reason in UNDIVIDED.items()} | {
    "recurrent_gemma": _in(("three sessions",), "keeps its recurrent state in its modules, one for all sequences"),
}
