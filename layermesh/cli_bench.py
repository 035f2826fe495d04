"""`layermesh bench`: what this machine could reach with a model, and what it reaches."""

from dataclasses import dataclass

from layermesh.cli_plan import budget_fields, describe_budget
from layermesh.coordinator.record import Record
from layermesh.local import LocalModel
from layermesh.mesh import LayerMesh
from layermesh.shared.prediction import predict
from layermesh.shared.units import format_bytes, format_seconds
from layermesh.terminal import note, print_json
from layermesh.worker.profiling import measure_profile, reading_seconds

NUM_PROMPT = 512
NUM_NEW = 17
MOST_READ = 2 << 30


@dataclass(frozen=True)
class Bench(Record):
    """Rates of the machine, the least that a token can take with them, and what it took.

    The bound is the slower of reading what streams, with nobody computing, and computing, with nothing to read.
    """

    model: str
    disk_bytes_per_second: float
    weight_bytes_per_second: float
    resident_bytes: int
    streamed_bytes: int
    prefill_tokens_per_second: float
    predicted_seconds_per_token: float
    seconds_per_token: float
    bound_seconds_per_token: float

    @property
    def share_of_bound(self) -> float:
        """How near it came, from 0 to 1."""
        return self.bound_seconds_per_token / self.seconds_per_token


def print_bench(mesh: LayerMesh, *, as_json: bool) -> None:
    """Measure `mesh` and print what was found."""
    bench = run_bench(mesh)
    if as_json:
        print_json(bench.to_dict() | {"share_of_bound": bench.share_of_bound} | budget_fields(mesh.local))
        return
    lines = [
        f"model      {bench.model}",
        f"memory     {format_bytes(bench.resident_bytes)} of blocks stay, {format_bytes(bench.streamed_bytes)} stream",
        f"budget     {describe_budget(mesh.local)}",
        f"disk       {format_bytes(bench.disk_bytes_per_second)}/s read by layermesh's own readers",
        f"weights    {format_bytes(bench.weight_bytes_per_second)}/s multiplied with one token",
        f"prefill    {bench.prefill_tokens_per_second:.1f} tokens/s with {NUM_PROMPT} at once",
        f"decode     {format_seconds(bench.seconds_per_token)} per token, {1 / bench.seconds_per_token:.2f} tokens/s",
        f"bound      {format_seconds(bench.bound_seconds_per_token)} per token, {bench.share_of_bound:.0%} of it reached",
        f"predicted  {format_seconds(bench.predicted_seconds_per_token)} per token",
    ]
    print("\n".join(lines))  # noqa: T201


def run_bench(mesh: LayerMesh) -> Bench:
    """Measure the rates, then let the model answer."""
    local = mesh.local
    num_prompt = _prompt_length(local)
    local.reserve_for_plan()
    residency = local.stage.residency
    assert residency is not None
    note("measuring …")
    profile = measure_profile(local.stage)
    blocks = residency.streamed or [block for block in residency.blocks if block.layer is not None]
    read_bytes, read_seconds = reading_seconds(local.stage, blocks, MOST_READ)
    prompt = [number % local.definition.vocab_size for number in range(num_prompt)]
    mesh.generate(prompt[:8], max_new_tokens=2, temperature=0, ignore_eos=True)  # brings what stays
    answer = mesh.generate(prompt, max_new_tokens=NUM_NEW, temperature=0, ignore_eos=True)
    stage = answer.plan.stages[0]
    rate = read_bytes / read_seconds
    computing = sum(block.loaded_bytes for block in residency.blocks) * profile.compute_seconds_per_byte
    return Bench(
        model=local.name,
        disk_bytes_per_second=rate,
        weight_bytes_per_second=1 / max(profile.compute_seconds_per_byte, 1e-15),
        resident_bytes=stage.resident_bytes,
        streamed_bytes=stage.streamed_bytes,
        prefill_tokens_per_second=num_prompt / answer.timings.time_to_first_token_seconds,
        predicted_seconds_per_token=predict([residency], profile).seconds_per_token,
        seconds_per_token=answer.timings.decode_seconds / (NUM_NEW - 1),
        bound_seconds_per_token=max(stage.streamed_bytes / rate, computing + profile.outside_seconds),
    )


def _prompt_length(local: LocalModel) -> int:
    longest = local.context_length
    return NUM_PROMPT if longest is None else max(min(NUM_PROMPT, longest - NUM_NEW), 1)
