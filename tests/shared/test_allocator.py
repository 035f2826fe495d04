import sys

import psutil
import pytest

from layermesh.shared.allocator import keeping_memory

MIB = 1 << 20


def test_what_was_kept_goes_back_afterwards() -> None:
    process = psutil.Process()
    with keeping_memory():
        before = process.memory_info().rss
        for _ in range(3):
            taken = [bytes(MIB) for _ in range(24)]
            del taken
    assert process.memory_info().rss < before + 8 * MIB


def test_it_may_be_entered_twice() -> None:
    with keeping_memory(), keeping_memory():
        pass


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with keeping_memory():
        pass
