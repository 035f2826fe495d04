import asyncio

import pytest

from layermesh.worker import watches
from layermesh.worker.watches import Watch, Watches


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(watches, "CHECK_SECONDS", 0.01)


def late(begins, ends, seconds=0.05):
    """Which of some pieces of work are late, of which some begin and some of these end in time."""
    told = []

    async def scenario():
        watching = Watches(asyncio.get_running_loop())
        made = {name: Watch(seconds, lambda name=name: told.append(name)) for name in "abc"}
        for name, watch in made.items():
            watching.add(watch)
            if name in begins:
                watch.begin()
        for name in ends:
            watching.end(made[name])
        deadline = asyncio.get_running_loop().time() + 10 * 0.05
        while asyncio.get_running_loop().time() < deadline and len(told) < len(set(begins) - set(ends)):
            await asyncio.sleep(0.01)
        watching.close()

    asyncio.run(scenario())
    return sorted(told)


def test_what_has_begun_and_does_not_end_is_late_once():
    assert late("ab", "b") == ["a"]


def test_what_waits_for_its_turn_is_not_late():
    assert late("", "") == []


def test_what_may_take_as_long_as_it_likes_is_never_late():
    assert late("abc", "c", seconds=0.0) == []
