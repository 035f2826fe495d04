"""What went wrong, as one message and an exit code; streams that the caller has closed."""

import errno
import io
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import typer

from layermesh.interrupts import INTERRUPTED, ending, was_interrupted
from layermesh.shared.errors import LayermeshError
from layermesh.shared.file_limit import is_out_of_files, too_many_files
from layermesh.terminal import note, restart_line

OUT_OF_RESOURCES = 6

_OUT_OF_MEMORY = "this machine ran out of memory. Give layermesh less of it: --host-memory 2GB."


@contextmanager
def reporting(debug: bool) -> Iterator[None]:
    """Turn whatever goes wrong into one message and the right exit code."""
    try:
        with ending(at_once=False):
            yield
            sys.stdout.flush()  # what it cannot take should be known here
    except KeyboardInterrupt:
        _fail_interrupted(debug)
    except Exception as error:
        if was_interrupted():  # whatever came of it
            _fail_interrupted(debug)
        _fail_with(error, debug)


def prepare_streams() -> None:
    """Stand in for streams that the caller has closed, and let no character fail that a stream cannot show."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # in the order of their numbers
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 - until the end
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _fail_interrupted(debug: bool) -> NoReturn:
    if debug:
        traceback.print_exc()
    restart_line()
    note("error: interrupted")
    raise typer.Exit(INTERRUPTED) from None


def _fail_with(error: Exception, debug: bool) -> NoReturn:
    if isinstance(error, LayermeshError):
        _fail(str(error), error.exit_code, debug)
    if isinstance(error, BrokenPipeError):
        _abandon_stdout()
        raise typer.Exit(1) from None
    if isinstance(error, OSError):
        _abandon_stdout()
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        _fail(_OUT_OF_MEMORY, OUT_OF_RESOURCES, debug)
    if isinstance(error, OSError) and is_out_of_files(error):
        _fail(str(too_many_files(Path(error.filename or "a connection"), error)), OUT_OF_RESOURCES, debug)
    if isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        _fail(f"the system refused something: {error}.", OUT_OF_RESOURCES if full else 1, debug)
    _fail(f"{type(error).__name__}: {error}. This is a fault in layermesh; --debug shows where.", 1, debug)


def _fail(message: str, exit_code: int, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exc()
    note(f"error: {message}")
    raise typer.Exit(exit_code) from None


def _abandon_stdout() -> None:
    """Send what is still to be written nowhere: the interpreter would complain about it once more at its end."""
    with suppress(OSError, ValueError):  # a stream without a number of its own
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
