"""What travels from stage to stage."""

from dataclasses import dataclass
from typing import NewType

import torch

from layermesh.shared.errors import LayermeshError

SessionId = NewType("SessionId", str)


@dataclass(frozen=True, slots=True)
class LayerOutput:
    """What a decoder layer returned: hidden states `[1, tokens, hidden]` first, then whatever else it hands on.

    `bare` tells families whose layers return the hidden states alone from those that return a tuple.
    """

    tensors: tuple[torch.Tensor | None, ...]
    bare: bool

    @classmethod
    def of(cls, returned: object) -> "LayerOutput":
        """Take apart what a layer's forward returned."""
        if isinstance(returned, torch.Tensor):
            return cls((returned,), bare=True)
        if not isinstance(returned, tuple | list):
            raise TypeError(f"a decoder layer returned {type(returned).__name__}, neither a tensor nor a tuple")
        return cls(tuple(item if isinstance(item, torch.Tensor) else None for item in returned), bare=False)

    def to(self, device: torch.device) -> "LayerOutput":
        """Return it on `device`."""
        return LayerOutput(tuple(None if tensor is None else tensor.to(device) for tensor in self.tensors), self.bare)

    def returned(self) -> object:
        """Put it together again, as the layer's caller expects it."""
        return self.tensors[0] if self.bare else self.tensors


@dataclass(frozen=True, slots=True)
class Frame:
    """One session's work in one sweep: new tokens at `position` and, from the second stage on, their hidden states.

    `epoch` counts the routes a session has had; frames of an earlier one are void. `step` counts its sweeps.
    """

    session: SessionId
    epoch: int
    step: int
    position: int
    token_ids: tuple[int, ...]
    hidden: LayerOutput | None = None

    def __post_init__(self) -> None:
        if not self.token_ids:
            raise ValueError(f"a frame carries at least one token; session {self.session}, step {self.step} has none")
        if min(self.epoch, self.step, self.position) < 0:
            raise ValueError(f"epoch, step and position count from zero, not {self.epoch}, {self.step}, {self.position}")


@dataclass(frozen=True, slots=True)
class Logits:
    """What the last stage returns for a frame: float32 scores of the next token, `[vocab]`."""

    session: SessionId
    step: int
    scores: torch.Tensor


@dataclass(frozen=True, slots=True)
class Failure:
    """What a frame becomes whose session failed, by no fault of the others in the sweep; the stage has forgotten it."""

    session: SessionId
    step: int
    error: LayermeshError


Outcome = Frame | Logits | Failure
