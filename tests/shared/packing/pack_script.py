"""Packs argv[1] into argv[2] and, if argv[3] is given, kills itself after that many bytes."""

import os
import signal
import sys
from pathlib import Path

from tests.shared.packing.packs import packed


class Killer:
    def __init__(self, num_bytes: int) -> None:
        self.left = num_bytes

    def start(self, what: str, total_bytes: int | None) -> None:
        pass

    def advance(self, num_bytes: int) -> None:
        self.left -= num_bytes
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def finish(self) -> None:
        pass


packed(Path(sys.argv[1]), Path(sys.argv[2]), progress=Killer(int(sys.argv[3])))
