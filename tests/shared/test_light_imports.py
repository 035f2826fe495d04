"""transformers among stand-ins, each time in a process of its own."""

import subprocess
import sys

import pytest

from tests.architectures.tiny import build

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


RUN_LIGHTLY = f"""
import sys, torch
from pathlib import Path
from layermesh import LayerMesh
with LayerMesh(Path(sys.argv[1]), device="cpu", discover=False) as mesh:
    opened = set(sys.modules)
    mesh.generate(list(range(5, 25)), max_new_tokens=4, temperature=0, ignore_eos=True)
heavy = {{name for name in {HEAVY} if name in sys.modules}}
assert heavy <= opened, heavy - opened
print("seen", *heavy)
"""


def run(code: str, *arguments: str) -> list[str]:
    """Run it and return what it printed, word by word."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_building_a_model_needs_none_of_what_is_heavy():
    assert run(LIGHTLY + TINY + DEFINED + f"print('seen', *(name for name in {HEAVY} if name in sys.modules))") == ["seen"]


def test_answers_are_what_transformers_says():
    run(LIGHTLY + TINY + ANSWERED)


@pytest.mark.parametrize("kind", ["gemma2", "mixtral", "deepseek_v3"])
def test_a_run_of_other_kinds_needs_none_of_it_either(tmp_path, kind):
    build(kind, tmp_path / "model")
    assert run(LIGHTLY + RUN_LIGHTLY, str(tmp_path / "model")) == ["seen"]


@pytest.mark.parametrize("kind", ["lfm2", "qwen3_next"])
def test_what_caches_of_other_kinds_need_is_there_before_their_budget_is_counted(tmp_path, kind):
    build(kind, tmp_path / "model")
    assert "torch._dynamo" in run(LIGHTLY + RUN_LIGHTLY, str(tmp_path / "model"))


def test_finders_of_others_are_asked():
    code = """
from importlib.machinery import ModuleSpec
class Finder:
    asked = []
    def find_spec(self, name, path=None, target=None):
        self.asked.append(name)
sys.meta_path.insert(1, Finder())
import transformers.models.qwen2.modeling_qwen2
assert "transformers.models.qwen2.modeling_qwen2" in Finder.asked
"""
    run(LIGHTLY + code)


def test_whoever_wants_the_compiler_afterwards_gets_the_real_one():
    run(LIGHTLY + TINY + "assert torch.compile(lambda x: x + 1, backend='eager')(torch.ones(2)).tolist() == [2, 2]")
    run(LIGHTLY + "import transformers.masking_utils as m; import torch.nn.attention.flex_attention as f; f.create_block_mask")


def test_a_module_inside_one_that_is_stood_in_for_is_the_real_one():
    check = """
import torch
from layermesh.shared import light_imports
with light_imports._stand_ins():
    import torch._dynamo.exc as inside
import torch._dynamo.exc as outside
assert inside is outside is sys.modules["torch._dynamo.exc"]
assert inside.__spec__.name == "torch._dynamo.exc" and inside.__spec__.origin.endswith("exc.py")
assert not isinstance(sys.modules["torch._dynamo"], light_imports._StandIn)
assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2)).tolist() == [2, 2]
"""
    run(LIGHTLY + check)


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
