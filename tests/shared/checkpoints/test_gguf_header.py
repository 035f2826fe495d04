"""Heads of GGUF files: read as gguf reads them, and refused when they are impossible."""

import struct
import time
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType, GGUFReader
from gguf_models import LLAMA
from gguf_writing import CRAFTED, WRITABLE, write_gguf

from layermesh.shared.checkpoints.gguf_header import read_gguf_header
from layermesh.shared.errors import CheckpointError, ModelError, UnsupportedModelError

U32, STRING, ARRAY = 4, 8, 9
F32, Q4_0 = 0, 2


def text(value: str | bytes) -> bytes:
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def number(key: str | bytes, value: int) -> bytes:
    return text(key) + struct.pack("<II", U32, value)


def tensor(name: str | bytes = "a", sizes: tuple[int, ...] = (4,), kind: int = F32, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


ARCHITECTURE = text("general.architecture") + struct.pack("<I", STRING) + text("llama")


def write(
    path: Path, *tensors: bytes, keys: tuple[bytes, ...] = (ARCHITECTURE,), data_bytes: int = 64, version: int = 3
) -> Path:
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys)) + b"".join(keys) + b"".join(tensors)
    path.write_bytes(head + b"\0" * (-len(head) % 32 + data_bytes))
    return path


def test_heads_are_read_as_gguf_reads_them(tmp_path):
    tokens = [f"t{index}" for index in range(5000)]
    path = write_gguf(tmp_path / "a.gguf", "llama", *LLAMA, [*WRITABLE, *CRAFTED], tokens)
    header, reader = read_gguf_header(path), GGUFReader(path)
    assert header.data_start == reader.data_offset
    assert header.array_lengths["tokenizer.ggml.tokens"] == 5000
    assert header.metadata["llama.rope.freq_base"] == 20000.0
    assert set(header.spans) == {name for name in reader.fields if not name.startswith("GGUF.")}
    assert len(header.tensors) == len(reader.tensors)
    for expected in reader.tensors:
        stored = header.tensors[expected.name]
        assert (stored.encoding, stored.shape) == (expected.tensor_type.name, tuple(expected.shape.tolist()[::-1]))
        assert (stored.offset, stored.num_bytes) == (expected.data_offset, expected.n_bytes)


HOSTILE = {
    "a billion tensors": lambda path: path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2**40, 0) + b"\0" * 64),
    "a billion keys": lambda path: path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 2**40) + b"\0" * 64),
    "nothing but a magic": lambda path: path.write_bytes(b"GGUF"),
    "empty": lambda path: path.write_bytes(b""),
    "another magic": lambda path: path.write_bytes(b"GGML" + b"\0" * 64),
    "an endless name": lambda path: write(path, struct.pack("<Q", 2**62) + b"a"),
    "an endless key": lambda path: write(path, keys=(struct.pack("<Q", 2**62) + b"a",)),
    "an endless text": lambda path: write(path, keys=(ARCHITECTURE, text("x") + struct.pack("<IQ", STRING, 2**62))),
    "an endless list": lambda path: write(path, keys=(ARCHITECTURE, text("x") + struct.pack("<IIQ", ARRAY, U32, 2**62))),
    "an endless list of texts": lambda path: write(
        path, keys=(ARCHITECTURE, text("x") + struct.pack("<IIQ", ARRAY, STRING, 7_000_000))
    ),
    "a list of lists": lambda path: write(path, keys=(ARCHITECTURE, text("x") + struct.pack("<IIQ", ARRAY, ARRAY, 1))),
    "an unknown type": lambda path: write(path, keys=(ARCHITECTURE, text("x") + struct.pack("<I", 13))),
    "a key twice": lambda path: write(path, keys=(ARCHITECTURE, ARCHITECTURE)),
    "a key that is not UTF-8": lambda path: write(path, keys=(ARCHITECTURE, number(b"\xff", 1))),
    "no architecture": lambda path: write(path, tensor(), keys=()),
    "an architecture that is a number": lambda path: write(path, keys=(number("general.architecture", 1),)),
    "an alignment of zero": lambda path: write(path, tensor(), keys=(ARCHITECTURE, number("general.alignment", 0))),
    "an alignment of 48": lambda path: write(path, tensor(), keys=(ARCHITECTURE, number("general.alignment", 48))),
    "a tensor twice": lambda path: write(path, tensor(), tensor(offset=32)),
    "overlapping tensors": lambda path: write(path, tensor("a", (8,)), tensor("b", (8,), offset=16)),
    "a tensor beyond the end": lambda path: write(path, tensor(offset=2**60)),
    "an offset that wraps around": lambda path: write(path, tensor(offset=2**64 - 32)),
    "more values than there are": lambda path: write(path, tensor(sizes=(2**32, 2**32))),
    "no dimensions": lambda path: write(path, tensor(sizes=())),
    "a thousand dimensions": lambda path: write(path, tensor(sizes=(1,) * 1000)),
    "half a block": lambda path: write(path, tensor(sizes=(48,), kind=Q4_0)),
    "a path as name": lambda path: write(path, tensor("../../etc/passwd")),
    "a line break in a name": lambda path: write(path, tensor("a\nb")),
    "a name that is not UTF-8": lambda path: write(path, tensor(b"\xff\xfe")),
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
def test_impossible_heads_are_refused_at_once(tmp_path, make):
    make(tmp_path / "a.gguf")
    started = time.monotonic()
    with pytest.raises(CheckpointError, match=r"a\.gguf") as refused:
        read_gguf_header(tmp_path / "a.gguf")
    assert time.monotonic() - started < 5
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: write(path, version=1), "GGUF version 1"),
        (lambda path: write(path, version=4), "GGUF version 4"),
        (lambda path: write(path, version=3 << 24), "big-endian"),
        (lambda path: write(path, tensor(kind=99)), "kind number 99.*Q4_0.*F32"),
        (lambda path: write(path, tensor(sizes=(32,), kind=int(GGMLQuantizationType.Q8_1))), "Q8_1.*Q4_0.*F32"),
    ],
    ids=["version 1", "version 4", "big-endian", "unknown kind", "kind nobody decodes"],
)
def test_kinds_that_are_not_read_are_named(tmp_path, make, message):
    make(tmp_path / "a.gguf")
    with pytest.raises(UnsupportedModelError, match=message):
        read_gguf_header(tmp_path / "a.gguf")


def test_truncated_files_are_named_with_both_sizes(tmp_path):
    path = write(tmp_path / "a.gguf", tensor(sizes=(16,)))
    whole = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=f"truncated: its header promises {whole} bytes and it has {whole - 1}"):
        read_gguf_header(path)


def test_damage_anywhere_in_the_head_is_refused_or_harmless(tmp_path):
    """Every byte of a head replaced in turn, and every length cut off: an answer or a ModelError, nothing else."""
    path = tmp_path / "a.gguf"
    whole = write(path, tensor("a", (4, 2)), tensor("b", (32,), Q4_0, 32), keys=(ARCHITECTURE, number("llama.x", 7)))
    content = whole.read_bytes()
    for position in range(len(content) - 64):
        for damaged in (
            content[:position],
            content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :],
            content[:position] + bytes([content[position] ^ 0x01]) + content[position + 1 :],
        ):
            path.write_bytes(damaged)
            try:
                read_gguf_header(path)
            except ModelError as error:
                assert "a.gguf" in str(error)  # noqa: PT017
