from itertools import pairwise

import pytest
import torch

from layermesh.shared.checkpoints import open_checkpoint
from layermesh.shared.model.embedding_use import needs_embeddings_everywhere
from layermesh.shared.spans import LayerSpan
from layermesh.worker.stage import Stage
from tests.architectures.runs import difference
from tests.running import PLENTY, SIZE, open_model
from tests.storing import answer, example

pytestmark = pytest.mark.usefixtures("one_thread")

FAMILIES = ("llama", "qwen3", "gemma3_text", "gpt2", "bloom", "mixtral", "deepseek_v3", "falcon_mamba", "qwen3_next", "zamba2")


@pytest.mark.parametrize("model_type", FAMILIES)
def test_stages_without_embeddings_or_with_the_head_alone_answer_as_one_to_the_bit(tiny, model_type):
    folder = tiny(model_type)
    checkpoint, num_layers = open_checkpoint(folder, folder / "unpacked"), open_model(folder)[0].num_layers
    whole = answer([checkpoint], [LayerSpan(0, num_layers)], torch.float32)
    for cuts in ([0, num_layers, num_layers], [0, 1, num_layers, num_layers], [0, 2, num_layers]):
        spans = [LayerSpan(start, end) for start, end in pairwise(cuts)]
        found = answer([checkpoint] * len(spans), spans, torch.float32)
        assert difference(found, whole) == "", spans


@pytest.mark.parametrize("kind", ["tied", "int4", "int4 tied", "gguf", "gguf tied"])
def test_the_head_alone_answers_whatever_it_is_stored_as(kind):
    described = example(kind)
    last = described.manifest.num_layers
    spans = [LayerSpan(0, last), LayerSpan(last, last)]
    whole = answer([described.checkpoint], spans[:1], described.dtype)
    assert difference(answer([described.checkpoint] * 2, spans, described.dtype), whole) == ""


@pytest.mark.parametrize("span", [LayerSpan(0, 0), LayerSpan(2, 2), LayerSpan(4, 4)], ids=str)
def test_a_stage_of_nothing_is_refused(tiny, span):
    definition, table = open_model(tiny("llama"))
    with pytest.raises(ValueError, match="nothing to run"):
        Stage(definition, table, span, torch.device("cpu"), PLENTY, has_head=span.end != 4)


def test_later_stages_read_no_embeddings(tiny):
    definition, table = open_model(tiny("llama"))
    assert not needs_embeddings_everywhere(definition)
    stage = Stage(definition, table, LayerSpan(1, 4), torch.device("cpu"), PLENTY)
    try:
        stage.reserve("a", SIZE)
        module = definition.model.get_submodule(definition.lookups[0])
        before = stage.files.num_bytes
        with torch.inference_mode():
            looked_up = module(torch.tensor([[1, 2, 3]]))
        assert (looked_up.shape, looked_up.dtype, bool(looked_up.any())) == ((1, 3, 64), torch.float32, False)
        assert stage.files.num_bytes == before
    finally:
        stage.close()
