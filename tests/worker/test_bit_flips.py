"""A single bit of stored weights that is not what was written is found before anything is computed with it."""

import os
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from layermesh.shared.block_hashes import TABLE, BlockTableFile
from layermesh.shared.errors import CheckpointError
from layermesh.shared.part_source import PartSource
from layermesh.worker.files import FileReader
from layermesh.worker.store import Store
from tests.shared.packing.packs import build_llama, packed
from tests.storing import all_parts, example, fetch

SEED = 7
NUM_FLIPS = 500  # of each kind, 1,000 in all


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The folder of a model in a worker's store."""
    described = example("safetensors")
    model = Store(tmp_path_factory.mktemp("flips") / "store").add(described.manifest)
    fetch(model, PartSource(described.checkpoint, described.manifest), all_parts(described.manifest))
    return model.folder


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    """The folder of a packed model."""
    folder = tmp_path_factory.mktemp("flips")
    return packed(build_llama(folder / "llama", layers=2, vocab=300), folder / "pack")


def flip(path: Path, place: int, bit: int) -> None:
    with path.open("r+b", buffering=0) as file:
        (value,) = os.pread(file.fileno(), 1, place)
        os.pwrite(file.fileno(), bytes([value ^ 1 << bit]), place)


def is_found(path: Path, offset: int) -> bool:
    """Whether a worker that has just started refuses the file, wherever in it the first weights are that it wants."""
    files = FileReader()
    try:
        files.read_into(path, offset, memoryview(bytearray(16)))
    except CheckpointError as error:
        return "is damaged" in str(error) and path.name in str(error)
    finally:
        files.close()
    return False


def count_found(paths: Sequence[Path], rng: random.Random) -> int:
    """Flip a bit of one of the files, look whether it is found, and flip it back, so many times."""
    found = 0
    for _ in range(NUM_FLIPS):
        path = rng.choice(paths)
        size = path.stat().st_size
        place, bit = rng.randrange(size), rng.randrange(8)
        flip(path, place, bit)
        found += is_found(path, rng.randrange(size - 16))
        flip(path, place, bit)
    return found


@pytest.mark.parametrize("kind", ["stored", "pack"], ids=["a worker's store", "packed blocks"])
def test_every_flipped_bit_is_found_before_use(kind, request):
    folder = request.getfixturevalue(kind)
    paths = [folder / name for name in BlockTableFile.read(folder / TABLE).files]
    print(f"seed {SEED}: {NUM_FLIPS} flips in {len(paths)} files with {sum(path.stat().st_size for path in paths):,} bytes")
    assert count_found(paths, random.Random(SEED)) == NUM_FLIPS
    assert not any(is_found(path, 0) for path in paths)  # as they are again
