"""One pass of the sessions aboard through the blocks of a stage."""

from collections.abc import Callable, Sequence
from functools import partial

from greenlet import GreenletExit

from layermesh.shared.model.blocks import Block
from layermesh.worker.binding import Binder
from layermesh.worker.doors import Forward
from layermesh.worker.streaming import Streamer


def sweep(
    forwards: Sequence[Forward],
    blocks: Sequence[Block],
    streamer: Streamer,
    binder: Binder,
    watcher: Callable[[Block], None] | None = None,
) -> None:
    """Run every forward to its end, bringing each block once for all that wait for it; `watcher` is told of each.

    Results and errors are left in the forwards: one that fails takes no other with it. Raises CheckpointError where a block
    cannot be read, and whatever interrupts the process; then no forward goes on.
    """
    order = {block.name: position for position, block in enumerate(blocks)}
    try:
        if len(forwards) == 1 and streamer.is_settled:
            forwards[0].at_hand = partial(_is_at_hand, binder, watcher)
        for forward in forwards:
            forward.advance()
        position = 0
        while waiting := [forward for forward in forwards if forward.wanted is not None]:
            block = _next(waiting, order, position)
            if watcher is not None:
                watcher(block)
            with streamer.hold(block) as tensors:
                lasting = streamer.stays(block) and not block.shares_place
                with binder.bound(block, tensors, lasting=lasting):
                    while passing := [forward for forward in waiting if forward.wanted is block]:
                        for forward in passing:
                            forward.advance()
            position = order[block.name] + 1
    finally:
        for forward in forwards:
            if forward.wanted is not None:
                forward.throw(GreenletExit)


def _is_at_hand(binder: Binder, watcher: Callable[[Block], None] | None, block: Block) -> bool:
    """Whether a forward may go on with `block` as things are; then `watcher` is told of it."""
    if not binder.holds(block):
        return False
    if watcher is not None:
        watcher(block)
    return True


def _next(waiting: Sequence[Forward], order: dict[str, int], position: int) -> Block:
    """The block that comes first of those waited for, counted round from `position`."""
    wanted = [forward.wanted for forward in waiting if forward.wanted is not None]
    return min(wanted, key=lambda block: (order[block.name] - position) % len(order))
