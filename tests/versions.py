"""The oldest versions of libraries that pyproject.toml allows, as a constraints file: `python -m tests.versions`.

torch keeps the version of deploy/constraints.txt, of which there is a build for the CPU.
"""

import re
import tomllib
from pathlib import Path

from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent


def requirements() -> list[str]:
    """Return the run-time requirements of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]


def oldest() -> list[str]:
    """Return a line of a constraints file for each requirement."""
    lines = [
        re.sub(r">=([\w.]+).*", r"==\1", line)
        for line in requirements()
        if not line.startswith(("torch>", "pip>", "packaging>"))
    ]
    return [*lines, *pinned("torch")]


def pinned(package: str) -> list[str]:
    """Return the line of deploy/constraints.txt for `package`."""
    lines = (ROOT / "deploy/constraints.txt").read_text().splitlines()
    return [line for line in lines if canonicalize_name(line.partition("==")[0]) == package]


if __name__ == "__main__":
    print(*oldest(), sep="\n")
