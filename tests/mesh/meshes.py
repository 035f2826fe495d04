"""What tests of a mesh on the loopback interface share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

from layermesh import LayerMesh
from layermesh.coordinator.answer import Answer
from layermesh.settings import OpeningOptions
from layermesh.worker.host import LiveStage
from tests.mesh.loopback import LoopbackWorker

PROMPT = [5, 6, 7, 8, 9, 10, 11]
NUM_TOKENS = 6


def open_mesh(folder: Path, workers: Sequence[LoopbackWorker], **options: Unpack[OpeningOptions]) -> LayerMesh:
    """The model in `folder`, divided evenly among `workers`."""
    addresses = [worker.address for worker in workers]
    asked = OpeningOptions(device="cpu", workers=addresses, discover=False, spread=True, alone=False)
    return LayerMesh(str(folder), **{**asked, **options})


def ask(mesh: LayerMesh, prompt: Sequence[int] = PROMPT, num_tokens: int = NUM_TOKENS, **settings: Any) -> Answer:
    """A greedy answer of `num_tokens`."""
    return mesh.generate(list(prompt), max_new_tokens=num_tokens, temperature=0, ignore_eos=True, **settings)


def answer_alone(folder: Path, prompt: Sequence[int] = PROMPT, num_tokens: int = NUM_TOKENS) -> list[int]:
    """The tokens that one machine answers."""
    with LayerMesh(str(folder), device="cpu", alone=True) as mesh:
        return ask(mesh, prompt, num_tokens).token_ids


def machines(answer: Answer) -> list[str]:
    """Who ran what, in order."""
    return [stage.worker for stage in answer.plan.stages]


def stages(*workers: LoopbackWorker) -> list[LiveStage]:
    """What runs on `workers` now."""
    return [stage for worker in workers if worker.server is not None for stage in worker.server.stages]


def num_sessions(*workers: LoopbackWorker) -> int:
    """How many sessions `workers` know, as they count them and as their stages do."""
    return sum(len(stage.sessions) + len(stage.runner._stage._reserved) for stage in stages(*workers))
