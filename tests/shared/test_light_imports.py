"""transformers among stand-ins, each time in a process of its own."""

import subprocess
import sys

import pytest

HEAVY = ("sympy", "torch.distributed.tensor", "torch._inductor", "torch._dynamo")
LIGHTLY = "from layermesh.shared.light_imports import lighten_imports; lighten_imports(); import sys\n"
TINY = """
import tempfile, torch
from pathlib import Path
from transformers import AutoModelForCausalLM, Qwen2Config
from layermesh import LayerMesh
config = Qwen2Config(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                     num_key_value_heads=1, bos_token_id=None, eos_token_id=None)
folder = Path(tempfile.mkdtemp())
config.save_pretrained(folder)
"""
DEFINED = """
from layermesh.shared.model.definition import define_model
define_model(folder, torch.float32)
"""
ANSWERED = """
torch.manual_seed(1)
model = AutoModelForCausalLM.from_config(config).eval()
model.save_pretrained(folder)
with LayerMesh(folder, device="cpu", discover=False) as mesh:
    ours = mesh.generate([5, 6, 7], max_new_tokens=4, temperature=0, ignore_eos=True).token_ids
theirs = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4, do_sample=False)[0, 3:].tolist()
assert list(ours) == theirs, (ours, theirs)
"""


def run(code: str) -> list[str]:
    """Run it and return what it printed, word by word."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_building_a_model_needs_none_of_what_is_heavy():
    assert run(LIGHTLY + TINY + DEFINED + f"print('seen', *(name for name in {HEAVY} if name in sys.modules))") == ["seen"]


def test_answers_are_what_transformers_says():
    run(LIGHTLY + TINY + ANSWERED)


def test_whoever_wants_the_compiler_afterwards_gets_the_real_one():
    run(LIGHTLY + TINY + "assert torch.compile(lambda x: x + 1, backend='eager')(torch.ones(2)).tolist() == [2, 2]")
    run(LIGHTLY + "import transformers.masking_utils as m; import torch.nn.attention.flex_attention as f; f.create_block_mask")


def test_a_mode_of_the_compiler_is_the_real_one_once_it_is_entered():
    check = """
import torch, transformers.masking_utils as masks
rows = torch.arange(4)
with masks.TransformGetItemToIndex():
    made = torch.vmap(lambda i: rows[i])(torch.tensor([3, 1]))
assert made.tolist() == [3, 1]
"""
    run(LIGHTLY + check)


@pytest.mark.parametrize("name", ["torch._dynamo", "torch.nn.attention.flex_attention"])
def test_stand_ins_have_what_the_real_modules_have(name):
    check = f"""
import importlib, torch
from layermesh.shared import light_imports
real = importlib.import_module({name!r})
assert all(hasattr(real, known) for known in light_imports._NAMES[{name!r}])
"""
    run(LIGHTLY + check)
