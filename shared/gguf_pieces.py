"""The names of the files of a GGUF model in several pieces: NAME-00001-of-00003.gguf and so on, as llama.cpp has them."""

import re
from dataclasses import dataclass
from typing import Final

_PIECE: Final = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.gguf)", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True)
class PieceName:
    """What the name of one piece says: that it is number `number`, from 1 on, of `count`."""

    stem: str
    number: int
    count: int
    suffix: str

    @classmethod
    def parse(cls, name: str) -> "PieceName | None":
        """Return what `name`, of a file or its path, says; None where it is not the name of a piece."""
        match = _PIECE.fullmatch(name)
        if match is None or not 1 <= int(match[2]) <= int(match[3]):
            return None
        return cls(match[1], int(match[2]), int(match[3]), match[4])

    def all_names(self) -> tuple[str, ...]:
        """Return the names of all pieces, in order."""
        return tuple(f"{self.stem}-{number:05d}-of-{self.count:05d}{self.suffix}" for number in range(1, self.count + 1))


def piece_names(name: str) -> tuple[str, ...]:
    """Return the names of all files that the one called `name` belongs to: itself alone where it is no piece."""
    piece = PieceName.parse(name)
    return (name,) if piece is None else piece.all_names()
