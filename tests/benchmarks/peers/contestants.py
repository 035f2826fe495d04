"""Who takes part in a comparison, and with what settings."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks.peers.environments import Environment


@dataclass(frozen=True, slots=True)
class Contestant:
    """One peer with one setting: its runner, the environment it runs in (None: ours), its model and options."""

    name: str
    runner: str
    environment: Environment | None
    model: Path
    num_new: int
    num_prompt: int = 12
    num_warmup: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def python(self) -> Path:
        return Path(sys.executable) if self.environment is None else self.environment.python()

    def job(self, num_threads: int) -> dict[str, Any]:
        """What its runner is asked, as its `Job` reads it."""
        return {
            "model": os.fspath(self.model),
            "num_prompt": self.num_prompt,
            "num_new": self.num_new,
            "num_warmup": self.num_warmup,
            "num_threads": num_threads,
            "options": dict(self.options),
        }
