import pytest
import torch

from layermesh.shared.errors import ResourceError
from layermesh.shared.frames import Failure, Frame, SessionId
from layermesh.shared.quant.native.kernel import native_kernel
from layermesh.worker import meetings
from tests.architectures.runs import difference
from tests.benchmarks.models import build_llama
from tests.running import PLENTY, SIZE, next_frame, opened
from tests.worker.test_turns import PROMPTS, answers

pytestmark = pytest.mark.skipif(native_kernel() is None, reason="there is no C compiler")


@pytest.fixture
def numbers_met(monkeypatch):
    """How many sessions each product was made for, in order."""
    met = []

    def multiply(hidden, weights, bias):
        met.append(hidden.numel() // hidden.shape[-1])
        return real(hidden, weights, bias)

    real = meetings.multiply
    monkeypatch.setattr(meetings, "multiply", multiply)
    return met


@pytest.mark.parametrize("budget_bytes", [PLENTY, None], ids=["resident", "streaming"])
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "phi3", "qwen3_moe"])
def test_those_who_meet_get_what_they_get_alone(tiny, numbers_met, model_type, budget_bytes):
    with opened(tiny(model_type), budget_bytes=budget_bytes, spare_bytes=1 << 20, fast_path=True) as stage:
        alone = [answers(stage, [prompt])[0] for prompt in PROMPTS]
        assert set(numbers_met) == {1}
        numbers_met.clear()
        together = answers(stage, PROMPTS)
    assert [difference(ours, theirs) for ours, theirs in zip(together, alone, strict=True)] == [""] * 3
    assert max(numbers_met) == len(PROMPTS)


def test_layers_of_other_kinds_do_without(tiny, numbers_met):
    with opened(tiny("llama"), budget_bytes=PLENTY, fast_path=False) as stage:
        answers(stage, PROMPTS)
    assert not numbers_met


def test_a_session_that_fails_at_a_matrix_leaves_nothing_for_the_others_to_meet(tiny, monkeypatch):
    with opened(tiny("llama"), budget_bytes=PLENTY, fast_path=True) as stage:
        alone = [answers(stage, [prompt])[0] for prompt in PROMPTS]

        def interrupted(*_):
            raise KeyboardInterrupt

        real = meetings.multiply
        monkeypatch.setattr(meetings, "multiply", interrupted)
        with pytest.raises(KeyboardInterrupt):
            answers(stage, PROMPTS)
        monkeypatch.setattr(meetings, "multiply", real)
        together = answers(stage, PROMPTS)
    assert [difference(ours, theirs) for ours, theirs in zip(together, alone, strict=True)] == [""] * 3


def test_one_that_finds_no_memory_takes_no_other_with_it(tiny, monkeypatch):
    with opened(tiny("llama"), budget_bytes=PLENTY, fast_path=True) as stage:
        alone = [answers(stage, [prompt])[0] for prompt in PROMPTS]
        for number in range(len(PROMPTS)):
            stage.reserve(SessionId(f"session {number}"), SIZE)
        firsts = [Frame(SessionId(f"session {n}"), 0, 0, 0, tuple(prompt)) for n, prompt in enumerate(PROMPTS)]
        chosen = [int(logits.scores.argmax()) for logits in stage.forward(firsts)]
        real, calls = meetings.multiply, []

        def failing(*args):
            calls.append(args)
            if len(calls) == 3:
                raise MemoryError("no memory")
            return real(*args)

        monkeypatch.setattr(meetings, "multiply", failing)
        nexts = [next_frame(frame, token) for frame, token in zip(firsts, chosen, strict=True)]
        first, *others = stage.forward(nexts)
    assert isinstance(first, Failure)
    assert isinstance(first.error, ResourceError)
    for answer, outcome in zip(alone[1:], others, strict=True):
        assert torch.equal(outcome.scores, answer.logits[1])


def test_a_head_in_pieces_says_what_a_whole_one_says(tmp_path):
    folder = build_llama(tmp_path / "model", hidden=64, layers=2, vocab=8192)
    with opened(folder, budget_bytes=PLENTY, fast_path=True) as stage:
        whole = answers(stage, PROMPTS[:1])
    with opened(folder, spare_bytes=1 << 19, fast_path=True) as stage:
        in_pieces = answers(stage, PROMPTS[:1])
        assert stage.residency is not None
        assert any(block.rows for block in stage.residency.blocks)
    assert difference(in_pieces[0], whole[0]) == ""
