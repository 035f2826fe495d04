"""Ctrl-C and SIGTERM, which the import of a C extension may swallow or turn into an error of its own."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

INTERRUPTED = 130  # the exit code


class InterruptHandler:
    """Raises KeyboardInterrupt and remembers that it did, for whoever comes after code that swallowed it.

    While there is nothing to clean up (`at_once`) it ends the process instead.
    """

    def __init__(self) -> None:
        self.at_once = True
        self.called = False

    def __call__(self, *_: object) -> NoReturn:
        self.called = True
        if self.at_once:
            end_interrupted()
        raise KeyboardInterrupt


def catch_interrupts() -> None:
    """Handle SIGTERM from here on, and SIGINT unless whoever started this process has it ignored, as nohup does."""
    if _handler() is not None:
        return
    handler = InterruptHandler()
    signal.signal(signal.SIGTERM, handler)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, handler)
    sys.unraisablehook = _say_unless_interrupted


@contextmanager
def ending(*, at_once: bool) -> Iterator[None]:
    """Have a signal end the process at once, as long as nothing needs cleaning up, or by a KeyboardInterrupt."""
    handler = _handler() or InterruptHandler()
    before, handler.at_once = handler.at_once, at_once
    try:
        yield
    finally:
        handler.at_once = before


def was_interrupted() -> bool:
    """Whether a signal has come to end this process."""
    handler = _handler()
    return handler is not None and handler.called


def check_interrupt() -> None:
    """Raise KeyboardInterrupt if a signal has come, whatever became of it."""
    interrupt_check()()


def interrupt_check() -> Callable[[], None]:
    """Return what does as `check_interrupt`, for those who ask so often that finding the handler takes too long."""
    handler = _handler()

    def check() -> None:
        if handler is not None and handler.called:
            raise KeyboardInterrupt

    return check


def end_interrupted(*, said: bool = False) -> NoReturn:
    """End the process, with a last line on stderr unless it was `said`.

    Not by sys.exit: where C code ran into the interrupt, the interpreter would end by the signal once more.
    """
    with suppress(OSError):
        if not said:
            os.write(2, b"\rerror: interrupted\n" if os.isatty(2) else b"error: interrupted\n")
    os._exit(INTERRUPTED)


def _handler() -> InterruptHandler | None:
    handler = signal.getsignal(signal.SIGTERM)
    return handler if isinstance(handler, InterruptHandler) else None


def _say_unless_interrupted(unraisable: "sys.UnraisableHookArgs") -> None:
    # A signal in a callback of the garbage collector is no fault; it is known and ends the process soon.
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
