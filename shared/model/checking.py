"""What is wrong with a checkpoint before, or while, transformers builds a model of it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from layermesh.shared.checkpoints import Checkpoint
from layermesh.shared.errors import CheckpointError, LayermeshError, UnsupportedModelError

MOST_REPEATS = 1000  # layers or experts that a configuration may speak of where there are not even as many tensors

_REPEATS = re.compile(r"(layer|expert)s?$|^depth$")  # names of settings that count modules
_NOT_GENERATING = re.compile(
    r"For(MaskedLM|PreTraining|SequenceClassification|TokenClassification|QuestionAnswering|MultipleChoice)$"
)


def check_config(checkpoint: Checkpoint, config: dict[str, Any]) -> None:
    """Refuse what transformers would take hours to build, or would build and let talk nonsense."""
    most = max(MOST_REPEATS, len(checkpoint.tensors))
    for name, value in _settings(config):
        if _REPEATS.search(name) and isinstance(value, int) and value > most:
            raise CheckpointError(
                f"{checkpoint.path} has {len(checkpoint.tensors)} tensors and its config.json says {name} is "
                f"{str(value)[:20]}: they do not belong together, or config.json is damaged. Fetch it again."
            )
    names = config.get("architectures")
    if isinstance(names, list) and names and all(_NOT_GENERATING.search(str(name)) for name in names):
        raise UnsupportedModelError(
            f"{checkpoint.path} is a {names[0]}, which was not trained to write text. layermesh runs causal language "
            "models: look for one of those (their architecture mostly ends in ForCausalLM)."
        )


def _settings(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        yield name, value
        if isinstance(value, dict):
            yield from _settings(value)


@contextmanager
def blaming(checkpoint: Checkpoint) -> Iterator[None]:
    """Put down to the checkpoint whatever transformers and torch raise while they build what it describes."""
    try:
        yield
    except (LayermeshError, MemoryError, OSError):
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"no model can be built from {checkpoint.path}: its config.json says something that transformers does not "
            f"understand ({type(error).__name__}: {said}). Fetch it again, or try another version of transformers."
        ) from error
