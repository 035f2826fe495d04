import gc
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from layermesh.shared.errors import CheckpointError, ResourceError
from layermesh.worker.files import FileReader
from layermesh.worker.open_files import OPEN_FILES, OpenFile
from tests.running import num_descriptors
from tests.storing import example

NUM_FILES = 300
NUM_THREADS = 16
NUM_BYTES = 70_000  # past the page cache
LIMIT = 256


@pytest.fixture
def paths(tmp_path):
    made = [tmp_path / f"weights-{number}" for number in range(NUM_FILES)]
    for number, path in enumerate(made):
        path.write_bytes(number.to_bytes(2, "big") * (NUM_BYTES // 2))
    return made


@pytest.fixture
def reader():
    files = FileReader()
    yield files
    files.close()


@pytest.fixture
def few_allowed() -> Iterator[None]:
    with allowed(LIMIT):
        yield


@contextmanager
def allowed(num: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (num, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def taken(leaving: int) -> Iterator[None]:
    """All descriptors but `leaving` are taken by somebody else."""
    taken: list[int] = []
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(leaving):
            os.close(taken.pop())
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)


def read(reader, path, num_bytes=NUM_BYTES):
    target = bytearray(num_bytes)
    reader.read_into(path, 0, memoryview(target))
    return bytes(target)


def test_more_files_than_may_be_open_are_read_by_many_threads_again_and_again(few_allowed, reader, paths):
    gc.collect()  # what other tests left open
    before = num_descriptors()
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        for number, data in enumerate(threads.map(lambda path: read(reader, path), paths * 3)):
            assert data[:2] == (number % NUM_FILES).to_bytes(2, "big")
            assert len(set(data[::2])) == 1
    assert num_descriptors() <= before + LIMIT // 2 + 2 * NUM_THREADS
    reader.close()
    assert num_descriptors() <= before


def test_two_readers_share_what_may_be_open(few_allowed, reader, paths):
    other, before = FileReader(), num_descriptors()
    for path in paths:
        assert read(reader, path) == read(other, path)
    assert num_descriptors() <= before + LIMIT // 2
    reader.close()
    assert read(other, paths[0])
    other.close()
    assert num_descriptors() == before


def test_files_make_room_for_each_other_where_the_rest_of_the_process_has_taken_all(few_allowed, reader, paths):
    read(reader, paths[0])
    with taken(leaving=0):
        assert read(reader, paths[1])[:2] == b"\0\1"
        assert read(reader, paths[0])[:2] == b"\0\0"


@pytest.mark.parametrize("leaving", [0, 1], ids=["none", "one of two"])
def test_where_no_file_can_be_opened_the_limit_is_named_and_not_the_disk(few_allowed, reader, paths, leaving):
    before = num_descriptors()
    read(reader, paths[0], 0)
    reader.close()
    with taken(leaving), pytest.raises(ResourceError, match=f"too many open files, and may have {LIMIT}. Run `ulimit -n 4096`"):
        read(reader, paths[0])
    assert num_descriptors() == before


def test_a_file_that_changed_while_it_was_closed_is_refused(few_allowed, reader, paths):
    for path in paths:
        read(reader, path)
    os.utime(paths[0], ns=(1, 1))
    with pytest.raises(CheckpointError, match="weights-0 was changed while it was in use"):
        read(reader, paths[0])


def test_a_file_in_use_stays_open(few_allowed, reader, paths):
    with OPEN_FILES.hold(reader, paths[0]) as held:
        for path in paths:
            read(reader, path)
        reader.close()
        assert os.pread(held.plain, 2, 0) == b"\0\0"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(held.plain)


def test_descriptors_do_not_pass_to_children(paths):
    file = OpenFile(paths[0])
    assert not os.get_inheritable(file.plain)
    assert file.direct is None or not os.get_inheritable(file.direct)
    file.close()


def test_readers_that_begin_at_the_same_time_open_a_file_once(reader, paths):
    before, together = num_descriptors(), threading.Barrier(NUM_THREADS)
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        list(threads.map(lambda _: (together.wait(), read(reader, paths[0])), range(NUM_THREADS)))
    assert num_descriptors() <= before + 2


ANSWER = """
import os, resource, sys
from layermesh import LayerMesh
with LayerMesh(sys.argv[1], device="cpu", alone=True, dtype="float32") as mesh:
    here = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (here + 20, here + 20))  # ten files, of which five may be open
    print(*mesh.generate([1, 2, 3], max_new_tokens=4, temperature=0, ignore_eos=True).token_ids)
"""


def test_a_model_in_more_files_than_may_be_open_answers(tmp_path):
    whole, folder = Path(example("safetensors").checkpoint.path), tmp_path / "shards"
    folder.mkdir()
    shutil.copy(whole / "config.json", folder)
    tensors = load_file(whole / "model.safetensors")
    places = {name: f"model-{number}.safetensors" for number, name in enumerate(tensors)}
    for name, place in places.items():
        save_file({name: tensors[name]}, folder / place, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert len(places) > 20
    done = [
        subprocess.run([sys.executable, "-c", ANSWER, str(path)], capture_output=True, text=True, timeout=120)
        for path in (whole, folder)
    ]
    assert done[1].returncode == 0, done[1].stderr
    assert done[0].stdout == done[1].stdout != ""
