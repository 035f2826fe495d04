"""What an answer has shown of this machine's speed, kept for the plans to come."""

from contextlib import suppress

from layermesh.coordinator.answer import Answer
from layermesh.local import LocalModel
from layermesh.shared.errors import LayermeshError
from layermesh.worker.profile_cache import ProfileCache

LEAST_TOKENS = 8  # after the first; fewer say more about other things


def note_speed(local: LocalModel, answer: Answer) -> None:
    """Note what a byte of the weights that stay here took per token; where a disk or a bus had a part in it, nothing."""
    residency, num_tokens = local.stage.residency, len(answer.token_ids) - 1
    if residency is None or not residency.stays_whole or not len(local.stage.span) or num_tokens < LEAST_TOKENS:
        return
    line = local.mesh_line
    seconds = line.own_seconds() if line is not None else answer.timings.decode_seconds / num_tokens
    with suppress(LayermeshError):  # a model that cannot be described to others is not planned for either
        fingerprint = local.manifest.fingerprint
        ProfileCache().note_run(fingerprint, local.definition.weight_form, seconds / residency.resident_bytes)
