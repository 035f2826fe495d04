"""Walking the head of a GGUF file field by field, never past its end and never holding a vocabulary.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import struct
from pathlib import Path
from typing import Any, BinaryIO, Final

from layermesh.shared.checkpoints.layout import truncated
from layermesh.shared.errors import CheckpointError

MAX_HEAD_BYTES: Final = 512 * 2**20
MAX_ARRAY_ELEMENTS: Final = 8_000_000  # in all arrays of a file together; the largest vocabularies with merges take 1.5
MAX_KEPT_ELEMENTS: Final = 4096
MAX_KEPT_TEXT: Final = 2**16

_FORMATS: Final = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_STRING: Final = 8
_ARRAY: Final = 9
_LENGTH: Final = struct.Struct("<Q")


class FieldReader:
    """Reads the fields of the GGUF file at `path` in order; every method raises CheckpointError for impossible ones."""

    def __init__(self, path: Path, file: BinaryIO, file_bytes: int) -> None:
        self.path = path
        self.position = 0
        self._file = file
        self._file_bytes = file_bytes
        self._elements_left = MAX_ARRAY_ELEMENTS

    def take(self, num_bytes: int) -> bytes:
        """Return the next `num_bytes` of the file."""
        self._advance(num_bytes)
        return self._file.read(num_bytes)

    def number(self, layout: str) -> Any:
        """Return the next number, laid out as `struct` says."""
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def text(self, max_length: int = MAX_KEPT_TEXT) -> str:
        """Return the next string, of at most `max_length` bytes."""
        length = self.number("<Q")
        if length > max_length:
            raise self.broken(f"a name of {length:,} bytes")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.broken("a name that is not UTF-8") from error

    def value(self) -> tuple[Any, int | None]:
        """Return the next typed value, and how many elements it has if it is an array.

        The value is None for what is too long to keep: vocabularies, merges, long texts.
        """
        kind = self.number("<I")
        if kind == _ARRAY:
            return self._array()
        if kind == _STRING:
            return self._long_text(), None
        if kind in _FORMATS:
            return self.number(_FORMATS[kind]), None
        raise self.broken(f"a value of the unknown type {kind}")

    def broken(self, what: str) -> CheckpointError:
        """Return the error for a head with `what` in it."""
        return CheckpointError(
            f"{self.path} is not a sound GGUF file: it has {what} at byte {self.position:,}. Fetch it again."
        )

    def _advance(self, num_bytes: int) -> None:
        if self.position + num_bytes > self._file_bytes:
            raise truncated(self.path, self.position + num_bytes, self._file_bytes)
        if self.position + num_bytes > MAX_HEAD_BYTES:
            raise self.broken(f"a head of more than {MAX_HEAD_BYTES:,} bytes")
        self.position += num_bytes

    def _skip(self, num_bytes: int) -> None:
        self._advance(num_bytes)
        self._file.seek(num_bytes, 1)

    def _long_text(self) -> str | None:
        length = self.number("<Q")
        if length > MAX_KEPT_TEXT:
            self._skip(length)
            return None
        return self.take(length).decode("utf-8", "replace")

    def _array(self) -> tuple[list[Any] | None, int]:
        kind, count = self.number("<I"), self.number("<Q")
        self._elements_left -= count
        if self._elements_left < 0:
            raise self.broken(f"lists with more than {MAX_ARRAY_ELEMENTS:,} elements")
        if kind == _STRING:
            for _ in range(count):
                self._skip(_LENGTH.unpack(self.take(8))[0])
            return None, count
        if kind not in _FORMATS:
            raise self.broken(f"a list of the unknown type {kind}")
        if count > MAX_KEPT_ELEMENTS:
            self._skip(count * struct.calcsize(_FORMATS[kind]))
            return None, count
        return [self.number(_FORMATS[kind]) for _ in range(count)], count
