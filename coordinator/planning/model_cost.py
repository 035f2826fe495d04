"""What a model asks of the machines that run it, in bytes."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LayerCost:
    """One decoder layer, or the head.

    `loaded_bytes` is its size in memory, ready to compute with, `stored_bytes` what is read from disk for it, `working_bytes`
    what it adds to the machine that runs it: caches. `piece_bytes` is the largest of the pieces that a layer can be streamed
    in; None where it must be whole.
    """

    loaded_bytes: int
    stored_bytes: int
    working_bytes: int = 0
    piece_bytes: int | None = None

    def __post_init__(self) -> None:
        if min(self.loaded_bytes, self.stored_bytes, self.working_bytes, self.piece_bytes or 0) < 0:
            raise ValueError(f"sizes of a layer are not negative: {self}")

    @property
    def largest_piece(self) -> int:
        """The most of it that has to be in memory at a time while it streams."""
        return self.loaded_bytes if self.piece_bytes is None else self.piece_bytes


@dataclass(frozen=True, slots=True)
class ModelCost:
    """A model, layer by layer.

    `form` is what weights are kept in, as `MachineProfile.weight_rates` calls it. Any stage takes `base_bytes` of memory,
    whatever its span; one token's frame has `hidden_bytes`, and `logits_bytes` go back where the coordinator has no head.
    """

    layers: tuple[LayerCost, ...]
    head: LayerCost
    form: str
    base_bytes: int
    hidden_bytes: int
    logits_bytes: int

    def __post_init__(self) -> None:
        if not self.layers or min(self.base_bytes, self.hidden_bytes, self.logits_bytes) < 0:
            raise ValueError(f"a model has layers, and sizes that are not negative: {self}")
