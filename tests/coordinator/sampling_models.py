"""A tiny model, and its answers with our sampler."""

from functools import cache

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from layermesh.coordinator.sampling import Sampler


@cache
def tiny_llama() -> LlamaForCausalLM:
    """A Llama of two layers and 64 tokens; not to be changed."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        initializer_range=0.3, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def continue_prompt(
    model: LlamaForCausalLM, sampler: Sampler, prompt: list[int], num_tokens: int, stop_ids: tuple[int, ...] = ()
) -> list[int]:
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(num_tokens):
            ids.append(sampler.sample(model(torch.tensor([ids])).logits[0, -1]))
            if ids[-1] in stop_ids:
                break
    return ids
