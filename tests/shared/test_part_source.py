import hashlib
import shutil
from pathlib import Path

import pytest

from layermesh.shared.errors import CheckpointError
from layermesh.shared.manifest import Manifest
from layermesh.shared.part_source import PartSource
from layermesh.shared.parts import CHUNK_BYTES
from tests.storing import KINDS, Described, describe, example


def expected_part(described: Described, part: str) -> bytes:
    """A part put together the plain way."""
    whole = bytearray(described.manifest.part_bytes(part))
    for placed in described.manifest.layout(part):
        stored = described.checkpoint.tensors[placed.name]
        whole[placed.offset : placed.end] = stored.path.read_bytes()[stored.offset : stored.offset + stored.num_bytes]
    return bytes(whole)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_are_their_tensors_in_their_places(kind):
    described = example(kind)
    source = PartSource(described.checkpoint, described.manifest)
    for part in described.manifest.parts:
        reading = source.read(part)
        with pytest.raises(ValueError, match="when all of it"):
            _ = reading.sha256
        read = list(reading)
        expected = expected_part(described, part)
        assert all(len(chunk) == CHUNK_BYTES for chunk in read[:-1])
        assert b"".join(read) == expected
        assert reading.sha256 == hashlib.sha256(expected).digest()


@pytest.mark.parametrize("offset", [1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 5, 2 * CHUNK_BYTES, -1, 0], ids=str)
def test_a_part_can_be_read_from_anywhere_and_its_hash_is_of_the_whole(offset):
    described = example("tied")
    expected = expected_part(described, "embed")
    begin = offset if offset > 0 else len(expected) + offset
    assert len(expected) > CHUNK_BYTES
    reading = PartSource(described.checkpoint, described.manifest).read("embed", begin)
    assert b"".join(reading) == expected[begin:]
    assert reading.sha256 == hashlib.sha256(expected).digest()


@pytest.mark.parametrize("part", ["layer 9", "../x", "", "manifest"])
def test_a_part_that_there_is_not_is_refused(part):
    described = example("safetensors")
    with pytest.raises(ValueError, match="has no part"):
        PartSource(described.checkpoint, described.manifest).read(part)


@pytest.fixture
def copied(tmp_path):
    def copy(kind: str) -> tuple[Path, PartSource, Manifest]:
        folder = tmp_path / "copy"
        original = example(kind)
        shutil.copytree(original.checkpoint.path, folder)
        described = describe(folder, tmp_path, original.dtype)
        return folder, PartSource(described.checkpoint, described.manifest), described.manifest

    return copy


def test_files_that_change_meanwhile_are_noticed(copied):
    folder, source, _ = copied("safetensors")
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-100] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match="changed"):
        list(source.read("layer 1"))
    weights.write_bytes(content[:-3000])
    with pytest.raises(CheckpointError, match=r"truncated|changed"):
        [list(source.read(part)) for part in ("layer 1", "layer 3", "head")]
    weights.unlink()
    with pytest.raises(CheckpointError, match="cannot read"):
        list(source.read("layer 1"))


def test_a_damaged_pack_is_not_handed_out(copied):
    folder, source, _ = copied("int4")
    file = folder / "layer-00001.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 64
    file.write_bytes(content)
    list(source.read("layer 0"))
    with pytest.raises(CheckpointError, match="damaged"):
        next(source.read("layer 1"))
