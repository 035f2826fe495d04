"""transformers with accelerate's disk offload: `cpu_bytes` of the weights stay, the rest is read from disk in every step."""

import time

import torch
from transformers import AutoModelForCausalLM

from .figures import ClockStreamer, report
from .job import Job


def main() -> None:
    """Run the job."""
    job = Job.from_command_line()
    torch.set_num_threads(job.num_threads)
    began = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(
        job.model,
        dtype="auto",
        device_map="auto",
        max_memory={"cpu": job.options["cpu_bytes"]},
        offload_folder=job.options["offload_folder"],
    )
    load_seconds = time.perf_counter() - began
    input_ids = torch.tensor([job.prompt_ids])
    for num_new in job.rounds:
        streamer = ClockStreamer()
        with torch.inference_mode():
            model.generate(input_ids, max_new_tokens=num_new, min_new_tokens=num_new, do_sample=False, streamer=streamer)
    on_disk = sum(place == "disk" for place in model.hf_device_map.values())
    report(load_seconds, streamer.clock, ("accelerate", "torch", "transformers"), modules_on_disk=on_disk)


if __name__ == "__main__":
    main()
