from contextlib import contextmanager

import pytest
from greenlet import getcurrent

from layermesh.shared.model.blocks import Block
from layermesh.worker.doors import Forward
from layermesh.worker.sweep import sweep

BLOCKS = [Block(f"layer {i}", i, (), ()) for i in range(5)]


class Stream:
    """Brings blocks without weights, and remembers which."""

    def __init__(self):
        self.brought: list[int] = []
        self.held = 0

    def stays(self, _block):
        return False

    @contextmanager
    def hold(self, block):
        self.brought.append(block.layer)
        self.held += 1
        try:
            yield {}
        finally:
            self.held -= 1


class Unbound:
    @contextmanager
    def bound(self, *_block_and_tensors, **_lasting):
        yield


class AllButTheSecond(Unbound):
    """Has all blocks bound but one."""

    def holds(self, block):
        return block is not BLOCKS[1]


def walk(layers, log, name, error=None, at=None):
    """A forward that goes through `layers` and raises `error` behind layer `at`."""

    def run():
        try:
            for layer in layers:
                getcurrent().pause(BLOCKS[layer])
                log.append((name, layer))
                if layer == at:
                    raise error
            return name
        finally:
            log.append((name, "end"))

    return Forward(run, None)


def test_every_block_is_brought_once_for_all_who_wait():
    stream, log = Stream(), []
    forwards = [walk(range(5), log, name) for name in "abc"]
    sweep(forwards, BLOCKS, stream, Unbound())
    assert stream.brought == [0, 1, 2, 3, 4]
    assert [entry for entry in log if entry[1] != "end"] == [(name, layer) for layer in range(5) for name in "abc"]
    assert [forward.result for forward in forwards] == ["a", "b", "c"]


@pytest.mark.parametrize("names", ["a", "ab"], ids=["alone", "with another"])
def test_one_that_is_alone_goes_straight_through_what_stays(names):
    stream, log = Stream(), []
    stream.is_settled = True
    forwards = [walk(range(5), log, name) for name in names]
    sweep(forwards, BLOCKS, stream, AllButTheSecond())
    assert stream.brought == ([1] if names == "a" else [0, 1, 2, 3, 4])  # the others take turns as ever
    assert [forward.result for forward in forwards] == list(names)


def test_a_watcher_is_told_once_of_each_block_that_one_goes_straight_through():
    stream, seen = Stream(), []
    stream.is_settled = True
    sweep([walk(range(5), [], "a")], BLOCKS, stream, AllButTheSecond(), lambda block: seen.append(block.layer))
    assert seen == [0, 1, 2, 3, 4]


def test_a_watcher_may_interrupt_one_that_goes_straight_through():
    stream, log = Stream(), []
    stream.is_settled = True

    def watcher(block):
        if block.layer == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep([walk(range(5), log, "a")], BLOCKS, stream, AllButTheSecond(), watcher)
    assert log == [("a", 0), ("a", 1), ("a", 2), ("a", "end")]


def test_forwards_of_different_ways_are_brought_what_each_wants():
    stream, log = Stream(), []
    sweep([walk([0, 2, 4], log, "a"), walk([1, 2], log, "b"), walk([0, 1, 0, 1], log, "c")], BLOCKS, stream, Unbound())
    assert [layer for name, layer in log if name == "c" and layer != "end"] == [0, 1, 0, 1]
    assert stream.brought == [0, 1, 2, 4, 0, 1]


def test_a_forward_that_fails_leaves_its_error_and_the_others_alone():
    log: list = []
    forwards = [walk(range(5), log, "a"), walk(range(5), log, "b", ValueError("made up"), at=2), walk(range(5), log, "c")]
    sweep(forwards, BLOCKS, Stream(), Unbound())
    assert [forward.result for forward in forwards] == ["a", None, "c"]
    assert [repr(forward.failure) for forward in forwards] == ["None", "ValueError('made up')", "None"]


@pytest.mark.parametrize("where", ["in a forward", "in the stream", "in the watcher"])
def test_an_interruption_ends_every_forward(where):
    log: list = []
    stream = Stream()
    error = KeyboardInterrupt() if where == "in a forward" else None
    forwards = [walk(range(5), log, "a"), walk(range(5), log, "b", error, at=2), walk(range(5), log, "c")]

    def watcher(block):
        if where != "in a forward" and block.layer == 2:
            raise KeyboardInterrupt

    if where == "in the stream":
        hold, watch = stream.hold, watcher

        def breaking(block):
            watch(block)
            return hold(block)

        stream.hold = breaking
    with pytest.raises(KeyboardInterrupt):
        sweep(forwards, BLOCKS, stream, Unbound(), watcher if where == "in the watcher" else None)
    assert sorted(entry for entry in log if entry[1] == "end") == [(name, "end") for name in "abc"]
    assert all(forward.dead for forward in forwards)
    assert stream.held == 0


def test_forwards_that_want_no_block_end_at_once():
    stream = Stream()
    forwards = [walk([], [], name) for name in "ab"]
    sweep(forwards, BLOCKS, stream, Unbound())
    assert ([forward.result for forward in forwards], stream.brought) == (["a", "b"], [])
    sweep([], BLOCKS, stream, Unbound())
