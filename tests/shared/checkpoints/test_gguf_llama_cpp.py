"""llama.cpp computes from GGUF files what layermesh computes from them.

LAYERMESH_LLAMA_CPP names an interpreter with llama-cpp-python; without it, the one that the benchmarks installed is used.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf_parameters import PROMPT, logits_of, made_model
from gguf_twin_models import TWINS
from gguf_twins import CONTEXT
from gguf_vocabularies import TEXT, write_vocabulary
from transformers import AutoTokenizer

from layermesh.shared.checkpoints import open_checkpoint
from tests.benchmarks.peers.environments import LLAMA_CPP

PYTHON = Path(os.environ.get("LAYERMESH_LLAMA_CPP", LLAMA_CPP.folder / "bin" / "python"))
SCRIPT = Path(__file__).with_name("llama_cpp_run.py")
# What llama.cpp passes over of a file's keys, and transformers does not.
PASSED_OVER = {
    "llama, yarn with all its numbers": "yarn's bounds, but for a few families",
    "qwen2moe, normed weights": "expert_weights_norm of this family",
    "phi3, window": "windows of this family",
}

pytestmark = [
    pytest.mark.usefixtures("unpack_here"),
    pytest.mark.skipif(not PYTHON.is_file(), reason="no llama.cpp: LAYERMESH_LLAMA_CPP names no interpreter that has it"),
]


def llama_cpp(folder: Path, path: Path, **request: object) -> np.ndarray:
    output, asked = folder / "output.npy", folder / "request.json"
    asked.write_text(json.dumps(request))
    subprocess.run([PYTHON, SCRIPT, path, asked, output], check=True, capture_output=True, timeout=120)
    return np.load(output)


@pytest.mark.parametrize("name", [name for name in TWINS if name not in PASSED_OVER])
def test_llama_cpp_computes_the_same_logits(tmp_path, name):
    twin = TWINS[name]
    path = twin.write(tmp_path / "twin.gguf", twin.model())
    made = logits_of(made_model(path, tmp_path / "cache"), len(PROMPT))
    expected = torch.tensor(llama_cpp(tmp_path, path, tokens=PROMPT, context=CONTEXT))
    wrong = [row for row, other in zip(made, expected, strict=True) if not torch.allclose(row, other, atol=2e-2, rtol=1e-2)]
    assert len(wrong) <= ("expert_count" in twin.keys)  # two experts may be as good as each other for a token


VOCABULARIES = {
    "starcoder": ("gpt2", {"pre": "starcoder"}),
    "smollm": ("gpt2", {"pre": "smollm"}),
    "gpt-2": ("gpt2", {"pre": "gpt-2"}),
    "llama-bpe": ("gpt2", {"pre": "llama-bpe"}),
    "llama-bpe, no beginning": ("gpt2", {"pre": "llama-bpe", "add_bos_token": False}),
    "qwen2": ("gpt2", {"pre": "qwen2"}),
    "qwen2, both ends": ("gpt2", {"pre": "qwen2", "add_bos_token": True, "add_eos_token": True}),
    "qwen35": ("gpt2", {"pre": "qwen35"}),
    "stablelm2": ("gpt2", {"pre": "stablelm2"}),
    "glm4": ("gpt2", {"pre": "glm4", "add_bos_token": False}),
    "falcon": ("gpt2", {"pre": "falcon"}),
    "bloom": ("gpt2", {"pre": "bloom"}),
    "viking": ("gpt2", {"pre": "viking"}),
    "deepseek-coder": ("gpt2", {"pre": "deepseek-coder"}),
    "deepseek-v3": ("gpt2", {"pre": "deepseek-v3"}),
    "sentencepiece": ("llama", {}),
    "sentencepiece without a space": ("llama", {"add_space_prefix": False}),
    "sentencepiece without a beginning": ("llama", {"add_bos_token": False}),
}


@pytest.mark.parametrize(("model", "keys"), VOCABULARIES.values(), ids=VOCABULARIES)
def test_llama_cpp_cuts_text_into_the_same_tokens(tmp_path, model, keys):
    path = write_vocabulary(tmp_path / "words.gguf", model, keys)
    tokenizer = AutoTokenizer.from_pretrained(open_checkpoint(path, tmp_path / "cache").tokenizer_dir)
    text = TEXT if model == "gpt2" else "abc ab  a  \n abc"
    assert tokenizer.encode(text) == llama_cpp(tmp_path, path, text=text).tolist()
