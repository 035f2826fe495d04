"""Figures under the same names in Python and in `--json`."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any


class Record:
    """A dataclass that can be read by attribute, by key, and as a dictionary, under the same names as in `--json`."""

    def __getitem__(self, name: str) -> Any:
        if name not in self.keys():
            raise KeyError(name)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def keys(self) -> list[str]:
        """The names of the figures, so that `dict(record)` works."""
        return [field.name for field in fields(self)] if is_dataclass(self) else []

    def to_dict(self) -> dict[str, Any]:
        """Return it in the form of `--json`, the records in it too."""
        return {name: _plain(self[name]) for name in self}


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_dict()
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
