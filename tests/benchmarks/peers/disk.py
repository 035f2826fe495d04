"""How fast the disk gives its bytes when nothing else is asked of it: the measure that streaming is held against.

`python -m tests.benchmarks.peers.disk FILE` prints the best rate of several settings.
"""

import mmap
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

MIB = 2**20
O_DIRECT = getattr(os, "O_DIRECT", 0)


@dataclass(frozen=True, slots=True)
class ReadSetting:
    """How many threads read pieces of what size at the same time."""

    num_threads: int
    piece_bytes: int

    def __str__(self) -> str:
        return f"{self.num_threads} threads x {self.piece_bytes // MIB} MiB"


SETTINGS = (ReadSetting(8, 4 * MIB), ReadSetting(4, 8 * MIB), ReadSetting(16, 4 * MIB), ReadSetting(2, 16 * MIB))


@dataclass(frozen=True, slots=True)
class DiskRate:
    """The best rate measured, with the setting that reached it; `direct` tells whether the page cache was left out."""

    bytes_per_second: float
    setting: str
    direct: bool


def disk_rate(files: Sequence[Path], settings: Sequence[ReadSetting] = SETTINGS, seconds_each: float = 0.6) -> DiskRate:
    """Read the files for `seconds_each` with every setting and return the best."""
    rates = [(read_rate(files, setting, seconds_each), setting) for setting in settings]
    (rate, direct), setting = max(rates, key=lambda found: found[0][0])
    return DiskRate(rate, str(setting), direct)


def read_rate(files: Sequence[Path], setting: ReadSetting, seconds: float) -> tuple[float, bool]:
    """Return bytes per second and whether they came past the page cache; what is read is thrown away."""
    opened = [_open(path) for path in files]
    pieces = [
        (descriptor, start)
        for (descriptor, _), path in zip(opened, files, strict=True)
        for start in range(0, path.stat().st_size, setting.piece_bytes)
    ]
    began = time.monotonic()
    ends = began + seconds
    try:
        with ThreadPoolExecutor(setting.num_threads) as pool:
            shares = [pieces[number :: setting.num_threads] for number in range(setting.num_threads)]
            read = sum(pool.map(lambda share: _read(share, setting.piece_bytes, ends), shares))
        return read / (time.monotonic() - began), all(direct for _, direct in opened)
    finally:
        for descriptor, _ in opened:
            os.close(descriptor)


def _open(path: Path) -> tuple[int, bool]:
    try:
        return os.open(path, os.O_RDONLY | O_DIRECT), bool(O_DIRECT)
    except OSError:  # file systems in memory, and some on a network, know no direct reads
        return os.open(path, os.O_RDONLY), False


def _read(pieces: Sequence[tuple[int, int]], piece_bytes: int, ends: float) -> int:
    """Read pieces until the time is up; return the bytes read."""
    read = 0
    with mmap.mmap(-1, piece_bytes) as buffer:  # begins at a page, as direct reads demand
        for descriptor, start in pieces:
            if time.monotonic() >= ends:
                break
            read += os.preadv(descriptor, [buffer], start)
    return read


def main() -> None:
    """Print the rate of every setting, in the order they are tried."""
    files = [Path(name) for name in sys.argv[1:]]
    for setting in SETTINGS:
        rate, direct = read_rate(files, setting, 1.0)
        print(f"{setting}: {rate / 1e9:.2f} GB/s{'' if direct else ' (through the page cache)'}")


if __name__ == "__main__":
    main()
