"""Write what llama.cpp makes of a GGUF file: run as `python llama_cpp_run.py GGUF REQUEST.json OUTPUT.npy`.

REQUEST is {"tokens": [ids], "context": length} for logits, or {"text": text} for tokens. Imports nothing of layermesh, so
that the interpreter of any environment with llama-cpp-python can run it.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from llama_cpp import Llama

_FLOAT32 = 0


def logits(path: str, tokens: list[int], context: int) -> Any:
    model = Llama(
        path, n_ctx=context, logits_all=True, n_threads=1, type_k=_FLOAT32, type_v=_FLOAT32, n_gpu_layers=0, verbose=False
    )
    model.eval(tokens)
    return np.array(model.scores[: len(tokens)], dtype=np.float32)


def tokens(path: str, text: str) -> Any:
    return np.array(Llama(path, vocab_only=True, verbose=False).tokenize(text.encode(), add_bos=True, special=True))


if __name__ == "__main__":
    request = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    np.save(sys.argv[3], tokens(sys.argv[1], **request) if "text" in request else logits(sys.argv[1], **request))
