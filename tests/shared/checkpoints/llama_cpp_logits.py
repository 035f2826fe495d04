"""Write what llama.cpp computes: run as `python llama_cpp_logits.py GGUF CONTEXT TOKEN,TOKEN,... OUTPUT.npy`.

Imports nothing of layermesh, so that the interpreter of any environment with llama-cpp-python can run it.
"""

import sys

import numpy as np
from llama_cpp import Llama

_FLOAT32 = 0


def main(path: str, context: int, tokens: list[int], output: str) -> None:
    model = Llama(
        path, n_ctx=context, logits_all=True, n_threads=1, type_k=_FLOAT32, type_v=_FLOAT32, n_gpu_layers=0, verbose=False
    )
    model.eval(tokens)
    np.save(output, np.array(model.scores[: len(tokens)], dtype=np.float32))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), [int(token) for token in sys.argv[3].split(",")], sys.argv[4])
