import json

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from tests.architectures.runs import answer_greedily, difference, streaming_pipeline
from tests.architectures.tiny import PROMPT, reference
from tests.benchmarks.grown import INDEX, grow, layer_bytes, other_bytes, write_one_layer

CONFIG = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 128}


def test_a_grown_checkpoint_is_one_that_transformers_reads(tmp_path, one_thread):
    one = write_one_layer(tmp_path / "one", LlamaConfig(**CONFIG, tie_word_embeddings=False), torch.float32)
    grown = grow(one, tmp_path / "grown", 5)
    model = AutoModelForCausalLM.from_pretrained(grown)
    assert model.config.num_hidden_layers == 5
    first, last = model.model.layers[0].mlp.up_proj.weight, model.model.layers[4].mlp.up_proj.weight
    assert torch.equal(first, last)
    assert 0.01 < float(first.detach().std()) < 0.03
    size = sum(path.stat().st_size for path in grown.glob("*.safetensors"))
    assert size == other_bytes(one) + 5 * layer_bytes(one)
    with streaming_pipeline(grown, 1, 32, 16) as pipeline:
        assert difference(answer_greedily(pipeline, [PROMPT], 4)[0], reference(grown, PROMPT, 4)) == ""


def test_what_a_pack_says_of_its_layer_holds_for_all(tmp_path):
    one = write_one_layer(tmp_path / "one", LlamaConfig(**CONFIG), torch.bfloat16)
    config = json.loads((one / "config.json").read_text())
    config["quantization_config"] = {"modules": {"model.layers.0.mlp.up_proj": [4, 32], "lm_head": [4, 64]}}
    (one / "config.json").write_text(json.dumps(config))
    grown = grow(one, tmp_path / "grown", 2)
    modules = json.loads((grown / "config.json").read_text())["quantization_config"]["modules"]
    assert modules == {"lm_head": [4, 64]} | {f"model.layers.{number}.mlp.up_proj": [4, 32] for number in range(2)}
    names = json.loads((grown / INDEX).read_text())["weight_map"]
    assert names["model.layers.1.mlp.up_proj.weight"] == "layer-00001.safetensors"
