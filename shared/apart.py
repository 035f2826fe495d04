"""Work in a thread of its own, with which the threads go that OpenMP made for it.

Each thread that computes has threads of OpenMP's that wait for more as long as it lives. Where a process has more of all these
than there are cores, OpenMP has them sleep between any two products instead of waiting awake, which slows the thread that
computes token by token. So what is computed once is not computed in a thread that stays.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, TypeVar

T = TypeVar("T")

NAME: Final = "layermesh-apart"  # of such a thread


def start_apart(job: Callable[[], T]) -> "Future[T]":
    """Run `job` in a thread of its own and return what will be its result."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()  # from here on nobody can take it back

    def work() -> None:
        try:
            result = job()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=work, name=NAME, daemon=True).start()
    return future
