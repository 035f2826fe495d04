from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_checkpoints import change_config

from layermesh import Answer, LayerMesh
from layermesh.coordinator.sampling import Sampler
from layermesh.shared.errors import BudgetError, CheckpointError, ModelError, UsageError
from layermesh.shared.footprint import SequenceSize
from layermesh.shared.frames import Frame
from layermesh.worker.stage import Stage

FAMILIES = ["llama", "mixtral", "mamba", "qwen3_next"]
LENGTHS = [(3, 8), (40, 2), (1, 12), (17, 5), (9, 1), (30, 7)]  # tokens of the prompt and of the answer


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return [5 + (seed + 7 * i) % 90 for i in range(length)]


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> list[list[float]]:
    """All scores that are sampled from while the test runs, in order."""
    seen: list[list[float]] = []
    sample = Sampler.sample

    def watching(sampler: Sampler, logits: torch.Tensor) -> int:
        seen.append(logits.tolist())
        return sample(sampler, logits)

    monkeypatch.setattr(Sampler, "sample", watching)
    return seen


@pytest.fixture(scope="module")
def mesh(text_model: Path) -> Iterator[LayerMesh]:
    with LayerMesh(str(text_model), device="cpu", host_memory="64MB") as mesh:
        yield mesh


@pytest.fixture
def sociable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Board whoever there is room for: beside the caches of these sessions, tiny models are too small to share."""
    monkeypatch.setattr("layermesh.berths.saves_reading", lambda *_: True)


@pytest.fixture
def sweeps(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """How many tokens each session brought to each sweep while the test runs."""
    seen: list[list[int]] = []
    forward = Stage.forward

    def watching(stage: Stage, frames: Sequence[Frame]) -> list[Any]:
        seen.append([len(frame.token_ids) for frame in frames])
        return forward(stage, frames)

    monkeypatch.setattr(Stage, "forward", watching)
    return seen


@pytest.mark.parametrize("max_sessions", [1, 4, 32])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_each_answer_is_to_the_bit_the_one_it_gets_alone(
    model_type: str, max_sessions: int, tiny: Callable[[str], Path], scores: list[Any], sweeps: list[list[int]],
    sociable: None, one_thread: None,
) -> None:  # fmt: skip
    prompts = [prompt_of(length, seed) for seed, (length, _) in enumerate(LENGTHS)]
    each: list[Any] = [{"max_new_tokens": limit, "seed": limit} for _, limit in LENGTHS]
    common: dict[str, Any] = {"temperature": 0.9, "ignore_eos": True}
    with LayerMesh(str(tiny(model_type)), device="cpu") as mesh:
        alone = [mesh.generate(prompt, **common, **one) for prompt, one in zip(prompts, each, strict=True)]
    expected = sorted(scores)
    scores.clear()
    sweeps.clear()
    budget = least_memory(tiny(model_type), *[SequenceSize(42, 40)] * 3)
    with LayerMesh(str(tiny(model_type)), device="cpu", host_memory=budget) as mesh:
        together = mesh.generate_many(prompts, each=each, max_sessions=max_sessions, **common)
        assert mesh.local.stage._sessions == mesh.local.stage._reserved == {}
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]
    assert sorted(scores) == expected
    assert min(max_sessions, 3) <= max(map(len, sweeps)) <= max_sessions
    if max_sessions > 1:
        assert together[-1].plan.stages[0].streamed_bytes > 0
        assert any(max(sweep) > 1 and min(sweep) == 1 for sweep in sweeps)  # prompts beside single tokens


def test_a_family_with_one_state_for_all_sequences_takes_one_at_a_time(tiny: Callable[[str], Path], sociable: None) -> None:
    prompts = [prompt_of(length) for length in (6, 4, 9)]
    with LayerMesh(str(tiny("recurrent_gemma")), device="cpu", dtype="float32") as mesh:
        alone = [mesh.generate(prompt, max_new_tokens=6, temperature=0).token_ids for prompt in prompts]
        together = mesh.generate_many(prompts, max_new_tokens=6, temperature=0)
    assert [answer.token_ids for answer in together] == alone


@pytest.mark.parametrize("num_places", [1, 2, 3])
def test_as_many_are_aboard_as_there_is_memory_for(
    num_places: int, tiny: Callable[[str], Path], sweeps: list[list[int]], sociable: None
) -> None:
    budget = least_memory(tiny("llama"), *[SequenceSize(30, 10)] * num_places)
    with LayerMesh(str(tiny("llama")), device="cpu", host_memory=budget) as mesh:
        stream = mesh.stream_many([prompt_of(10)] * 5, max_new_tokens=20, ignore_eos=True)
        finished = list(stream)
        assert mesh.local.stage.peak_bytes <= budget
    assert max(map(len, sweeps)) == num_places
    assert len(sweeps) == 20 * -(-5 // num_places)
    assert [one.index for one in finished] == list(range(5))
    assert {tuple(one.answer.token_ids) for one in finished if one.answer} == {tuple(finished[0].answer.token_ids)}
    assert (stream.progress.num_finished, stream.progress.num_aboard, stream.progress.num_tokens) == (5, 0, 100)


def test_short_answers_leave_and_others_board_before_the_next_sweep(mesh: LayerMesh, sweeps: list[list[int]]) -> None:
    each: list[Any] = [{"max_new_tokens": limit} for limit in (3, 1, 2, 1)]
    with mesh.stream_many([[5, 6]] * 4, each=each, max_sessions=2, ignore_eos=True) as stream:
        assert [one.index for one in stream] == [1, 0, 2, 3]
    assert sweeps == [[2, 2], [1, 2], [1, 1], [2]]


def test_nobody_boards_where_every_token_would_read_more(tiny: Callable[[str], Path], sweeps: list[list[int]]) -> None:
    size = SequenceSize(60, 10)
    with LayerMesh(str(tiny("llama")), device="cpu", host_memory="1GB") as mesh:
        everything = mesh.local.layout(size).total_bytes
    with LayerMesh(str(tiny("llama")), device="cpu", host_memory=everything) as mesh:
        answers = mesh.generate_many([prompt_of(10)] * 3, max_new_tokens=50, ignore_eos=True)
    assert max(map(len, sweeps)) == 1
    assert [answer.plan.stages[0].streamed_bytes for answer in answers] == [0, 0, 0]


@pytest.mark.parametrize("asked", [{"max_new_tokens": 20}, {}], ids=["a length", "no length"])
def test_a_prompt_goes_in_the_chunks_it_goes_in_alone(
    asked: dict[str, Any], spoilt: Path, sweeps: list[list[int]], sociable: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where memory is short, chunks and lengths shrink to what fits alone, not to what others leave."""
    monkeypatch.setattr("layermesh.request.DEFAULT_NEW_TOKENS", 128)
    change_config(spoilt, max_position_embeddings=4096)
    prompts = [prompt_of(900), prompt_of(20), prompt_of(30)]
    least = least_memory(spoilt, SequenceSize(900 + asked.get("max_new_tokens", 64), 256))
    with LayerMesh(str(spoilt), device="cpu", host_memory=least) as mesh:
        alone = [mesh.generate(prompt, ignore_eos=True, **asked) for prompt in prompts]
        shapes = sorted(tuple(sweep) for sweep in sweeps)
        sweeps.clear()
        together = mesh.generate_many(prompts, ignore_eos=True, **asked)
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]
    assert sorted((length,) for sweep in sweeps for length in sweep) == shapes
    assert 16 <= max(max(sweep) for sweep in sweeps) < 512
    assert max(map(len, sweeps)) > 1


def fail_at(monkeypatch: pytest.MonkeyPatch, num_prompt: int) -> None:
    """Let the session with a prompt of so many tokens fail at its third step."""
    finish = Stage._finish

    def failing(stage: Stage, frame: Frame, forward: Any) -> Any:
        if (frame.step, frame.position) == (2, num_prompt + 1):
            forward.failure = RuntimeError("made up")
        return finish(stage, frame, forward)

    monkeypatch.setattr(Stage, "_finish", failing)


def test_one_that_fails_takes_no_other_with_it(mesh: LayerMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts: list[Any] = [[5, 6], [7, 8, 9], [999], "", "x" * 300, [5, 6, 7, 8]]
    expected = [mesh.generate(prompts[index], max_new_tokens=6).token_ids for index in (0, 5)]
    fail_at(monkeypatch, 3)
    results = {one.index: one for one in mesh.stream_many(prompts, max_new_tokens=6)}
    assert sorted(results) == list(range(6))
    answers = [results[index].answer for index in (0, 5)]
    assert [answer.token_ids for answer in answers if answer] == expected
    assert [type(results[index].error) for index in (1, 2, 3, 4)] == [ModelError, UsageError, UsageError, UsageError]
    assert "made up" in str(results[1].error)
    assert mesh.local.stage._sessions == mesh.local.stage._reserved == {}


def test_a_prompt_that_can_never_fit_says_how_much_would_do(tiny: Callable[[str], Path]) -> None:
    budget = least_memory(tiny("llama"), SequenceSize(40, 10))
    each: list[Any] = [{"max_new_tokens": limit} for limit in (30, 31, 30)]
    with LayerMesh(str(tiny("llama")), device="cpu", host_memory=budget) as mesh:
        results = sorted(mesh.stream_many([prompt_of(10)] * 3, each=each), key=lambda one: one.index)
        assert [type(one.error) for one in results] == [type(None), BudgetError, type(None)]
        with pytest.raises(BudgetError, match="--host-memory"):
            mesh.generate_many([prompt_of(10)] * 3, each=each)


def test_what_cannot_be_answered_is_known_before_anything_is_computed(mesh: LayerMesh, sweeps: list[list[int]]) -> None:
    with pytest.raises(UsageError, match="is empty"):
        mesh.generate_many(["Hello", ""])
    assert sweeps == []


def test_a_failure_in_the_middle_is_raised(mesh: LayerMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_at(monkeypatch, 3)
    with pytest.raises(ModelError, match="made up"):
        mesh.generate_many([[5, 6], [7, 8, 9]], max_new_tokens=6)
    assert mesh.local.stage._sessions == mesh.local.stage._reserved == {}


def test_a_fault_of_the_disk_concerns_everybody(mesh: LayerMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = mesh.stream_many([[5, 6], [7]], each=[{"max_new_tokens": 1}, {"max_new_tokens": 9}], ignore_eos=True)
    assert next(stream).index == 0
    with monkeypatch.context() as patch:
        patch.setattr(Stage, "forward", lambda *_: (_ for _ in ()).throw(CheckpointError("the disk is gone")))
        with pytest.raises(CheckpointError, match="disk"):
            next(stream)
    assert mesh.local.stage._sessions == mesh.local.stage._reserved == {}


def test_texts_chats_and_ids_with_settings_of_their_own(mesh: LayerMesh) -> None:
    prompts: list[Any] = ["Hello", [{"role": "user", "content": "Hello"}], [5, 6, 7]]
    each: list[Any] = [{"raw": True}, {"seed": 4}, {"max_new_tokens": 3}]
    common: dict[str, Any] = {"max_new_tokens": 8, "temperature": 1, "seed": 1, "stop": ["never said"]}
    together = mesh.generate_many(prompts, each=each, **common)
    alone = [mesh.generate(prompt, **(common | one)) for prompt, one in zip(prompts, each, strict=True)]
    assert [(one.text, one.seed) for one in together] == [(one.text, one.seed) for one in alone]
    assert all(isinstance(answer, Answer) for answer in together)
    assert {answer.stream.sweeps for answer in together} == {8, 3}


def test_every_answer_draws_a_seed_of_its_own(mesh: LayerMesh) -> None:
    assert len({answer.seed for answer in mesh.generate_many(["Hello"] * 5, max_new_tokens=1, temperature=1)}) == 5


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"max_sessions": 0}, UsageError, "at least one session"),
        ({"max_sessions": True}, UsageError, "at least one session"),
        ({"each": [{}]}, UsageError, "settings for 1 prompts, and there are 2"),
        ({"each": [{}, {"temprature": 1}]}, TypeError, "temprature"),
        ({"temprature": 1}, TypeError, "temprature"),
    ],
    ids=str,
)
@pytest.mark.parametrize("call", ["generate_many", "stream_many"])
def test_calls_that_cannot_be_meant(
    call: str, arguments: dict[str, Any], error: type[Exception], said: str, mesh: LayerMesh
) -> None:
    with pytest.raises(error, match=said):
        getattr(mesh, call)(["Hello", "you"], **arguments)


def test_no_prompts_no_answers(mesh: LayerMesh) -> None:
    assert mesh.generate_many([]) == list(mesh.stream_many(iter([]))) == []


@pytest.mark.parametrize("how", ["close", "forget"])
def test_a_stream_that_ends_early_leaves_nothing(how: str, mesh: LayerMesh) -> None:
    each: list[Any] = [{"max_new_tokens": 1}, {"max_new_tokens": 50}]
    stream = mesh.stream_many([[5, 6], [7]], each=each, ignore_eos=True)
    next(stream)
    assert mesh.local.stage._sessions != {}
    if how == "close":
        stream.close()
        assert list(stream) == []
    del stream
    assert mesh.local.stage._sessions == mesh.local.stage._reserved == {}


def test_a_stream_of_a_closed_mesh_says_so(text_model: Path) -> None:
    with LayerMesh(str(text_model)) as mesh:
        begun, unbegun = (mesh.stream_many([[5], [6]], each=[{"max_new_tokens": n} for n in (1, 9)]) for _ in range(2))
        next(begun)
    for call in (lambda: next(begun), lambda: next(unbegun), lambda: mesh.stream_many(["Hello"])):
        with pytest.raises(UsageError, match="is closed"):
            call()


def least_memory(folder: Path, *sizes: SequenceSize) -> int:
    """The least memory in which sessions of these sizes fit."""
    with LayerMesh(str(folder), device="cpu", host_memory=1000) as mesh, pytest.raises(BudgetError) as refused:
        mesh.local.layout(*sizes)
    return refused.value.needed_bytes
