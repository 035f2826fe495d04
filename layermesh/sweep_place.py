"""Where a sweep is, in words."""

from layermesh.shared.model.blocks import Block


class SweepPlace:
    """Counts the sweeps through a model of `num_layers` as it is told of their blocks."""

    def __init__(self, num_layers: int) -> None:
        self._num_layers = num_layers
        self._sweep = 0

    def at(self, block: Block) -> str:
        """Return the place of `block`, whose turn it is now: "sweep 3, layer 7/30"."""
        if block.layer == 0 and block.module is None:
            self._sweep += 1
        place = block.name if block.layer is None else f"layer {block.layer + 1}/{self._num_layers}"
        return f"sweep {self._sweep}, {place}" if self._sweep else place
