"""Every error a user can meet.

LayermeshError (1)
├── UsageError (2)            the call itself is wrong: flags, prompt, values
├── ModelError (3)
│   ├── ModelNotFoundError    nothing by that name, here or on the hub
│   ├── CheckpointError       files that are broken, incomplete or contradict each other
│   ├── UnsupportedModelError a kind of model or file that layermesh does not run
│   └── TokenizerError        text was given or asked for and there is no tokenizer
├── MeshError (4)             workers and the links between them
│   ├── BusyError             a worker has no room until others leave
│   ├── WorkerLostError       a worker went away or does not come to an end; others may go on without it
│   │   └── AwayError         nobody answers where a worker should be
│   └── WorkerStarvedError    a worker has less memory than what it was given takes
├── AuthenticationError (5)   who may take part
└── ResourceError (6)
    ├── BudgetError           the memory allowed is too small; carries the bytes it would take
    └── DiskFullError         no room to store what was asked for

The number is the exit code. A message says what happened, why, and what to do.
"""

from pathlib import Path
from typing import ClassVar

from layermesh.shared.units import format_bytes


class LayermeshError(Exception):
    """Root of everything layermesh raises on purpose."""

    exit_code: ClassVar[int] = 1


class UsageError(LayermeshError):
    """A flag, a prompt or an argument that cannot be meant so."""

    exit_code = 2


class ModelError(LayermeshError):
    """A model that cannot be run as it is."""

    exit_code = 3


class ModelNotFoundError(ModelError):
    """No model by this name, neither here nor where it would be fetched from."""


class CheckpointError(ModelError):
    """Model files that are broken, incomplete or contradict each other."""


class UnsupportedModelError(ModelError):
    """A kind of model or file that layermesh does not run."""


class TokenizerError(ModelError):
    """Text was given or asked for and the model has no usable tokenizer."""


class MeshError(LayermeshError):
    """A worker, or the link to it, failed."""

    exit_code = 4


class BusyError(MeshError):
    """A worker has no room for this as long as others are there."""


class WorkerLostError(MeshError):
    """A worker, by id, is not there any more or does not keep up; "" where nobody knows which.

    `crashed` says that its process has ended as far as can be told, `returns` that it may be used again as soon as it answers.
    """

    def __init__(self, message: str, worker: str = "", *, crashed: bool = False, returns: bool = True) -> None:
        self.worker = worker
        self.crashed = crashed
        self.returns = returns
        super().__init__(message)


class AwayError(WorkerLostError):
    """Nobody answers where a worker should be."""


class WorkerStarvedError(MeshError):
    """A worker, by id, has less memory than its part of the model takes: `budget_bytes`, if it said so."""

    def __init__(self, message: str, worker: str, budget_bytes: int | None = None) -> None:
        self.worker = worker
        self.budget_bytes = budget_bytes
        super().__init__(message)


class AuthenticationError(LayermeshError):
    """Somebody who may not take part, or could not show that they may."""

    exit_code = 5


class ResourceError(LayermeshError):
    """This machine has not enough of something."""

    exit_code = 6


class BudgetError(ResourceError):
    """The memory allowed is too small; `needed_bytes` is the smallest budget that would do."""

    def __init__(self, what: str, budget_bytes: int, needed_bytes: int, flag: str = "--host-memory") -> None:
        self.budget_bytes = budget_bytes
        self.needed_bytes = needed_bytes
        super().__init__(
            f"{what} needs at least {format_bytes(needed_bytes, round_up=True)} of memory and may use "
            f"{format_bytes(budget_bytes)}. Give it more: {flag} {format_bytes(needed_bytes, round_up=True)}."
        )


class DiskFullError(ResourceError):
    """There is no room at `path` for the bytes that would be stored there."""

    def __init__(self, path: Path, needed_bytes: int, free_bytes: int) -> None:
        self.path = path
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes
        super().__init__(
            f"no room in {path}: {format_bytes(needed_bytes, round_up=True)} needed, {format_bytes(free_bytes)} free. "
            "Free some space, or point LAYERMESH_HOME (HF_HOME for hub models) at a larger disk."
        )
