"""llama.cpp through llama-cpp-python's bindings of its C functions: the likeliest token each time, nothing in between.

`repack` (on unless the job says otherwise, as in llama.cpp) copies weights into the order its fastest kernels like; the
copy is memory that the kernel cannot drop as it drops pages of a mapped file.
"""

import time

import llama_cpp
import numpy as np

from .figures import TokenClock, report
from .job import Job


def open_model(job: Job) -> tuple[object, object]:
    """Return the model and a context that holds the prompt and the answer."""
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0
    params.load_mode = llama_cpp.LLAMA_LOAD_MODE_MMAP
    params.use_extra_bufts = job.options.get("repack", True)
    model = llama_cpp.llama_model_load_from_file(job.model.encode(), params)
    if not model:
        raise RuntimeError(f"llama.cpp could not open {job.model}")
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = job.num_prompt + max(job.rounds) + 8
    settings.n_batch = settings.n_ubatch = max(job.num_prompt, 32)
    settings.n_threads = settings.n_threads_batch = job.num_threads
    return model, llama_cpp.llama_init_from_model(model, settings)


def answer(context: object, num_vocab: int, job: Job, num_new: int) -> TokenClock:
    """Answer the prompt from nothing."""
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    clock = TokenClock()
    ids = job.prompt_ids
    for _ in range(num_new):
        tokens = (llama_cpp.llama_token * len(ids))(*ids)  # named, because the batch only points to it
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, len(ids))) != 0:
            raise RuntimeError("llama_decode failed")
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, -1), (num_vocab,))
        ids = [int(logits.argmax())]
        clock.tick()
    return clock


def main() -> None:
    """Run the job."""
    job = Job.from_command_line()
    began = time.perf_counter()
    model, context = open_model(job)
    load_seconds = time.perf_counter() - began
    num_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    for num_new in job.rounds:
        clock = answer(context, num_vocab, job, num_new)
    system = llama_cpp.llama_print_system_info().decode()
    report(load_seconds, clock, ("llama-cpp-python",), system=system)


if __name__ == "__main__":
    main()
