"""Single tokens without the model's own forward: that nobody can tell from what comes out."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.qwen2.modeling_qwen2 import Qwen2ForCausalLM

from layermesh.shared.frames import Failure, Frame, Logits, SessionId
from layermesh.shared.model.blocks import Block
from layermesh.shared.quant.native.kernel import native_kernel
from layermesh.shared.spans import LayerSpan
from layermesh.worker import decode_step
from layermesh.worker.decode_step import DecodeStep, PackedStep
from layermesh.worker.sessions import Session
from layermesh.worker.stage import Stage
from tests.running import PLENTY, SIZE, first_frame, next_frame, open_model
from tests.shared.packing.packs import packed_family

FAMILIES = ["llama", "qwen2", "qwen3", "phi3"]
PROMPT = [17, 101, 5, 64, 33, 90, 12]
NUM_TOKENS = 5
Pack = Callable[..., Path]

pytestmark = pytest.mark.skipif(native_kernel() is None, reason="the kernel in C cannot be built here")


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """A function that packs a random model of a family, of three layers."""
    packs: dict[str, Path] = {}

    def make(family: str, **settings: object) -> Path:
        key = f"{family} {settings}"
        if key not in packs:
            packs[key] = packed_family(family, tmp_path_factory.mktemp(family), num_hidden_layers=3, **settings)
        return packs[key]

    return make


def plain(folder: Path) -> Path:
    """The model that a pack was made of."""
    return folder.parent / "source"


def packed(folder: Path) -> Path:
    """The pack itself."""
    return folder


in_both_forms = pytest.mark.parametrize("form", [packed, plain])
Form = Callable[[Path], Path]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[LayerSpan]:
    """The spans in which a token has passed without the model's own forward."""
    spans: list[LayerSpan] = []
    run = DecodeStep.run

    def noted(step: DecodeStep, session: Session, frame: Frame, blocks: Sequence[Block], tell: object) -> torch.Tensor | None:
        made = run(step, session, frame, blocks, tell)  # type: ignore[arg-type]
        if made is not None:
            spans.append(step._span)
        return made

    monkeypatch.setattr(DecodeStep, "run", noted)
    return spans


class Row:
    """Stages one behind the other, all in this process."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = stages

    def sweep(self, *frames: Frame) -> list[torch.Tensor]:
        passing: Sequence[object] = frames
        for stage in self.stages:
            passing = stage.forward(passing)  # type: ignore[arg-type]
        assert all(isinstance(outcome, Logits) for outcome in passing), passing
        return [outcome.scores for outcome in passing if isinstance(outcome, Logits)]

    def answer(self, name: str, num_tokens: int = NUM_TOKENS) -> list[torch.Tensor]:
        frame, made = first_frame(name, PROMPT), []
        for _ in range(num_tokens):
            (scores,) = self.sweep(frame)
            made.append(scores)
            frame = next_frame(frame, int(scores.argmax()))
        return made


@contextmanager
def row(folder: Path, *bounds: int, dtype: torch.dtype = torch.float32) -> Iterator[Row]:
    """Stages that begin and end at `bounds`, with all that they need in memory."""
    with ExitStack() as held:
        stages = []
        for start, end in zip((0, *bounds), (*bounds, 3), strict=True):
            definition, table = open_model(folder, dtype, fast_path=True)
            has_head = len(stages) == len(bounds)
            stage = Stage(definition, table, LayerSpan(start, end), torch.device("cpu"), PLENTY, has_head=has_head)
            held.callback(stage.close)
            for name in "ab":
                stage.reserve(SessionId(name), SIZE)
            stages.append(stage)
        yield Row(stages)


def without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave every token to the model's own forward."""
    monkeypatch.setattr(DecodeStep, "run", lambda *_: None)


def same(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> bool:
    return len(ours) == len(theirs) and all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@in_both_forms
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_have_the_bits_of_the_models_own_forward(
    pack: Pack, form: Form, family: str, dtype: torch.dtype, ran: list[LayerSpan], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = form(pack(family))
    with row(folder, dtype=dtype) as alone, row(folder, 2, 3, dtype=dtype) as divided:
        ours, ours_divided = alone.answer("a"), divided.answer("a")
    spans = [LayerSpan(0, 3), LayerSpan(0, 2), LayerSpan(2, 3), LayerSpan(3, 3)]
    assert {span: ran.count(span) for span in spans} == dict.fromkeys(spans, NUM_TOKENS - 1)
    without(monkeypatch)
    with row(folder, dtype=dtype) as alone:
        theirs = alone.answer("a")
    assert same(ours, theirs)
    assert same(ours_divided, theirs)


def test_layers_in_several_calls_are_the_same(pack: Pack, ran: list[LayerSpan], monkeypatch: pytest.MonkeyPatch) -> None:
    with row(pack("qwen2")) as alone:
        expected = alone.answer("a")
    monkeypatch.setattr(decode_step, "MOST_BYTES", 1)
    with row(pack("qwen2")) as alone:
        assert same(alone.answer("a"), expected)
        step = alone.stages[0]._decode_step
        assert isinstance(step, PackedStep)
        assert [len(part.layers) for part in step._parts] == [1, 1, 1]
    assert len(ran) == 2 * (NUM_TOKENS - 1)


def test_phases_are_those_of_the_model_however_many_are_computed_together(
    pack: Pack, ran: list[LayerSpan], monkeypatch: pytest.MonkeyPatch
) -> None:
    with row(pack("phi3")) as alone:
        expected = alone.answer("a", 9)
        monkeypatch.setattr(decode_step, "AT_ONCE", 3)
        monkeypatch.setattr(decode_step, "MOST_TABLES", 2)
        step = alone.stages[0]._decode_step
        assert step is not None
        step._tables.clear()
        assert same(alone.answer("b", 9), expected)
        assert set(step._tables) == {4}  # of positions 12 to 14
    assert len(ran) == 2 * 8


def test_phases_that_depend_on_the_length_so_far_are_asked_for_each_time(
    pack: Pack, ran: list[LayerSpan], monkeypatch: pytest.MonkeyPatch
) -> None:
    ropes = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    folder = pack("llama", rope_parameters=ropes, max_position_embeddings=10)
    with row(folder) as alone:
        ours = alone.answer("a", 9)
    assert len(ran) == 8
    without(monkeypatch)
    with row(folder) as alone:
        assert same(ours, alone.answer("a", 9))


@in_both_forms
def test_phases_for_which_the_model_begins_anew_are_left_to_it(pack: Pack, form: Form, ran: list[LayerSpan]) -> None:
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "original_max_position_embeddings": 10}
    ropes = {"rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, **factors}
    with row(form(pack("phi3", rope_parameters=ropes, original_max_position_embeddings=10))) as alone:
        alone.answer("a", 9)
    assert not ran


@in_both_forms
def test_a_session_may_go_on_among_others_and_alone_again(pack: Pack, form: Form, ran: list[LayerSpan]) -> None:
    with row(form(pack("qwen3")), 1) as stages:
        expected = stages.answer("a", 8)
        for stage in stages.stages:
            stage.release(SessionId("a"))
            stage.reserve(SessionId("a"), SIZE)
        del ran[:]
        frame, other = first_frame("a", PROMPT), first_frame("b", PROMPT[:3])
        made = []
        for number in range(8):
            with_other = number in (3, 5, 6)
            scores, *others = stages.sweep(*[frame, other][: 1 + with_other])
            made.append(scores)
            frame = next_frame(frame, int(scores.argmax()))
            if others:
                other = next_frame(other, int(others[0].argmax()))
    assert same(made, expected)
    assert ran == [LayerSpan(0, 1), LayerSpan(1, 3)] * 4  # tokens 1, 2, 4 and 7


@in_both_forms
def test_several_tokens_at_once_follow_single_ones(
    pack: Pack, form: Form, ran: list[LayerSpan], monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer() -> list[torch.Tensor]:
        frames, position = [], 0
        for step, token_ids in enumerate([PROMPT, [3], [4], [5, 6, 7], [8]]):
            frames.append(Frame(SessionId("a"), 0, step, position, tuple(token_ids)))
            position += len(token_ids)
        with row(form(pack("llama"))) as alone:
            return [alone.sweep(frame)[0] for frame in frames]

    ours = answer()
    assert len(ran) == 3
    without(monkeypatch)
    assert same(ours, answer())


@in_both_forms
def test_a_session_that_outgrows_its_room_goes_on(
    pack: Pack, form: Form, ran: list[LayerSpan], monkeypatch: pytest.MonkeyPatch
) -> None:
    num_tokens = SIZE.num_tokens - len(PROMPT) + 4
    with row(form(pack("llama"))) as alone:
        ours = alone.answer("a", num_tokens)
    assert (len(ran) < num_tokens - 1) == (form is packed)  # the kernel does not move what there is to a larger room
    without(monkeypatch)
    with row(form(pack("llama"))) as alone:
        assert same(ours, alone.answer("a", num_tokens))


@in_both_forms
def test_a_sliding_window_is_left_to_the_model(pack: Pack, form: Form, ran: list[LayerSpan]) -> None:
    folder = form(pack("mistral", sliding_window=8))
    with row(folder) as alone:
        alone.answer("a", 12)
    assert not ran
    with row(form(pack("mistral", sliding_window=None))) as alone:
        alone.answer("a")
    assert len(ran) == NUM_TOKENS - 1


def test_a_model_that_does_more_behind_its_layers_is_left_to_itself(
    pack: Pack, ran: list[LayerSpan], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Qwen2ForCausalLM.forward

    def scaled(model: Qwen2ForCausalLM, *args: object, **kwargs: object) -> CausalLMOutputWithPast:
        outputs: CausalLMOutputWithPast = forward(model, *args, **kwargs)
        outputs.logits *= 2
        return outputs

    with row(pack("qwen2")) as alone:
        expected = alone.answer("a")
    assert len(ran) == NUM_TOKENS - 1
    monkeypatch.setattr(Qwen2ForCausalLM, "forward", scaled)
    with row(pack("qwen2")) as alone:
        assert same(alone.answer("a"), [scores * 2 for scores in expected])
    assert len(ran) == NUM_TOKENS - 1


@in_both_forms
def test_an_id_beyond_the_vocabulary_fails_its_session_alone(pack: Pack, form: Form) -> None:
    with row(form(pack("llama"))) as alone:
        (stage,) = alone.stages
        expected = alone.answer("a")
        stage.release(SessionId("a"))
        first = first_frame("b", PROMPT)
        alone.sweep(first)
        (failure,) = stage.forward([next_frame(first, 256)])
        assert isinstance(failure, Failure)
        assert "256" in str(failure.error)
        assert stage.position(SessionId("b")) == 0
        stage.reserve(SessionId("a"), SIZE)
        assert same(alone.answer("a"), expected)


@in_both_forms
def test_the_watcher_is_told_of_every_block_and_may_interrupt(pack: Pack, form: Form, ran: list[LayerSpan]) -> None:
    with row(form(pack("llama"))) as alone:
        (stage,) = alone.stages
        first = first_frame("a", PROMPT)
        alone.sweep(first)
        seen: list[str] = []
        stage.watcher = lambda block: seen.append(block.name)
        alone.sweep(next_frame(first, 3))
        assert stage.residency is not None
        assert seen == [block.name for block in stage.residency.blocks]

        def interrupt(_block: Block) -> None:
            raise KeyboardInterrupt

        stage.watcher = interrupt
        with pytest.raises(KeyboardInterrupt):
            stage.forward([next_frame(next_frame(first, 3), 4)])
        assert stage.position(SessionId("a")) == 0
        assert len(ran) == 1
