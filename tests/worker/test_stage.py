import gc
import json
import shutil
import threading
import weakref
from dataclasses import replace

import pytest
import torch
from transformers import Cache

from layermesh.coordinator.pipeline import Pipeline
from layermesh.shared.errors import BudgetError, CheckpointError, MeshError, ModelError, ResourceError
from layermesh.shared.footprint import Footprint, SequenceSize
from layermesh.shared.frames import Failure, Frame, LayerOutput, Logits
from layermesh.shared.model.blocks import split_head
from layermesh.shared.spans import LayerSpan
from layermesh.worker.stage import Stage
from tests.architectures.runs import answer_greedily, difference, streaming_pipeline
from tests.architectures.tiny import PROMPT, reference
from tests.running import (
    NUM_NEW,
    NUM_TOKENS,
    PLENTY,
    SIZE,
    first_frame,
    next_frame,
    num_descriptors,
    open_model,
    opened,
    wait_until,
)

PROMPTS = [PROMPT, PROMPT[:3], [99]]
LENGTH = 6

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def llama(tiny):
    return tiny("llama")


def continue_alone(stage: Stage, name: str, prompt: list[int], num_tokens: int = LENGTH) -> list[int]:
    frame = first_frame(name, prompt)
    token_ids: list[int] = []
    for _ in range(num_tokens):
        (logits,) = stage.forward([frame])
        token_ids.append(int(logits.scores.argmax()))
        frame = next_frame(frame, token_ids[-1])
    return token_ids


def when_layer_runs(stage: Stage, layer: int, act) -> None:
    """Let `act` be called inside the forward of a layer, once the stage's door has let a session through."""
    stage._definition.layers[layer].self_attn.register_forward_pre_hook(lambda *_: act())


class Once:
    """Raises at its `number`th call."""

    def __init__(self, number: int, error: BaseException):
        self.left, self.error = number, error

    def __call__(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise self.error


@pytest.mark.parametrize("num_stages", [1, 2, 3, 4])
def test_stages_in_a_row_answer_as_transformers_does_to_the_bit(llama, num_stages):
    with streaming_pipeline(llama, num_stages, NUM_TOKENS, NUM_NEW) as pipeline:
        (answer,) = answer_greedily(pipeline, [PROMPT], 12)
    assert difference(answer, reference(llama, PROMPT, 12)) == ""


@pytest.mark.parametrize("num_stages", [1, 2])
def test_sessions_that_share_sweeps_equal_themselves_alone(llama, num_stages):
    with streaming_pipeline(llama, num_stages, NUM_TOKENS, NUM_NEW) as pipeline:
        together = answer_greedily(pipeline, PROMPTS, 8)
    for prompt, ours in zip(PROMPTS, together, strict=True):
        assert difference(ours, reference(llama, prompt, 8)) == ""


def test_what_stays_and_what_streams_gives_the_same_bits(llama):
    expected = reference(llama, PROMPT, LENGTH)
    for spare_bytes in (0, 60_000, 150_000, PLENTY):
        with opened(llama, spare_bytes=spare_bytes) as stage:
            (answer,) = answer_greedily(Pipeline([stage]), [PROMPT], LENGTH)
        assert difference(answer, expected) == "", spare_bytes


def test_streamed_blocks_are_read_once_a_sweep_however_many_sessions(llama):
    with opened(llama) as stage:
        read = []
        for names in (["a"], ["a", "b", "c"]):
            frames = [first_frame(f"{name} of {len(names)}", PROMPT) for name in names]
            stage.forward(frames)
            settle(stage)
            before = stage.files.num_bytes
            stage.forward([next_frame(frame, 5) for frame in frames])
            settle(stage)
            read.append(stage.files.num_bytes - before)
        embeddings = 64 * 4
        assert read == [stage.residency.streamed_bytes + embeddings * number for number in (1, 3)]


def settle(stage: Stage) -> None:
    for present in stage._streamer._present.values():
        if present.loading is not None:
            present.loading.wait()


def test_a_session_that_fails_disturbs_no_other(llama):
    with opened(llama) as stage:
        alone = {name: continue_alone(stage, f"{name} alone", prompt) for name, prompt in zip("abc", PROMPTS, strict=True)}
        frames = [first_frame(name, prompt) for name, prompt in zip("abc", PROMPTS, strict=True)]
        outcomes = stage.forward(frames)
        answers = {frame.session: [int(logits.scores.argmax())] for frame, logits in zip(frames, outcomes, strict=True)}
        when_layer_runs(stage, 2, Once(2, ZeroDivisionError("made up")))
        for step in range(1, LENGTH):
            frames = [next_frame(frame, answers[frame.session][-1]) for frame in frames]
            outcomes = stage.forward(frames)
            if step == 1:
                (failure,) = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
                assert failure.session == outcomes[1].session == "b"
                assert isinstance(failure.error, ModelError)
                assert "LlamaForCausalLM failed at token 3: made up" in str(failure.error)
                assert isinstance(failure.error.__cause__, ZeroDivisionError)
            frames = [frame for frame, outcome in zip(frames, outcomes, strict=True) if isinstance(outcome, Logits)]
            for outcome in outcomes:
                if isinstance(outcome, Logits):
                    answers[outcome.session].append(int(outcome.scores.argmax()))
        assert {name: answers[name] for name in "ac"} == {name: alone[name] for name in "ac"}
        assert "b" not in stage._sessions
        assert continue_alone(stage, "b", PROMPTS[1]) == alone["b"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), MemoryError()], ids=lambda error: type(error).__name__)
def test_an_interruption_unwinds_every_session_and_the_stage_goes_on(llama, error):
    with opened(llama) as stage:
        expected = continue_alone(stage, "before", PROMPT)
        unwound = []
        layer = stage._definition.layers[1]
        inner = layer.self_attn.forward

        def watched(*args, **kwargs):
            interrupt()
            return inner(*args, **kwargs)

        interrupt = Once(2, error)
        layer.self_attn.forward = watched
        frames = [first_frame(name, prompt) for name, prompt in zip("abc", PROMPTS, strict=True)]
        model = stage._definition.model
        run = type(model).forward

        def noting(self, *args, **kwargs):
            try:
                return run(self, *args, **kwargs)
            finally:
                unwound.append(True)

        model.forward = noting.__get__(model)
        if isinstance(error, MemoryError):  # an Exception like any other: it fails its own session
            assert [type(outcome) for outcome in stage.forward(frames)] == [Logits, Failure, Logits]
            stage.release("a"), stage.release("c")
        else:
            with pytest.raises(type(error)):
                stage.forward(frames)
        assert len(unwound) == 3
        assert [name for name in "abc" if name in stage._sessions] == []
        assert not any(parameter is not None and not parameter.is_meta for parameter in layer.parameters())
        assert continue_alone(stage, "a", PROMPT) == expected


def test_an_interruption_from_the_watcher_leaves_the_stage_usable(llama):
    with opened(llama) as stage:
        expected = continue_alone(stage, "before", PROMPT)
        interrupt = Once(3, KeyboardInterrupt())
        stage.watcher = lambda _block: interrupt()
        with pytest.raises(KeyboardInterrupt):
            stage.forward([first_frame("a", PROMPT)])
        assert continue_alone(stage, "a", PROMPT) == expected


def test_the_watcher_is_told_of_every_block_in_order(llama):
    with opened(llama) as stage:
        seen = []
        stage.watcher = lambda block: seen.append(block.name)
        stage.forward([first_frame(name, PROMPT) for name in "ab"])
        assert seen == [block.name for block in stage.residency.blocks]


def test_a_released_session_keeps_no_tensor(llama):
    with opened(llama) as stage:
        continue_alone(stage, "a", PROMPT)
        session = stage._sessions["a"]
        (cache,) = [value for value in session._outputs.values() if isinstance(value, Cache)]
        keys = [weakref.ref(layer.keys) for layer in cache.layers] + [weakref.ref(session)]
        held = session.cache_bytes
        assert held >= len(cache.layers) * 2 * cache.layers[0].keys.nbytes
        del session, cache
        gc.disable()
        try:
            stage.release("a")
            stage.release("never opened")
            assert [key for key in keys if key() is not None] == []
        finally:
            gc.enable()


def test_sessions_come_and_go_without_a_trace(llama):
    with opened(llama) as stage:
        for _ in range(2):
            continue_alone(stage, "a", PROMPT, 2)
            stage.release("a")
        before = census(stage)
        for number in range(10):
            continue_alone(stage, f"{number}", PROMPT, 2)
            stage.release(f"{number}")
        wait_until(lambda: census(stage) <= before)  # a reader lets go of its last read a moment later


def census(stage: Stage) -> tuple[int, int]:
    """The tensors and the open files of this process while nothing is being read."""
    settle(stage)
    gc.collect()
    return sum(1 for item in gc.get_objects() if type(item) is torch.Tensor), num_descriptors()


def test_cache_bytes_of_a_stage_are_those_of_its_own_layers(llama):
    with streaming_pipeline(llama, 2, NUM_TOKENS, NUM_NEW) as pipeline:
        pipeline.sweep([first_frame("a", PROMPT)])
        for hop in pipeline._hops:
            one_layer = 2 * len(PROMPT) * 2 * 16 * 4  # keys and values, tokens, heads, head_dim, float32
            placeholders = 2 * 2 * len(PROMPT) * 4
            assert hop._sessions["a"].cache_bytes - 2 * one_layer <= placeholders + len(PROMPT) * 64


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        ([Frame("new", 0, 1, 5, (1,))], "position 0 here and was sent tokens for 5"),
        ([Frame("old", 0, 1, 4, (1,))], "position 3 here and was sent tokens for 4"),
        ([Frame("old", 0, 0, 0, (1,))], "position 3 here and was sent tokens for 0"),
        ([Frame("new", 0, 0, 0, (1,)), Frame("new", 0, 0, 0, (1,))], "two of the same"),
        ([Frame("new", 0, 0, 0, (1,), LayerOutput((torch.zeros(1, 1, 64),), bare=True))], "hidden states"),
    ],
    ids=["a start in the middle", "a gap", "a repetition", "twice", "hidden states too early"],
)
def test_frames_that_do_not_continue_their_session_are_refused(llama, frames, said):
    with opened(llama) as stage:
        stage.forward([first_frame("old", [1, 2, 3])])
        with pytest.raises(MeshError, match=said):
            stage.forward(frames)
        assert "new" not in stage._sessions
        (logits,) = stage.forward([Frame("old", 0, 1, 3, (1,))])
        assert isinstance(logits, Logits)


def test_token_ids_outside_the_vocabulary_fail_their_own_session(llama):
    with opened(llama) as stage:
        failure, logits = stage.forward([first_frame("a", [1, 128]), first_frame("b", [1, 127])])
        assert isinstance(logits, Logits)
        assert "token id 128" in str(failure.error)


def test_a_later_stage_wants_hidden_states(llama):
    definition, table = open_model(llama)
    stage = Stage(definition, table, LayerSpan(1, 4), torch.device("cpu"), PLENTY)
    stage.reserve("a", SIZE)
    with pytest.raises(MeshError, match="hidden states"):
        stage.forward([first_frame("a", [1])])
    stage.close()


def test_a_larger_reservation_plans_anew_and_keeps_what_still_fits(llama):
    with opened(llama, spare_bytes=150_000) as stage:
        continue_alone(stage, "first", PROMPT, 2)
        before = stage.residency
        held = {name: weakref.ref(tensor) for name, tensors in stage._streamer._placed.items() for tensor in tensors.values()}
        assert held
        stage.reserve("first", SIZE)
        assert stage.residency is before
        stage.reserve("first", SequenceSize(NUM_TOKENS + 60, NUM_NEW))
        assert len(stage.residency.resident) < len(before.resident)
        assert {name for name, tensor in held.items() if tensor() is not None} == held.keys() & stage.residency.resident
        expected = reference(llama, PROMPT, LENGTH).token_ids
        assert continue_alone(stage, "b", PROMPT) == expected
        (logits,) = stage.forward([Frame("first", 0, 2, len(PROMPT) + 1, (expected[1],))])
        assert int(logits.scores.argmax()) == expected[2]


def test_a_slightly_longer_sequence_reads_nothing_again(llama):
    with opened(llama, budget_bytes=PLENTY) as stage:
        continue_alone(stage, "first", PROMPT, 2)
        before = stage.files.num_bytes
        stage.reserve("b", SequenceSize(NUM_TOKENS + 60, NUM_NEW))
        continue_alone(stage, "b", PROMPT, 2)
        row_bytes = 4 * stage._definition.model.config.hidden_size
        assert stage.files.num_bytes - before <= (len(PROMPT) + 2) * row_bytes


def test_every_session_aboard_is_counted(llama):
    with opened(llama, spare_bytes=400_000) as stage:
        with pytest.raises(BudgetError):
            reserve_without_end(stage)
        stage.release("session 0")
        stage.reserve("another", SequenceSize(NUM_TOKENS, 1))


def test_a_reservation_beyond_the_budget_changes_nothing(llama):
    size = SequenceSize(NUM_TOKENS + 100_000, NUM_NEW)
    with opened(llama) as stage:
        before = stage.residency
        with pytest.raises(BudgetError) as refusal:
            stage.reserve("first", size)
        assert stage.residency is before
        assert continue_alone(stage, "a", PROMPT) == reference(llama, PROMPT, LENGTH).token_ids
    with opened(llama, budget_bytes=refusal.value.needed_bytes) as stage:
        stage.reserve("first", size)


def test_running_out_of_memory_is_a_matter_of_resources(llama, monkeypatch):
    with opened(llama) as stage:
        monkeypatch.setattr(stage._doors, "_forwards", [out_of_memory] * 4)
        (failure,) = stage.forward([first_frame("a", PROMPT)])
        assert isinstance(failure.error, ResourceError)


def reserve_without_end(stage):
    for number in range(10_000):
        stage.reserve(f"session {number}", SequenceSize(NUM_TOKENS, 1))


def out_of_memory(*args, **kwargs):
    return torch.empty(1 << 60)


def test_prompts_in_chunks_give_the_same_tokens(llama):
    with opened(llama) as stage:
        stage.forward([Frame("a", 0, 0, 0, tuple(PROMPT[:5]))])
        (logits,) = stage.forward([Frame("a", 0, 1, 5, tuple(PROMPT[5:]))])
        assert int(logits.scores.argmax()) == reference(llama, PROMPT, 1).token_ids[0]


def test_weights_that_vanish_are_an_error_and_can_come_back(llama, tmp_path):
    shutil.copytree(llama, tmp_path / "model")
    with opened(tmp_path / "model") as stage:
        expected = continue_alone(stage, "a", PROMPT)
        settle(stage)
        stage.files.close()
        weights = tmp_path / "model" / "model.safetensors"
        weights.rename(tmp_path / "away")
        for _ in range(2):
            with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
                Pipeline([stage]).sweep([first_frame("b", PROMPT)])
        (tmp_path / "away").rename(weights)
        for _ in range(3):
            try:
                Pipeline([stage]).sweep([first_frame("d", PROMPT)])
            except CheckpointError:  # what was read ahead in the meantime
                continue
            stage.release("d")
        assert continue_alone(stage, "e", PROMPT) == expected


def test_a_stage_that_cannot_be_built_leaves_no_file_and_no_thread(llama, tmp_path):
    shutil.copytree(llama, tmp_path / "model")
    definition, table = open_model(tmp_path / "model")
    before = num_descriptors(), threading.active_count()
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(CheckpointError):
        Stage(definition, table, LayerSpan(0, 4), torch.device("cpu"), PLENTY)
    assert (num_descriptors(), threading.active_count()) == before


def test_a_closed_stage_leaves_no_file_and_no_thread(llama):
    before = num_descriptors(), threading.active_count()
    with opened(llama) as stage:
        continue_alone(stage, "a", PROMPT, 2)
        assert num_descriptors() > before[0]
    stage.close()
    assert (num_descriptors(), threading.active_count()) == before


def test_the_footprint_counts_caches_rows_and_chunks(llama):
    definition, table = open_model(llama)
    whole, half = (Footprint.of(definition, LayerSpan(0, end), table) for end in (4, 2))
    config = json.loads((llama / "config.json").read_text())
    per_layer = 2 * config["num_key_value_heads"] * config["head_dim"] * 4
    short, long, two = SequenceSize(100, 1), SequenceSize(200, 1), SequenceSize(100, 2)
    assert whole.working_bytes(long) - whole.working_bytes(short) >= 100 * 4 * per_layer
    assert whole.working_bytes(short, short) - whole.working_bytes(short) >= 100 * 4 * per_layer
    assert half.working_bytes(short) < whole.working_bytes(short)
    assert whole.working_bytes(two) > whole.working_bytes(short)
    assert whole.rest_bytes == table.rest.loaded_bytes


def test_the_footprint_on_a_card_counts_its_libraries_and_what_its_allocator_rounds_up(llama):
    definition, table = open_model(llama)
    span, size = LayerSpan(0, 4), SequenceSize(100, 1)
    there, here = Footprint.of(definition, span, table, "cuda"), Footprint.of(definition, span, table)
    more = there.working_bytes(size) - here.working_bytes(size)
    assert there.device_bytes < more
    assert there.device_bytes >= sum(block.loaded_bytes for block in table.stream) + (60 << 20)
    scratch = replace(here, scratch_bytes=1000), replace(there, scratch_bytes=1000)  # conversions take it where they run
    assert scratch[0].working_bytes(size) == here.working_bytes(size) + 1000
    assert scratch[1].working_bytes(size) == there.working_bytes(size)
    assert scratch[1].reading_bytes == there.reading_bytes + 1000
    assert here.host_working_bytes(size, size) - here.host_working_bytes(size) == here.cache_bytes_per_token * 100


def test_pieces_of_a_head_that_stay_are_each_computed_with(tiny):
    """They hang in the same place one after the other, resident or not."""
    from layermesh.shared.residency import Residency

    scores = []
    for divided in (False, True):
        with opened(tiny("llama"), budget_bytes=PLENTY) as stage:
            if divided:
                head = stage._blocks[-1]
                pieces = split_head(head, head.loaded_bytes // 2)
                assert len(pieces) > 1
                blocks = (*stage._blocks[:-1], *pieces)
                stage._lay_out(Residency(blocks, frozenset(block.name for block in blocks), 0, 0, 0))
            frame = first_frame("first", [5, 6, 7])
            for _ in range(3):
                (logits,) = stage.forward([frame])
                frame = next_frame(frame, 9)
            scores.append(logits.scores)
    assert torch.allclose(scores[0], scores[1], atol=1e-6)
