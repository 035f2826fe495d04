import pytest

from layermesh.coordinator.pipeline import Pipeline
from layermesh.shared.frames import SessionId
from layermesh.worker import turns
from layermesh.worker.doors import Forward
from tests.architectures.runs import answer_greedily, difference
from tests.running import PLENTY, SIZE, opened

PROMPTS = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]
LENGTH = 5


@pytest.fixture
def small_turns(monkeypatch):
    """Let matrices of tests take several turns; gives a list of who let others have theirs."""
    taken = []

    def let_others(self):
        taken.append(self)
        real(self)

    real = Forward.let_others
    monkeypatch.setattr(Forward, "let_others", let_others)
    monkeypatch.setattr(turns, "TURN_BYTES", 4096)
    monkeypatch.setattr(turns, "ALIGNED_ROWS", 8)
    return taken


def answers(stage, prompts):
    for number in range(len(prompts)):
        stage.reserve(SessionId(f"session {number}"), SIZE)
    try:
        return answer_greedily(Pipeline([stage]), prompts, LENGTH)
    finally:
        for number in range(len(prompts)):
            stage.release(SessionId(f"session {number}"))


@pytest.mark.parametrize("budget_bytes", [PLENTY, None], ids=["resident", "streaming"])
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "mixtral", "hrm_text"])
def test_those_who_take_turns_get_what_they_get_alone(tiny, small_turns, model_type, budget_bytes):
    with opened(tiny(model_type), budget_bytes=budget_bytes, spare_bytes=1 << 20) as stage:
        alone = [answers(stage, [prompt])[0] for prompt in PROMPTS]
        assert not small_turns
        together = answers(stage, PROMPTS)
    assert [difference(ours, theirs) for ours, theirs in zip(together, alone, strict=True)] == [""] * 3
    assert small_turns


def test_a_kernel_that_rounds_parts_differently_is_left_alone(tiny, small_turns, monkeypatch):
    monkeypatch.setattr(turns, "_product", lambda module, hidden, *_: hidden.new_zeros(1, 1, len(module.weight)))
    with opened(tiny("llama"), budget_bytes=PLENTY) as stage:
        alone = [answers(stage, [prompt])[0] for prompt in PROMPTS]
        together = answers(stage, PROMPTS)
    assert [difference(ours, theirs) for ours, theirs in zip(together, alone, strict=True)] == [""] * 3
    assert not small_turns
