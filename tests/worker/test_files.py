import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from layermesh.shared.errors import CheckpointError
from layermesh.worker.files import FileReader
from tests.running import num_descriptors

NUM_BYTES = 1 << 20


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(os.urandom(NUM_BYTES))
    return file


@pytest.fixture
def reader():
    files = FileReader()
    yield files
    files.close()


def read(reader, path, offset, num_bytes):
    target = bytearray(num_bytes)
    reader.read_into(path, offset, memoryview(target))
    return bytes(target)


@pytest.mark.parametrize(("offset", "num_bytes"), [(0, NUM_BYTES), (1, 4097), (NUM_BYTES - 1, 1), (77, 0)])
def test_any_range_is_read(reader, path, offset, num_bytes):
    assert read(reader, path, offset, num_bytes) == path.read_bytes()[offset : offset + num_bytes]
    assert reader.num_bytes == num_bytes


def test_many_threads_read_right_and_are_counted_together(reader, path):
    expected = path.read_bytes()
    starts = range(0, NUM_BYTES, 4099)
    with ThreadPoolExecutor(16) as threads:
        parts = list(threads.map(lambda start: read(reader, path, start, min(4099, NUM_BYTES - start)), starts))
    assert b"".join(parts) == expected
    assert reader.num_bytes == NUM_BYTES
    assert reader.busy_seconds > 0


def test_a_file_is_opened_once_and_closed(reader, path):
    before = num_descriptors()
    for _ in range(10):
        read(reader, path, 0, 10)
    assert num_descriptors() == before + 1
    reader.close()
    assert num_descriptors() == before
    assert read(reader, path, 0, 10) == path.read_bytes()[:10]


def test_a_file_that_ends_too_early_is_named_with_the_place(reader, path):
    os.truncate(path, 1000)
    with pytest.raises(CheckpointError, match=r"weights ends at byte 1000.*Fetch it again"):
        read(reader, path, 990, 20)
    assert reader.num_bytes == 0


@pytest.mark.parametrize(
    "spoil", [lambda path: path.unlink(), lambda path: (path.unlink(), path.mkdir())], ids=["gone", "a folder"]
)
def test_a_file_that_cannot_be_read_is_an_error_of_ours(reader, path, spoil):
    spoil(path)
    with pytest.raises(CheckpointError, match=r"weights cannot be read: [A-Z].*disk"):
        read(reader, path, 0, 10)


def test_time_is_counted_while_somebody_reads_and_not_twice(reader, path):
    import time

    began = time.monotonic()
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: read(reader, path, 0, NUM_BYTES), range(32)))
    assert 0 < reader.busy_seconds <= time.monotonic() - began


def test_time_is_counted_for_reads_that_fail(reader, path):
    for _ in range(3):
        with pytest.raises(CheckpointError):
            read(reader, path, NUM_BYTES, 1)
    assert reader._active == 0
