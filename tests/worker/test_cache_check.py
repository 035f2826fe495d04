import inspect

import pytest
import torch
import transformers.models.qwen3_next.modeling_qwen3_next
from transformers import Cache

from layermesh.shared import transformers_api
from layermesh.shared.errors import UnsupportedModelError
from layermesh.shared.footprint import SequenceSize
from layermesh.shared.frames import Frame, LayerOutput, SessionId
from layermesh.shared.model.lean_layer import LeanLayer
from layermesh.shared.spans import LayerSpan
from layermesh.worker import sessions
from layermesh.worker.cache_check import _verdict
from layermesh.worker.loading import BlockLoader
from layermesh.worker.stage import Stage
from tests.architectures.tiny import PROMPT
from tests.running import PLENTY, SIZE, first_frame, open_model, opened

pytestmark = pytest.mark.usefixtures("one_thread")
WRONG = r"^{} cannot be run with transformers 5\.\d+\.\d+ and torch 2\.\d+.*: its layers do not find what they cached"


@pytest.fixture
def renamed(monkeypatch):
    """A release of transformers that hands layers their cache by a name of which nobody knows."""
    forward = LeanLayer.forward

    def called_by_it(self, *args, **kwargs):
        names = dict.fromkeys(transformers_api.CACHE_ARGUMENTS, "renamed")
        return forward(self, *args, **{names.get(name, name): value for name, value in kwargs.items()})

    monkeypatch.setattr(LeanLayer, "forward", called_by_it)


@pytest.fixture
def forgetful(monkeypatch):
    """A release of transformers that carries the cache from call to call by a name of which nobody knows."""
    monkeypatch.setattr(sessions, "next_arguments", without_cache)


def without_cache(model, outputs, arguments, num_tokens):
    updated = transformers_api.next_arguments(model, outputs, arguments, num_tokens)
    return {name: value for name, value in updated.items() if not isinstance(value, Cache)}


@pytest.mark.parametrize("spare_bytes", [0, PLENTY], ids=["streaming", "resident"])
@pytest.mark.parametrize(("model_type", "model"), [("llama", "LlamaForCausalLM"), ("qwen3", "Qwen3ForCausalLM")])
def test_layers_that_do_not_get_their_cache_are_refused(tiny, renamed, model_type, model, spare_bytes):
    with opened(tiny(model_type), spare_bytes=spare_bytes, fast_path=True) as stage:
        with pytest.raises(UnsupportedModelError, match=WRONG.format(model)):
            stage.forward([first_frame("first", PROMPT)])
        with pytest.raises(UnsupportedModelError, match=WRONG.format(model)):  # and again, where somebody tries
            stage.forward([first_frame("first", PROMPT)])


def test_a_later_stage_refuses_them_too(tiny, renamed):
    definition, table = open_model(tiny("llama"), fast_path=True)
    span = LayerSpan(2, definition.num_layers)
    stage = Stage(definition, table, span, torch.device("cpu"), PLENTY)
    try:
        stage.reserve(SessionId("first"), SIZE)
        hidden = LayerOutput((torch.randn(1, len(PROMPT), definition.model.config.hidden_size),), bare=True)
        with pytest.raises(UnsupportedModelError, match="LlamaForCausalLM cannot be run"):
            stage.forward([Frame(SessionId("first"), 0, 0, 0, tuple(PROMPT), hidden)])
    finally:
        stage.close()


@pytest.mark.parametrize("model_type", ["gpt2", "mamba", "mamba2", "jamba", "deepseek_v3", "gemma3_text"])
def test_states_and_caches_that_are_not_carried_on_are_refused(tiny, forgetful, model_type):
    with opened(tiny(model_type)) as stage, pytest.raises(UnsupportedModelError, match="cannot be run with transformers"):
        stage.forward([first_frame("first", PROMPT)])


def test_every_kind_of_layer_is_checked(tiny, monkeypatch):
    """In qwen3_next attention comes behind layers with a state, which is carried on."""
    attention = transformers.models.qwen3_next.modeling_qwen3_next.Qwen3NextAttention
    forward = attention.forward
    names = dict.fromkeys(set(transformers_api.CACHE_ARGUMENTS) & inspect.signature(forward).parameters.keys())
    monkeypatch.setattr(attention, "forward", lambda self, *args, **kwargs: forward(self, *args, **{**kwargs, **names}))
    with opened(tiny("qwen3_next")) as stage, pytest.raises(UnsupportedModelError, match="Qwen3NextForCausalLM cannot be run"):
        stage.forward([first_frame("first", PROMPT)])


def test_what_keeps_its_state_in_modules_is_left_alone(tiny, monkeypatch):
    begun = []
    init = sessions.Session.__init__
    monkeypatch.setattr(sessions.Session, "__init__", lambda self, *rest: begun.append(rest[0]) or init(self, *rest))
    with opened(tiny("recurrent_gemma")) as stage:
        stage.forward([first_frame("first", PROMPT)])
    assert begun == ["first"]


def test_the_check_reads_nothing_that_the_first_sweep_does_not(tiny, monkeypatch):
    started = []
    start = BlockLoader.start
    monkeypatch.setattr(
        BlockLoader, "start", lambda self, block, *rest: started.append(block.name) or start(self, block, *rest)
    )
    with opened(tiny("llama")) as stage:
        stage.forward([first_frame("first", PROMPT)])
        assert stage.streams
        names = [block.name for block in stage.residency.blocks]
        assert started[1 : 1 + len(names)] == names  # behind the one that is always there; then the next sweep's


def test_it_runs_once(tiny, monkeypatch):
    begun = []
    init = sessions.Session.__init__
    monkeypatch.setattr(sessions.Session, "__init__", lambda self, *rest: begun.append(rest[0]) or init(self, *rest))
    with opened(tiny("llama"), spare_bytes=PLENTY) as stage:
        stage.forward([first_frame("first", PROMPT)])
        assert begun.count("first") == 1
        assert len(begun) > 1
        begun.clear()
        stage.reserve(SessionId("second"), SequenceSize(64, 16))
        stage.forward([first_frame("second", PROMPT)])
        assert begun == ["second"]


def outputs(*tokens: float) -> LayerOutput:
    """Hidden states of as many tokens, each of one value."""
    return LayerOutput((torch.tensor(tokens, dtype=torch.float32)[None, :, None].expand(-1, -1, 4),), bare=True)


@pytest.mark.parametrize(
    ("together", "elsewhere", "alone", "after", "verdict"),
    [
        ((1, 2), (3, 1), (1,), (2,), True),
        ((1, 2), (3, 1), (1.001,), (2.01,), True),
        ((1, 2), (3, 1), (1,), (1.5,), False),
        ((1, 2), (3, 1), (2,), (2,), False),
        ((1, 2), (3, 2), (1,), (2,), None),
        ((1, 2), (3, 1.9), (1.05,), (1.9,), None),
        ((0, 1, 2), (0, 3, 1), (0, 1), (2,), None),
    ],
    ids=["equal", "but for rounding", "lost", "no causal mask", "no context", "no more than rounding", "more rows than tokens"],
)
def test_what_agrees(together, elsewhere, alone, after, verdict):
    assert _verdict([outputs(*together), outputs(*elsewhere), outputs(*alone), outputs(*after)]) is verdict
