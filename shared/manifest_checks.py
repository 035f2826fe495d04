"""What has to be true of a manifest, which may come from anywhere; all of this raises ValueError where it is not."""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, Final

from layermesh.shared.checkpoints.decoding import row_bytes
from layermesh.shared.checkpoints.layout import check_name, check_shape
from layermesh.shared.fingerprint import CONFIG_FILES, SAMPLE_DIGEST_BYTES, TensorEntry
from layermesh.shared.parts import EMBED, HEAD, PART_NAME, REST

MAX_MODEL_BYTES: Final = 1 << 46
MAX_NAME_LENGTH: Final = 1000  # of what a user calls a model, a path perhaps
_HERE: Final = Path("the manifest")
_MAX_WORD: Final = 60


def checked_files(told: Any) -> dict[str, bytes]:
    """Return the configuration files, by name."""
    files = {_text(name): content for name, content in _table(told).items()}
    if CONFIG_FILES[0] not in files or not files.keys() <= set(CONFIG_FILES):
        raise ValueError(f"its files are {ascii(sorted(files))[:80]}")
    if not all(isinstance(content, bytes) for content in files.values()):
        raise ValueError("a file of it is none")
    return files


def checked_tensors(told: Any) -> dict[str, TensorEntry]:
    """Return the table of tensors; raises CheckpointError too."""
    tensors = {_text(name): _tensor(name, *entry) for name, entry in _table(told).items()}
    if sum(tensor.num_bytes for tensor in tensors.values()) > MAX_MODEL_BYTES:
        raise ValueError("no model is that large")
    return tensors


def _tensor(name: str, encoding: Any, shape: Any, num_bytes: Any, sample: Any) -> TensorEntry:
    check_name(_HERE, name)
    checked = check_shape(_HERE, name, shape)
    if not isinstance(sample, bytes) or len(sample) != SAMPLE_DIGEST_BYTES:
        raise ValueError(f"{name} has no sample")
    expected = prod(checked[:-1]) * row_bytes(_text(encoding, _MAX_WORD), checked[-1] if checked else 1)
    if type(num_bytes) is not int or num_bytes != expected:
        raise ValueError(f"{name} has {ascii(num_bytes)[:40]} bytes, where {encoding} {list(checked)} takes {expected}")
    return TensorEntry(encoding, checked, num_bytes, sample)


def checked_parts(told: Any, tensors: Mapping[str, TensorEntry]) -> dict[str, tuple[str, ...]]:
    """Return the tensors of each part."""
    parts = _names(told)
    placed = [name for names in parts.values() for name in names]
    if len(set(placed)) < len(placed) or not tensors.keys() >= set(placed) or not all(parts.values()):
        raise ValueError("its parts are not those of its tensors")
    return parts


def checked_needs(told: Any, parts: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Return the parts that each block needs."""
    needs = _names(told)
    layers = [f"layer {index}" for index in range(len(needs) - 3)]
    if needs.keys() != {REST, EMBED, HEAD, *layers}:
        raise ValueError("its blocks do not follow each other")
    if not all(parts.keys() >= set(needed) for needed in needs.values()):
        raise ValueError("a block of it needs a part that there is not")
    return needs


def checked_name(value: Any) -> str:
    """Return what the model is called."""
    if not _text(value, MAX_NAME_LENGTH).isprintable():
        raise ValueError(f"no model is called {ascii(value)[:80]}")
    return str(value)


def checked_word(value: Any) -> str:
    """Return a short name of something."""
    return _text(value, _MAX_WORD)


def _names(told: Any) -> dict[str, tuple[str, ...]]:
    return {_part(part): tuple(map(_text, names)) for part, names in _table(told).items()}


def _part(name: Any) -> str:
    if PART_NAME.fullmatch(_text(name)) is None:
        raise ValueError(f"no part is called {ascii(name)[:40]}")
    return str(name)


def _text(value: Any, max_length: int = MAX_NAME_LENGTH) -> str:
    if not isinstance(value, str) or len(value) > max_length:
        raise ValueError(f"{ascii(value)[:40]} is no name")
    return value


def _table(value: Any) -> Mapping[Any, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{ascii(value)[:40]} is no table")
    return value
