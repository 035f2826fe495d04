"""What a runner measures and how it says so."""

import json
import sys
import time
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any


class TokenClock:
    """Note the moment of each token of one answer."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._moments: list[float] = []

    def tick(self) -> None:
        """A token is there."""
        self._moments.append(time.perf_counter())

    @property
    def figures(self) -> dict[str, Any]:
        """Seconds until the first token, and from each to the next."""
        return {
            "prefill_seconds": self._moments[0] - self._began,
            "decode_seconds_per_token": [later - earlier for earlier, later in pairwise(self._moments)],
        }


class ClockStreamer:
    """Stands where transformers' `generate` expects a text streamer; its first call brings the prompt."""

    def __init__(self) -> None:
        self.clock = TokenClock()
        self._prompt_seen = False

    def put(self, _ids: Any) -> None:
        """The prompt's ids, then each token's."""
        if self._prompt_seen:
            self.clock.tick()
        self._prompt_seen = True

    def end(self) -> None:
        """The answer is complete."""


def report(load_seconds: float, clock: TokenClock, packages: tuple[str, ...], **details: Any) -> None:
    """Print the figures as the last line."""
    figures = {
        "load_seconds": load_seconds,
        **clock.figures,
        "peak_rss_bytes": peak_rss_bytes(),
        "versions": {package: version(package) for package in packages},
        **details,
    }
    print(json.dumps(figures), flush=True)


def skip(reason: str) -> None:
    """Say that this cannot be measured here, and end."""
    print(json.dumps({"skipped": reason}), flush=True)
    sys.exit(0)


def peak_rss_bytes() -> int | None:
    """Return this process's largest resident set; None where /proc does not tell."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), None)
