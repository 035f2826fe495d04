"""Errors that travel: what went wrong on one machine, told on another."""

from layermesh.protos import mesh_pb2 as pb
from layermesh.shared import errors
from layermesh.shared.errors import BudgetError, BusyError, LayermeshError, MeshError

MAX_MESSAGE = 2000  # characters

_KINDS = {
    kind.__name__: kind
    for kind in (
        errors.UsageError,
        errors.ModelError,
        errors.ModelNotFoundError,
        errors.CheckpointError,
        errors.UnsupportedModelError,
        errors.TokenizerError,
        errors.MeshError,
        errors.AuthenticationError,
        errors.ResourceError,
    )
}


def to_problem(error: Exception, *, busy: bool = False) -> pb.Problem:
    """Return `error` as it travels; `busy` says that it may be well once others have left."""
    busy = busy or isinstance(error, BusyError)
    if isinstance(error, BudgetError):
        return pb.Problem(
            kind="BudgetError",
            message=str(error),
            budget_bytes=max(error.budget_bytes, 0),
            needed_bytes=error.needed_bytes,
            busy=busy,
        )
    if isinstance(error, LayermeshError):
        kind = next((kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _KINDS), "MeshError")
        return pb.Problem(kind=kind, message=str(error)[:MAX_MESSAGE], busy=busy)
    said = " ".join(str(error).split())
    return pb.Problem(kind="MeshError", message=f"{type(error).__name__}: {said}"[:MAX_MESSAGE], busy=busy)


def to_error(problem: pb.Problem, worker: str) -> LayermeshError:
    """Return the error that `worker` told of."""
    if problem.busy:
        return BusyError(f"worker {worker} is busy with other work: {problem.message[:MAX_MESSAGE]} Wait, or stop the other.")
    if problem.kind == "BudgetError":
        return WorkerBudgetError(worker, problem.budget_bytes, problem.needed_bytes)
    kind = _KINDS.get(problem.kind, MeshError)
    return kind(f"worker {worker}: {problem.message[:MAX_MESSAGE]}")


class WorkerBudgetError(BudgetError):
    """A worker may take too little memory; the flags that would help are said there. `worker_id` is set by who called it."""

    def __init__(self, worker: str, budget_bytes: int, needed_bytes: int) -> None:
        self.worker_id = ""
        super().__init__(f"worker {worker}", budget_bytes, needed_bytes)
