import shutil
import threading

import pytest

from layermesh.shared.errors import CheckpointError
from layermesh.worker import profiling
from layermesh.worker.buffers import Buffer
from layermesh.worker.loading import BlockLoader
from layermesh.worker.profiling import measure_profile
from tests.running import num_descriptors, open_model


def test_a_profile_has_rates_and_leaves_nothing_behind(tiny):
    _, table = open_model(tiny("llama"))
    before = num_descriptors(), threading.active_count()
    for blocks in (table.layers, table.layers[:1]):
        profile = measure_profile(*blocks)
        assert 0 < profile.load_seconds_per_byte < 1e-3
        assert 0 < profile.compute_seconds_per_byte < 1e-3
        assert profile.block_seconds > 0
    assert (num_descriptors(), threading.active_count()) == before


def test_what_is_slow_only_once_is_not_timed(tiny, monkeypatch):
    """The clock stands still but for the first load, which costs an hour, and for the others, which cost a second each."""
    _, table = open_model(tiny("llama"))
    now, costs = [0.0], [3600.0, 0.0]
    start = BlockLoader.start

    def slow_start(loader, block, buffer):
        now[0] += costs.pop(0) if costs else 1.0
        return start(loader, block, buffer)

    monkeypatch.setattr(BlockLoader, "start", slow_start)
    monkeypatch.setattr(profiling.time, "monotonic", lambda: now[0])
    profile = measure_profile(table.layers[0])
    assert profile.load_seconds_per_byte == pytest.approx(1 / table.layers[0].stored_bytes)


def test_no_more_than_two_blocks_are_in_memory(tiny, monkeypatch):
    _, table = open_model(tiny("llama"))
    sizes = []

    def make(num_bytes):
        sizes.append(num_bytes)
        return Buffer(num_bytes)

    monkeypatch.setattr(profiling, "Buffer", make)
    measure_profile(*table.layers)
    assert sizes == [max(block.loaded_bytes for block in table.layers)] * 2


def test_a_block_that_cannot_be_read(tiny, tmp_path):
    shutil.copytree(tiny("llama"), tmp_path, dirs_exist_ok=True)
    _, table = open_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    before = num_descriptors(), threading.active_count()
    with pytest.raises(CheckpointError, match="ends at byte"):
        measure_profile(*table.layers)
    assert (num_descriptors(), threading.active_count()) == before
