"""An end on purpose, at an exact place, so that it can be seen what others do then."""

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

from layermesh.shared.errors import UsageError

VARIABLE: Final = "LAYERMESH_FAULT"
_KILL: Final = getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows has one way only


@dataclass(frozen=True, slots=True)
class Fault:
    """This process ends, as by kill -9, when it is about to run the call of any session with this `step`."""

    step: int

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> Self | None:
        """Return what LAYERMESH_FAULT asks for, such as "crash:hop:17"; None where nothing is. Raises UsageError."""
        asked = environ.get(VARIABLE)
        if not asked:
            return None
        what, _, step = asked.rpartition(":")
        if what != "crash:hop" or not (step.isascii() and step.isdecimal()):
            raise UsageError(f"{VARIABLE} is a fault like crash:hop:17, for tests, not {asked[:80]!r}. Leave it out.")
        return cls(int(step))

    def strike_at(self, step: int) -> None:
        """End here if this is the place."""
        if step == self.step:
            os.kill(os.getpid(), _KILL)
