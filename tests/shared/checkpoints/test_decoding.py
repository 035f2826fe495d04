"""Decoded values equal gguf's and torch's own, whatever the pieces they are decoded in."""

import tracemalloc

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, dequantize
from gguf_writing import CRAFTED, WRITABLE, stored_rows

from layermesh.shared.checkpoints import decode, decoding, row_bytes
from layermesh.shared.checkpoints.tensors import TORCH_DTYPES

QUANTISED = [encoding for encoding in (*WRITABLE, *CRAFTED) if encoding not in TORCH_DTYPES]


def as_bytes(rows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(rows.reshape(-1).view(np.uint8).copy())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("encoding", [*WRITABLE, *CRAFTED])
def test_gguf_encodings_decode_as_gguf_does(monkeypatch, encoding, dtype):
    monkeypatch.setattr(decoding, "_CHUNK_ELEMENTS", 1024)
    monkeypatch.setattr(decoding, "_SIMPLE_CHUNK_ELEMENTS", 1024)
    rows = stored_rows(np.random.default_rng(1), (7, 768), encoding)
    expected = torch.from_numpy(dequantize(rows, GGMLQuantizationType[encoding]).reshape(7, 768)).to(dtype)
    out = torch.full((7, 768), torch.nan, dtype=dtype)
    decode(as_bytes(rows), encoding, out)
    assert torch.equal(out, expected)
    assert out.isfinite().all()


@pytest.mark.parametrize("encoding", QUANTISED)
def test_temporaries_do_not_grow_with_the_tensor(encoding):
    raw = torch.zeros(64 * row_bytes(encoding, 2**15), dtype=torch.uint8)
    out = torch.empty((64, 2**15), dtype=torch.bfloat16)  # 8 MiB once decoded to float32
    decode(raw[: row_bytes(encoding, 2**15)], encoding, out[:1])
    tracemalloc.start()
    decode(raw, encoding, out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 2**20


@pytest.mark.parametrize("shift", [0, 1, 2], ids=lambda shift: f"{shift} bytes off")
@pytest.mark.parametrize("stored", ["F64", "F32", "F16", "BF16", "F8_E4M3", "I64", "U8", "BOOL"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_torch_dtypes_are_cast(monkeypatch, stored, dtype, shift):
    monkeypatch.setattr(decoding, "_CHUNK_ELEMENTS", 8)
    values = torch.arange(30).remainder(7).to(TORCH_DTYPES[stored]).view(5, 6)
    raw = torch.cat([torch.zeros(shift, dtype=torch.uint8), values.view(-1).view(torch.uint8)])[shift:]
    out = torch.empty(5, 6, dtype=dtype)
    decode(raw, stored, out)
    assert torch.equal(out, values.to(dtype))


def test_a_scalar_and_nothing_at_all():
    out = torch.empty(())
    decode(torch.tensor([2.5]).view(torch.uint8), "F32", out)
    assert out.item() == 2.5
    decode(torch.empty(0, dtype=torch.uint8), "F16", torch.empty(0, 4))
    decode(torch.empty(0, dtype=torch.uint8), "Q4_K", torch.empty(0, 256))


@pytest.mark.parametrize(
    ("encoding", "columns", "num_bytes"),
    [("F32", 3, 12), ("BF16", 3, 6), ("Q4_0", 64, 36), ("Q6_K", 512, 420), ("IQ4_XS", 256, 136)],
)
def test_row_bytes(encoding, columns, num_bytes):
    assert row_bytes(encoding, columns) == num_bytes


@pytest.mark.parametrize(
    ("raw_bytes", "encoding", "shape"),
    [(3, "F32", (1,)), (36, "Q4_0", (33,)), (4, "Q9_9", (1,)), (8, "F32", (1,))],
    ids=["too few bytes", "not whole blocks", "unknown encoding", "too many bytes"],
)
def test_contradictions_are_refused(raw_bytes, encoding, shape):
    with pytest.raises(ValueError):
        decode(torch.zeros(raw_bytes, dtype=torch.uint8), encoding, torch.empty(shape))


def test_strided_results_are_refused():
    with pytest.raises(ValueError, match="strides"):
        decode(torch.zeros(24, dtype=torch.uint8), "F32", torch.empty(3, 2).T)
