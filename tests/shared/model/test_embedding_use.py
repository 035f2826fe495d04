from dataclasses import replace

import pytest
import torch

from layermesh.shared.model.definition import define_model
from layermesh.shared.model.embedding_use import needs_embeddings_everywhere
from tests.architectures.tiny import tiny_config
from tests.running import open_model

IN_FRONT = (
    *("llama", "qwen2", "qwen3", "mistral", "phi3", "gemma2", "gemma3_text", "gpt2", "mixtral", "deepseek_v3", "gpt_oss"),
    *("bloom", "opt", "falcon_mamba", "qwen3_next", "olmo2"),
)
EVERYWHERE = ("zamba2", "zamba", "gemma3n_text", "gemma4_text", "hrm_text")


@pytest.fixture
def define(tmp_path):
    def make(model_type):
        tiny_config(model_type).save_pretrained(tmp_path)
        return define_model(tmp_path, torch.float32)

    return make


@pytest.mark.parametrize("model_type", IN_FRONT)
def test_most_families_embed_in_front_of_their_layers(define, model_type):
    assert not needs_embeddings_everywhere(define(model_type))


@pytest.mark.parametrize("model_type", EVERYWHERE)
def test_families_that_hand_embeddings_to_later_layers_are_found(define, model_type):
    assert needs_embeddings_everywhere(define(model_type))


@pytest.mark.parametrize("model_type", ["llama", "zamba2"])
def test_the_definition_stays_as_it_was(tiny, model_type):
    definition, _ = open_model(tiny(model_type))
    before = state(definition.model)
    needs_embeddings_everywhere(definition)
    assert state(definition.model) == before


def state(model) -> list[tuple[dict, dict, dict]]:
    """What hangs in every module, by identity."""
    return [
        tuple(
            {name: id(value) for name, value in slots.items()} for slots in (vars(module), module._buffers, module._parameters)
        )
        for module in model.modules()
    ]


def overwritten(hidden, embedded):
    made = torch.empty_like(hidden)
    made[:] = embedded
    return made


ALTERED = {
    "added behind the layers": lambda hidden, embedded: hidden + embedded,
    "written into something new": overwritten,
    "asked about": lambda hidden, embedded: hidden if (embedded > 0).any() else -hidden,
    "divided": lambda hidden, embedded: hidden * torch.cat(list(embedded.chunk(2, dim=-1)), dim=-1).mean(),
    "unknown": lambda hidden, embedded: hidden + unknown(embedded),  # noqa: F821
}


@pytest.mark.parametrize("change", ALTERED.values(), ids=ALTERED)
def test_embeddings_are_followed_wherever_they_go(define, change):
    definition = define("llama")
    model = definition.model.model
    norm = model.norm.forward
    kept = []
    model.embed_tokens.register_forward_hook(lambda _module, _args, output: kept.append(output))
    model.norm.forward = lambda hidden: norm(change(hidden, kept[-1]))
    assert needs_embeddings_everywhere(definition)


def test_the_shape_of_embeddings_is_not_their_values(define):
    definition = define("llama")
    model = definition.model.model
    norm = model.norm.forward
    kept = []
    model.embed_tokens.register_forward_hook(lambda _module, _args, output: kept.append(output))
    model.norm.forward = lambda hidden: norm(hidden + torch.zeros_like(kept[-1]) + kept[-1].new_ones(kept[-1].shape[-1]))
    assert not needs_embeddings_everywhere(definition)


def test_an_embedding_inside_a_layer_counts(define):
    definition = define("llama")
    definition.layers[2].words = torch.nn.Embedding(128, 64, device="meta")
    inside = replace(definition, lookups=(*definition.lookups, "model.layers.2.words"))
    assert needs_embeddings_everywhere(inside)
