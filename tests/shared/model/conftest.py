import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from tests.architectures.tiny import randomise


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    config = LlamaConfig(
        vocab_size=320, hidden_size=128, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=None, eos_token_id=None, dtype="float32",
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    randomise(model, 3)
    folder = tmp_path_factory.mktemp("llama") / "llama"
    model.save_pretrained(folder)
    return folder
