"""GGUF models in several files: the pieces that belong together, read as one."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from layermesh.shared.checkpoints.gguf_header import MAX_TENSORS, GGUFHeader, read_gguf_header
from layermesh.shared.checkpoints.tensors import StoredTensor
from layermesh.shared.errors import CheckpointError
from layermesh.shared.gguf_pieces import PieceName, piece_names

_NUMBER: Final = "split.no"
_COUNT: Final = "split.count"
_NUM_TENSORS: Final = "split.tensors.count"
_ALIGNMENT: Final = "general.alignment"


def find_pieces(path: Path) -> list[Path]:
    """Return the files that belong to the one at `path` by their names, those that are there, in order; at least `path`."""
    return [path.with_name(name) for name in piece_names(path.name) if name == path.name or path.with_name(name).exists()]


def read_gguf(path: Path) -> GGUFHeader:
    """Return the head of the model that the GGUF file at `path` is, or is a piece of; its path is that of the first piece.

    Raises what `read_gguf_header` does, and CheckpointError for pieces that are missing or do not belong together.
    """
    given = read_gguf_header(path)
    count = given.metadata.get(_COUNT, 0)
    if count in (0, 1):
        return given
    paths = _all_pieces(path, count)
    pieces = [given if piece == path else read_gguf_header(piece) for piece in paths]
    for number, piece in enumerate(pieces):
        _check_place(piece, number, len(pieces))
    return _join(pieces)


def _all_pieces(path: Path, count: Any) -> list[Path]:
    name = PieceName.parse(path.name)
    if name is None or name.count != count:
        raise CheckpointError(
            f"{path} is one of {ascii(count)[:20]} pieces of a model, and is not called so. Rename the pieces as they were "
            "published: NAME-00001-of-00003.gguf, NAME-00002-of-00003.gguf and so on."
        )
    paths = [path.with_name(each) for each in name.all_names()]
    missing = [piece.name for piece in paths if not piece.is_file()]
    if missing:
        raise CheckpointError(
            f"{path.parent} lacks {len(missing)} of the {count} pieces of this model, {missing[0]} first. Fetch all of them "
            "into one folder."
        )
    return paths


def _check_place(piece: GGUFHeader, number: int, count: int) -> None:
    told = piece.metadata.get(_NUMBER), piece.metadata.get(_COUNT)
    if told == (number, count):
        return
    if told[1] is None:
        raise _foreign(piece, "says of itself that it is no piece of any model")
    position = told[0] + 1 if isinstance(told[0], int) else told[0]
    raise _foreign(piece, f"says of itself that it is piece {ascii(position)[:20]} of {ascii(told[1])[:20]}")


def _foreign(piece: GGUFHeader, what: str) -> CheckpointError:
    return CheckpointError(
        f"{piece.path} {what}, so it does not belong to the pieces beside it. Fetch all pieces of one model anew, under "
        "the names that they are published with."
    )


def _join(pieces: Sequence[GGUFHeader]) -> GGUFHeader:
    first = pieces[0]
    tensors: dict[str, StoredTensor] = {}
    for piece in pieces:
        _check_metadata(first, piece)
        for name, tensor in piece.tensors.items():
            if name in tensors:
                raise _foreign(piece, f"has the tensor {name}, which {tensors[name].path.name} has too")
            tensors[name] = tensor
    expected = first.metadata.get(_NUM_TENSORS)
    if len(tensors) != expected or len(tensors) > MAX_TENSORS:
        raise CheckpointError(
            f"{first.path} promises {ascii(expected)[:20]} tensors in its {len(pieces)} pieces, and they have {len(tensors)}. "
            "Some are of another model or incomplete: fetch all of them anew."
        )
    return replace(first, tensors=tensors, files=tuple(file for piece in pieces for file in piece.files))


def _check_metadata(first: GGUFHeader, piece: GGUFHeader) -> None:
    """Refuse a piece that says anything of the model which the first one does not say, too: only that one's keys are read."""
    for key, value in piece.metadata.items():
        is_own = key == _NUMBER or piece is first
        alike = first.metadata.get(key) == value and first.array_lengths.get(key) == piece.array_lengths.get(key)
        if not is_own and not (key in first.metadata and alike):
            raise _foreign(piece, f"says something else than {first.path.name} of {ascii(key)[1:-1][:80]}")
    if piece.tensors and piece.metadata.get(_ALIGNMENT) != first.metadata.get(_ALIGNMENT):
        raise _foreign(piece, f"does not say the {_ALIGNMENT} that {first.path.name} says")
