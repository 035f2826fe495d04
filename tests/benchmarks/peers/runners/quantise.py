"""Turn a GGUF file into Q4_K_M with llama.cpp's own quantiser: `python -m peers.runners.quantise SOURCE TARGET`."""

import sys

import llama_cpp


def main() -> None:
    """Quantise; raise RuntimeError if llama.cpp would not."""
    source, target = sys.argv[1:]
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
    if llama_cpp.llama_model_quantize(source.encode(), target.encode(), params) != 0:
        raise RuntimeError(f"llama.cpp could not quantise {source}")


if __name__ == "__main__":
    main()
