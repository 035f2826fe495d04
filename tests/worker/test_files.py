import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from layermesh.shared.errors import CheckpointError
from layermesh.worker.buffers import aligned_memory
from layermesh.worker.files import FileReader
from layermesh.worker.open_files import OPEN_FILES
from layermesh.worker.page_cache import is_cached
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


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "from disk"])
@pytest.mark.parametrize("misplaced", [0, 8, 4095])
@pytest.mark.parametrize(("offset", "num_bytes"), [(0, NUM_BYTES), (5, NUM_BYTES - 5), (4096, 70_000), (777, 300_001)])
def test_large_reads_are_right_wherever_they_go(reader, path, offset, num_bytes, misplaced, cached):
    if not cached:
        forget_pages(path)
    target = memoryview(aligned_memory(num_bytes + misplaced))[misplaced:]
    reader.read_into(path, offset, target)
    assert bytes(target) == path.read_bytes()[offset : offset + num_bytes]


def test_large_reads_leave_the_page_cache_alone(reader, path):
    forget_pages(path)
    with path.open("rb") as file:
        if not goes_direct(path) or is_cached(file.fileno(), 0, NUM_BYTES):
            pytest.skip("this file system reads through its cache")
        read(reader, path, 0, NUM_BYTES)
        assert not is_cached(file.fileno(), 0, NUM_BYTES)


def goes_direct(path):
    try:
        with OPEN_FILES.hold(goes_direct, path) as file:
            return file.direct is not None
    finally:
        OPEN_FILES.close(goes_direct)


def test_a_large_read_past_the_end_names_the_place(reader, path):
    forget_pages(path)
    with pytest.raises(CheckpointError, match=f"ends at byte {NUM_BYTES},"):
        read(reader, path, 100_000, NUM_BYTES)


def test_a_file_that_is_written_to_in_use_is_refused(reader, path):
    read(reader, path, 0, NUM_BYTES)
    with path.open("r+b") as file:
        file.write(b"other")
    os.utime(path, ns=(1, 1))  # as a clock of coarse ticks would not show it
    with pytest.raises(CheckpointError, match="weights was changed while it was in use"):
        read(reader, path, 0, NUM_BYTES)


def forget_pages(path):
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


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
    assert num_descriptors() <= before + 2  # through the page cache, and past it
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
