"""Headers are read back as they were written, and refused when they contradict themselves or the file."""

import json
import struct
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from layermesh.shared.checkpoints import decode
from layermesh.shared.checkpoints.safetensors_header import read_header
from layermesh.shared.checkpoints.tensors import TORCH_DTYPES
from layermesh.shared.errors import CheckpointError, UnsupportedModelError

names = st.text("abcXYZ019_.-é", min_size=1, max_size=40).filter(lambda name: ".." not in name)
tensors = st.builds(
    lambda dtype, shape: torch.zeros(shape).to(dtype),
    st.sampled_from(sorted(TORCH_DTYPES.values(), key=str)),
    st.lists(st.integers(0, 4), max_size=4),
)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(names, tensors, min_size=1, max_size=6), st.dictionaries(names, names, max_size=2))
def test_headers_read_back_as_written(written, metadata):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file(written, path, metadata)
        read = read_header(path)
        assert set(read) == set(written)
        content = path.read_bytes()
        for name, tensor in written.items():
            stored = read[name]
            assert (stored.shape, stored.dtype, stored.path) == (tuple(tensor.shape), tensor.dtype, path)
            raw = bytearray(content[stored.offset : stored.offset + stored.num_bytes])
            assert len(raw) == stored.num_bytes == tensor.nbytes
            if raw and tensor.dtype.is_floating_point and tensor.dtype != torch.float8_e8m0fnu:
                out = torch.empty(tensor.shape, dtype=torch.float32)
                decode(torch.frombuffer(raw, dtype=torch.uint8), stored.encoding, out)
                assert torch.equal(out, tensor.float())


def write(path: Path, header: object, data: bytes = b"\0" * 16, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(begin: object = 0, end: object = 16, dtype: object = "F32", shape: object = (2, 2)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


GOOD = {"weight": entry()}
TWICE = b"{%s, %s}" % (json.dumps(GOOD)[1:-1].encode(), json.dumps(GOOD)[1:-1].encode())
HOSTILE = {
    "not JSON": b"{",
    "not UTF-8": b'{"\xff": 1}',
    "not an object": [1],
    "nested too deeply": b"[" * 100_000,
    "a key twice": TWICE,
    "metadata that is no table": {"__metadata__": [], **GOOD},
    "metadata with numbers": {"__metadata__": {"a": 1}, **GOOD},
    "no entry": {"weight": 7},
    "an entry with more": {"weight": entry() | {"run": "me"}},
    "an entry with less": {"weight": {"dtype": "F32", "shape": [4]}},
    "a path as name": {"../../etc/passwd": entry()},
    "a slash": {"a/b": entry()},
    "a backslash": {"a\\b": entry()},
    "two dots": {"a..b": entry()},
    "a line break": {"a\nb": entry()},
    "an escape sequence": {"a\x1b[2Jb": entry()},
    "no name": {"": entry()},
    "a name without end": {"a" * 301: entry()},
    "a negative size": {"weight": entry(shape=[-2, -2])},
    "a true size": {"weight": entry(shape=[True, 4])},
    "a fraction of a size": {"weight": entry(shape=[4.0])},
    "a shape of text": {"weight": entry(shape="22")},
    "too many dimensions": {"weight": entry(shape=[1] * 17)},
    "more values than there are": {"weight": entry(shape=[2**40, 2**40])},
    "a number without end": b'{"weight": {"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,16]}}',
    "fewer bytes than the shape": {"weight": entry(end=12)},
    "more bytes than the shape": {"weight": entry(shape=[2])},
    "negative offsets": {"weight": entry(-16, 0)},
    "offsets backwards": {"weight": entry(16, 0)},
    "one offset": {"weight": entry() | {"data_offsets": [0]}},
    "true offsets": {"weight": entry(False, 16)},
    "beyond the end": {"weight": entry(8, 24)},
    "far beyond the end": {"weight": entry(2**63, 2**63 + 16)},
    "overlapping": {"a": entry(), "b": entry(4, 12, shape=[2])},
    "the same bytes": {"a": entry(), "b": entry()},
    "nothing inside another": {"a": entry(), "b": entry(8, 8, shape=[0])},
}


@pytest.mark.parametrize("header", HOSTILE.values(), ids=HOSTILE)
def test_hostile_headers_are_refused(tmp_path, header):
    path = write(tmp_path / "model.safetensors", header)
    with pytest.raises(CheckpointError, match=r"model\.safetensors") as refused:
        read_header(path)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("dtype", ["F4", "Q4_0", "float32", 32, None], ids=str)
def test_unknown_dtypes_are_named(tmp_path, dtype):
    with pytest.raises(UnsupportedModelError, match=str(dtype)):
        read_header(write(tmp_path / "model.safetensors", {"weight": entry(dtype=dtype)}))


@pytest.mark.parametrize(
    ("length", "message"),
    [(0, "not a safetensors"), (2**63, "not a safetensors"), (100_000_001, "not a safetensors"), (10**8, "truncated")],
    ids=["none", "absurd", "beyond the limit", "beyond the file"],
)
def test_impossible_header_lengths_are_refused(tmp_path, length, message):
    with pytest.raises(CheckpointError, match=message):
        read_header(write(tmp_path / "model.safetensors", GOOD, length=length))


def test_truncated_files_are_named_with_both_sizes(tmp_path):
    path = write(tmp_path / "model.safetensors", GOOD)
    whole = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=f"truncated: its header promises {whole} bytes and it has {whole - 5}"):
        read_header(path)


def test_files_of_any_length_are_refused_or_read(tmp_path):
    content = write(tmp_path / "whole.safetensors", GOOD).read_bytes()
    for length in range(len(content)):
        path = tmp_path / "model.safetensors"
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            read_header(path)


def test_holes_and_bytes_at_the_end_are_harmless(tmp_path):
    path = write(tmp_path / "model.safetensors", {"weight": entry(4, 12, shape=[2])})
    assert read_header(path)["weight"].num_bytes == 8
