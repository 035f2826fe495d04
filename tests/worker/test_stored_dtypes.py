import pytest
import torch

from layermesh import LayerMesh
from layermesh.shared.checkpoints import open_checkpoint
from layermesh.shared.footprint import SequenceSize
from layermesh.shared.frames import SessionId
from layermesh.shared.quant import plain
from layermesh.shared.quant.native.kernel import native_kernel
from layermesh.worker import machine, opening
from layermesh.worker.opening import define_as_stored
from tests.architectures.runs import answer_greedily
from tests.benchmarks.models import build_llama

CPU = torch.device("cpu")
NUM_NEW = 3
PROMPT = [(7 * number) % 250 + 1 for number in range(150)]
needs_kernel = pytest.mark.skipif(native_kernel() is None, reason="there is no C compiler")


@pytest.fixture
def without_bfloat16(monkeypatch):
    """A processor that has no products of bfloat16, as most have."""
    for module in (machine, plain):
        monkeypatch.setattr(module, "multiplies_bfloat16", lambda: False)


def chosen(folder, unpacked, stored=torch.bfloat16, *, fast_path=True):
    definition, _ = define_as_stored(open_checkpoint(folder, unpacked), stored, CPU, fast_path=fast_path)
    return definition.model.dtype


@needs_kernel
def test_lean_layers_keep_bfloat16_on_any_processor(tiny, tmp_path, without_bfloat16):
    llama = build_llama(tmp_path / "llama", hidden=128, layers=1, vocab=64)
    assert chosen(llama, tmp_path) is torch.bfloat16
    odd = build_llama(tmp_path / "odd", hidden=192, layers=1, vocab=64)  # 528 columns, of which our kernel takes whole 32
    assert chosen(odd, tmp_path) is torch.float32
    assert chosen(tiny("gpt2"), tmp_path) is torch.float32
    assert chosen(llama, tmp_path, fast_path=False) is torch.float32
    assert chosen(llama, tmp_path, torch.float32) is torch.float32
    assert chosen(llama, tmp_path, torch.float16) is torch.float32
    assert chosen(llama, tmp_path, None) is torch.float32


def test_without_our_kernel_they_do_not(tmp_path, without_bfloat16, monkeypatch):
    monkeypatch.setattr(opening, "native_kernel", lambda: None)
    assert chosen(build_llama(tmp_path / "llama", hidden=128, layers=1, vocab=64), tmp_path) is torch.float32


def answer(folder, **options):
    with LayerMesh(str(folder), device="cpu", **options) as mesh:
        mesh.local.line.reserve(SessionId("session 0"), SequenceSize(len(PROMPT) + NUM_NEW, len(PROMPT)))
        (made,) = answer_greedily(mesh.local.line, [PROMPT], NUM_NEW)
        return made, sum(block.loaded_bytes for block in mesh.local.table.stream)


@needs_kernel
def test_a_prompt_in_bfloat16_never_meets_torchs_slow_product(tmp_path, without_bfloat16, monkeypatch):
    folder = build_llama(tmp_path / "model", hidden=128, layers=2, vocab=300, dtype=torch.bfloat16)
    expected, wide_bytes = answer(folder, dtype="float32")
    real = torch.nn.functional.linear

    def linear(inputs, weight, bias=None):
        assert weight.dtype is not torch.bfloat16
        return real(inputs, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    made, num_bytes = answer(folder)
    assert num_bytes < 0.6 * wide_bytes
    assert torch.allclose(made.logits[0].float(), expected.logits[0], atol=0.02)
