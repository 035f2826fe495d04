"""layermesh, with whatever options of `LayerMesh` the job names."""

import time

import torch

from layermesh.settings import OpeningOptions
from layermesh.shared.light_imports import lighten_imports

from .figures import TokenClock, report, skip
from .job import Job


def main() -> None:
    """Run the job."""
    job = Job.from_command_line()
    lighten_imports()  # as the command line does, before it imports anything heavy
    from layermesh import LayerMesh

    torch.set_num_threads(job.num_threads)
    unknown = job.options.keys() - OpeningOptions.__annotations__.keys()
    if unknown:
        skip(f"this layermesh has no option {', '.join(sorted(unknown))}")
    began = time.perf_counter()
    with LayerMesh(job.model, device="cpu", **job.options) as mesh:
        load_seconds = time.perf_counter() - began
        for num_new in job.rounds:
            clock = TokenClock()
            with mesh.stream(job.prompt_ids, max_new_tokens=num_new, temperature=0, ignore_eos=True) as stream:
                for _ in stream:
                    clock.tick()
        assert stream.answer is not None
        answer = stream.answer
        (stage,) = answer.plan.stages
        report(
            load_seconds,
            clock,
            ("layermesh", "torch", "transformers"),
            resident_bytes=stage.resident_bytes,
            streamed_bytes=stage.streamed_bytes,
            host_peak_bytes=answer.memory.host_peak_bytes,
        )


if __name__ == "__main__":
    main()
