"""What a runner is asked to do."""

import json
import sys
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Job:
    """Answer a prompt of `num_prompt` tokens with `num_new` tokens, after an unmeasured answer of `num_warmup` if any."""

    model: str
    num_prompt: int
    num_new: int
    num_threads: int
    num_warmup: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def prompt_ids(self) -> list[int]:
        return [5 + position % 100 for position in range(self.num_prompt)]

    @property
    def rounds(self) -> list[int]:
        """How many tokens each answer has; the last one is measured."""
        return [self.num_warmup, self.num_new] if self.num_warmup else [self.num_new]

    @classmethod
    def from_command_line(cls) -> "Job":
        """Read the job this program was started with."""
        return cls(**json.loads(sys.argv[1]))
