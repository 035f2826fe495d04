"""Hidden states that another machine sent: what they have to be before a layer computes with them."""

import ctypes
import math
import sys
from dataclasses import replace
from typing import Final

import torch

from layermesh.shared.errors import MeshError
from layermesh.shared.frames import Failure, LayerOutput

# Families that hand on several streams, or patches instead of tokens; `make architectures` finds those that are missing here.
UNUSUAL: Final = frozenset(
    {"blt", "cpmant", "deepseek_v4", "gemma3n_text", "hy_v4", "prophetnet", "qwen4_exp", "qwen4_exp_text", "xlm", "xlnet"}
)
WITHOUT_CACHE: Final = frozenset({"openai-gpt"})  # they run the whole sequence with every token
_MOST_STREAMS: Final = 16
_DTYPES: Final = frozenset({torch.float32, torch.bfloat16, torch.float16})
_WITH_LONG_EXPONENTS: Final = frozenset({torch.float32, torch.bfloat16})  # a byte long, behind the sign
_FEW_BYTES: Final = 1 << 17
_ADVICE: Final = "It is faulty, or of another version: leave it out, or install the same layermesh on both."
_NOT_NUMBERS: Final = (
    "that are not numbers (NaN or infinite). Its memory, its card or its copy of the weights is faulty, or the model "
    "overflows in this dtype: leave that machine out, or say another --dtype."
)


class HiddenStatesError(MeshError):
    """What a stage was given to start from is nothing that the stage before can have computed: `what` says what it was."""

    def __init__(self, what: str) -> None:
        super().__init__(f"the stage before sent {what}")
        self.what = what


def check_hidden_states(output: LayerOutput, num_tokens: int, hidden_size: int, model_type: str) -> None:
    """Raise HiddenStatesError unless the first tensor can be finite hidden states of `num_tokens` tokens.

    That is `[1, tokens, hidden]`, but for the `UNUSUAL` families, and more tokens for those `WITHOUT_CACHE`; a `hidden_size` of
    0 stands for one that is not known. What else a layer hands on may be anything: masks are infinite by design, and positions
    are whole numbers.
    """
    hidden = output.tensors[0]
    if hidden is None or hidden.dtype not in _DTYPES:
        said = "nothing" if hidden is None else str(hidden.dtype).removeprefix("torch.")
        raise HiddenStatesError(f"{said} where hidden states belong. {_ADVICE}")
    if model_type in WITHOUT_CACHE and hidden.dim() == 3:
        num_tokens = max(num_tokens, hidden.shape[1])
    if not _fits(tuple(hidden.shape), num_tokens, hidden_size, unusual=model_type in UNUSUAL):
        expected = f"[1, {num_tokens}, {hidden_size or 'hidden'}]"
        raise HiddenStatesError(f"hidden states of shape {list(hidden.shape)} instead of {expected}. {_ADVICE}")
    check_finite(hidden)


def check_finite(values: torch.Tensor) -> None:
    """Raise HiddenStatesError where one of `values` is NaN or infinite."""
    if not is_finite(values):
        raise HiddenStatesError(f"hidden states {_NOT_NUMBERS}")


def check_scores(scores: torch.Tensor) -> None:
    """Raise HiddenStatesError for scores `[vocab]` of which one is no number; −∞ is what a forbidden token has."""
    if scores.numel() == 0 or torch.isnan(scores.max()):
        raise HiddenStatesError(f"scores {_NOT_NUMBERS}")


def is_finite(values: torch.Tensor) -> bool:
    """Whether all of them are, in one pass without a temporary: the extremes of what has a NaN in it are NaN."""
    if values.numel() == 0 or _are_moderate(values):
        return True
    least, most = torch.aminmax(values)
    return math.isfinite(least.item()) and math.isfinite(most.item())


def _are_moderate(values: torch.Tensor) -> bool:
    """Whether no exponent is near its end, as far as that is seen from few values without torch.

    Between two layers everything it touches has been driven out of the processor's caches: it takes ten times as long.
    """
    if not values.is_cpu or values.dtype not in _WITH_LONG_EXPONENTS or values.nbytes > _FEW_BYTES or sys.byteorder != "little":
        return False
    dense = values.contiguous()
    signs_and_exponents = ctypes.string_at(dense.data_ptr(), dense.nbytes)[dense.itemsize - 1 :: dense.itemsize]
    return not any(end in signs_and_exponents for end in (0x7F, 0xFF))  # all bits but the last of an exponent


def blamed(failure: Failure, sender: str) -> Failure:
    """Return `failure` with the name of whoever sent the hidden states that brought it about, if they did."""
    if not isinstance(failure.error, HiddenStatesError):
        return failure
    return replace(failure, error=blame(failure.error, sender))


def blame(error: HiddenStatesError, sender: str) -> MeshError:
    """Return `error` with the name of whoever sent that, as in "worker den-pc"."""
    named = MeshError(f"{sender} sent {error.what}")
    named.__cause__ = error
    return named


def _fits(shape: tuple[int, ...], num_tokens: int, hidden_size: int, *, unusual: bool) -> bool:
    if not unusual:
        return len(shape) == 3 and shape[:2] == (1, num_tokens) and (not hidden_size or shape[2] == hidden_size)
    width = shape[-1] if shape else 0
    num_values = torch.Size(shape).numel()
    most = _MOST_STREAMS * (num_tokens + 8) * (hidden_size or width)
    return len(shape) in (3, 4) and 0 < num_values <= most and (not hidden_size or width % hidden_size == 0)
