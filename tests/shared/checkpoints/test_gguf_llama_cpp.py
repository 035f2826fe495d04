"""llama.cpp computes from the twins' GGUF files what layermesh computes from them.

LAYERMESH_LLAMA_CPP names an interpreter with llama-cpp-python; without it, the one that the benchmarks installed is used.
"""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf_twins import CONTEXT
from test_gguf_families import PROMPT, TWINS, logits_of, made_model

from tests.benchmarks.peers.environments import LLAMA_CPP

PYTHON = Path(os.environ.get("LAYERMESH_LLAMA_CPP", LLAMA_CPP.folder / "bin" / "python"))
SCRIPT = Path(__file__).with_name("llama_cpp_logits.py")

pytestmark = pytest.mark.skipif(
    not PYTHON.is_file(), reason="no llama.cpp: LAYERMESH_LLAMA_CPP names no interpreter that has it"
)


@pytest.mark.usefixtures("unpack_here")
@pytest.mark.parametrize("twin", TWINS.values(), ids=TWINS)
def test_llama_cpp_computes_the_same(tmp_path, twin):
    path = twin.write(tmp_path / "twin.gguf", twin.model())
    output = tmp_path / "logits.npy"
    tokens = ",".join(map(str, PROMPT))
    subprocess.run([PYTHON, SCRIPT, path, str(CONTEXT), tokens, output], check=True, capture_output=True, timeout=120)
    made = logits_of(made_model(path, tmp_path / "cache"), len(PROMPT))
    torch.testing.assert_close(made, torch.tensor(np.load(output)), atol=2e-2, rtol=1e-2)
