"""What a tokenizer.json may ask for, seen before it is loaded: the library does what it says, whatever memory that takes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

MAX_BYTES: Final = 200_000_000
MAX_GROWTH: Final = 1024  # characters that one may become
MAX_STEPS: Final = 256
MAX_PADDING: Final = 1 << 17
MAX_CHARSMAP: Final = 4 << 20
_STEPS: Final = ("normalizer", "pre_tokenizer", "post_processor", "decoder")


def check_tokenizer_file(path: Path) -> None:
    """Raise ValueError where the tokenizer at `path` would blow a text up; one that is no JSON is left to its reader."""
    if not path.is_file():
        if path.exists():
            raise ValueError("it is no plain file")
        return
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"it has {path.stat().st_size:,} bytes, too many for its kind")
    try:
        tokenizer = json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError:
        return
    if isinstance(tokenizer, dict):
        check_steps(tokenizer)


def check_steps(tokenizer: dict[str, Any]) -> None:
    """Raise ValueError for steps of a tokenizer that together make more of a text than any text needs."""
    for name in _STEPS:
        steps = list(_flat(tokenizer.get(name)))
        if len(steps) > MAX_STEPS:
            raise ValueError(f"its {name} has {len(steps)} steps")
        growth = 1.0
        for step in steps:
            growth *= _growth(step)
            if growth > MAX_GROWTH:
                raise ValueError(f"its {name} makes more than {MAX_GROWTH} characters of one")
    padding = tokenizer.get("padding")
    if isinstance(padding, dict):
        _check_padding(padding)


def _flat(step: Any) -> Iterator[dict[str, Any]]:
    """Yield the steps inside `step`, in order, or itself; whatever has lists of steps counts as a sequence of them."""
    if isinstance(step, list):
        for inner in step:
            yield from _flat(inner)
    elif isinstance(step, dict):
        lists = [value for value in step.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
        yield from _flat(lists) if step.get("type") == "Sequence" else iter((step,))


def _growth(step: dict[str, Any]) -> float:
    """By how much a step may lengthen a text, beyond the few characters that any may add."""
    charsmap = step.get("precompiled_charsmap")
    if isinstance(charsmap, str) and len(charsmap) > MAX_CHARSMAP:
        raise ValueError(f"it has a table of {len(charsmap):,} characters")
    content, pattern = step.get("content"), step.get("pattern")
    if step.get("type") != "Replace" or not isinstance(content, str):
        return 1.0
    literal = pattern.get("String") if isinstance(pattern, dict) else None
    return max(len(content) / max(len(literal) if isinstance(literal, str) else 1, 1), 1.0)


def _check_padding(padding: dict[str, Any]) -> None:
    strategy = padding.get("strategy")
    lengths = [strategy.get("Fixed") if isinstance(strategy, dict) else None, padding.get("pad_to_multiple_of")]
    for length in lengths:
        if isinstance(length, int) and length > MAX_PADDING:
            raise ValueError(f"it pads every text to {length:,} tokens")
