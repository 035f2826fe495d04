"""Real `layermesh` commands, each in a process of its own that is forked from one in which everything is imported already."""

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests.mesh.waiting import wait_until

IMPORTED = ["layermesh.cli_worker", "layermesh.cli_generate", "transformers.models.llama.modeling_llama"]
PR_SET_PDEATHSIG = 1
START_SECONDS = 90.0  # the first time, with the imports


class Command:
    """A command that runs from the moment it is made; what it writes is in `folder`, as NAME.out and NAME.err.

    With `preloaded`, a library that stands before the system's, it is not forked but begins from nothing.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        name: str,
        environ: Mapping[str, str] | None = None,
        *,
        preloaded: Path | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._out, self._err = folder / f"{name}.out", folder / f"{name}.err"
        for path in (self._out, self._err):
            path.write_bytes(b"")
        given = (list(arguments), str(folder), str(self._out), str(self._err), dict(environ or {}))
        self._process = _Fresh(preloaded, *given) if preloaded is not None else _forked(given)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def out(self) -> str:
        return self._out.read_text("utf-8", errors="replace")

    @property
    def err(self) -> str:
        return self._err.read_text("utf-8", errors="replace")

    @property
    def is_running(self) -> bool:
        return self._process.is_alive()

    def send(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        """kill -9, and no other way to end."""
        self.send(signal.SIGKILL)

    def wait(self, seconds: float) -> int | None:
        """Return the exit status, negative for a signal; None where it still runs after so long."""
        self._process.join(seconds)
        return self._process.exitcode

    def wait_for(self, text: str, seconds: float = START_SECONDS) -> None:
        """Return once `text` is on stderr."""
        wait_until(lambda: text in self.err or not self.is_running, seconds)
        assert text in self.err, f"it ended with {self._process.exitcode}: {self.err[-2000:]}"

    @property
    def companions(self) -> list[int]:
        """The processes of its session that still run, itself left out."""
        return [pid for pid in psutil.pids() if pid != self.pid and _session(pid) == self.pid]


def _session(pid: int) -> int | None:
    """The session of a process; None for one that has ended, whether or not anybody took note of it."""
    with suppress(OSError, psutil.NoSuchProcess):
        if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            return os.getsid(pid)
    return None


def _forked(given: tuple[Any, ...]) -> multiprocessing.process.BaseProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    process = context.Process(target=_run, args=given, daemon=True)
    process.start()
    return process


class _Fresh:
    """A process that begins from nothing, with the face of one that was forked."""

    def __init__(self, preloaded: Path, arguments: list[str], folder: str, out: str, err: str, environ: dict[str, str]) -> None:
        root = str(Path(__file__).parents[2])
        own = {name: value for name, value in os.environ.items() if name != "LAYERMESH_ALONE"}
        with Path(out).open("ab") as stdout, Path(err).open("ab") as stderr:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "layermesh", *arguments],
                cwd=folder, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, start_new_session=True,
                env={**own, "PYTHONPATH": root, "LD_PRELOAD": str(preloaded), **environ},
            )  # fmt: skip
        self.pid = self._popen.pid

    @property
    def exitcode(self) -> int | None:
        return self._popen.poll()

    def is_alive(self) -> bool:
        return self._popen.poll() is None

    def join(self, seconds: float) -> None:
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(seconds)


def _run(arguments: list[str], folder: str, out: str, err: str, environ: dict[str, str]) -> None:
    """In the new process: become the command, and end with whoever asked for it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for number, path in ((1, out), (2, err)):
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    os.setsid()
    os.chdir(folder)
    os.environ.pop("LAYERMESH_ALONE", None)
    os.environ.update(environ)
    sys.argv = ["layermesh", *arguments]
    from layermesh.__main__ import main

    main()
