import errno
import os

import pytest

from layermesh.shared.parts import CHUNK_BYTES
from layermesh.worker.chunk_file import ChunkFile

DATA = bytes(range(256)) * (CHUNK_BYTES // 100)  # two chunks and a half


@pytest.mark.parametrize("step", [1000, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES])
def test_everything_that_is_written_and_flushed_is_there(tmp_path, step):
    path = tmp_path / "file"
    with ChunkFile(path) as file:
        for start in range(0, len(DATA), step):
            file.write(DATA[start : start + step])
        assert file.size == len(DATA) // CHUNK_BYTES * CHUNK_BYTES
        file.flush()
        file.sync()
    assert path.read_bytes() == DATA


def test_it_goes_on_behind_what_is_kept(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(DATA[: CHUNK_BYTES + 77])
    with ChunkFile(path) as file:
        file.cut(CHUNK_BYTES)
        file.write(DATA[CHUNK_BYTES:])
        file.flush()
    assert path.read_bytes() == DATA


def test_a_disk_with_other_sectors_is_written_through_the_cache(tmp_path, monkeypatch):
    tries = []

    def refuse(descriptor, data, offset):
        tries.append(offset)
        if len(tries) == 1:
            raise OSError(errno.EINVAL, "unaligned")
        return real(descriptor, data, offset)

    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", refuse)
    with ChunkFile(tmp_path / "file") as file:
        file.write(DATA)
        file.flush()
    assert (tmp_path / "file").read_bytes() == DATA
    assert tries[:2] == [0, 0]
