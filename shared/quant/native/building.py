"""Building the kernel with the machine's own C compiler, and keeping what comes of it."""

import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from layermesh.shared.process_limits import free_memory
from layermesh.shared.processor_count import num_processors

SOURCES: Final = Path(__file__).parent
_PARTS: Final = ("heads", "few", "many", "plain", "layer", "cold")  # those that take long first
_FLAGS: Final = ("-std=gnu11", "-O3", "-march=native", "-ffp-contract=off", "-fwrapv", "-fPIC", "-fopenmp")
_SECONDS: Final = 60
_AT_ONCE: Final = 4
_COMPILER_BYTES: Final = 256 << 20  # that each takes for some seconds
_CPU_INFO: Final = Path("/proc/cpuinfo")
_CPU_LINES: Final = ("flags", "Features", "model name")


def find_compiler() -> Path | None:
    """Return the C compiler: $CC where it names one, else cc, gcc or clang; None where there is none."""
    for name in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        if name and (found := shutil.which(name)):
            return Path(found).resolve()
    return None


def built_library(folder: Path, compiler: Path) -> Path:
    """Return the kernel as `compiler` makes it for this processor, out of `folder` if it was built before.

    Raises OSError where the folder cannot be written, or could be by others, subprocess.SubprocessError where the compiler
    fails.
    """
    library = folder / f"products-{_key(compiler)}.so"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_own(folder, stat.S_ISDIR)
    if not os.path.lexists(library):
        _build(compiler, library)
    _check_own(library, stat.S_ISREG)
    return library


def source_hash() -> str:
    """Return what changes with the code of the kernel."""
    digest = hashlib.sha256("\0".join(_FLAGS).encode())
    for path in sorted(SOURCES.glob("*.[ch]")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _build(compiler: Path, library: Path) -> None:
    """Build under another name first, so that whoever builds at the same time does no harm.

    It is linked without the compiler's OpenMP: the threads are to be those of torch.
    """
    with tempfile.TemporaryDirectory(dir=library.parent) as name:
        made, linked = [Path(name) / f"{part}.o" for part in _PARTS], Path(name) / library.name
        parts = [[SOURCES / f"{part}.c", "-o", path] for part, path in zip(_PARTS, made, strict=True)]
        with ThreadPoolExecutor(_num_compilers()) as pool:
            list(pool.map(_run, [[compiler, *_FLAGS, "-c", *part] for part in parts]))
        _run([compiler, "-shared", *made, "-o", linked, "-lm"])
        linked.chmod(0o600)
        linked.replace(library)


def _num_compilers() -> int:
    """How many parts are compiled at a time: fewer where the memory for them is not there, since we would be killed for it."""
    return max(min(_AT_ONCE, num_processors(), free_memory().num_bytes // _COMPILER_BYTES), 1)


def _run(command: list[str | Path]) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS)


def _key(compiler: Path) -> str:
    """Whatever the library depends on: the code, the compiler, and what the processor can do."""
    status = compiler.stat()
    parts = (source_hash(), str(compiler), str(status.st_size), str(status.st_mtime_ns), platform.machine(), *_processor())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _processor() -> list[str]:
    """The lines on the first processor in /proc/cpuinfo that say what kind it is."""
    first = _CPU_INFO.read_text(errors="replace").partition("\n\n")[0]
    return [line for line in first.splitlines() if line.startswith(_CPU_LINES)]


def _check_own(path: Path, is_kind: Callable[[int], bool]) -> None:
    """Raise OSError unless `path` is what it should be, no link, and nobody else's to write."""
    status = path.lstat()
    if not is_kind(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(f"{path} is not this user's alone")
