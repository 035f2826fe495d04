"""AirLLM: the checkpoint split into layers on disk, each read just before it computes, the next one on a thread.

With `split_only` it makes the split and nothing else, which its users do once.
"""

import time

import torch
from airllm import AutoModel

from .figures import ClockStreamer, report
from .job import Job


def main() -> None:
    """Run the job."""
    job = Job.from_command_line()
    torch.set_num_threads(job.num_threads)
    began = time.perf_counter()
    model = AutoModel.from_pretrained(job.model, device="cpu", layer_shards_saving_path=job.options["shards"])
    load_seconds = time.perf_counter() - began
    if job.options.get("split_only"):
        return
    input_ids = torch.tensor([job.prompt_ids])
    for num_new in job.rounds:
        streamer = ClockStreamer()
        with torch.inference_mode():
            model.generate(input_ids, max_new_tokens=num_new, do_sample=False, use_cache=True, streamer=streamer)
    report(load_seconds, streamer.clock, ("airllm", "torch", "transformers"))


if __name__ == "__main__":
    main()
