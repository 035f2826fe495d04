"""What must be known of a session to build it again."""

from collections.abc import Sequence
from dataclasses import dataclass

from layermesh.shared.footprint import SequenceSize
from layermesh.shared.frames import Frame


@dataclass(frozen=True, slots=True)
class Past:
    """What has come back of a session, in order: the shapes of its calls, from which it can be built again."""

    size: SequenceSize
    frames: Sequence[Frame]

    @property
    def num_tokens(self) -> int:
        """How many tokens have passed."""
        return sum(len(frame.token_ids) for frame in self.frames)
