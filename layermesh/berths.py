"""Room for sessions beside each other on this machine."""

from layermesh.coordinator.boarding import saves_reading
from layermesh.local import LocalModel
from layermesh.shared.errors import BudgetError
from layermesh.shared.footprint import SequenceSize
from layermesh.shared.frames import SessionId


class Berths:
    """Gives out the memory that a model may take for sessions which share its sweeps."""

    def __init__(self, local: LocalModel) -> None:
        self._local = local
        self._taken: dict[SessionId, SequenceSize] = {}

    def take(self, session: SessionId, size: SequenceSize) -> bool:
        """Make room for a session of `size`; False where there is none beside the others, or where it would not pay.

        Raises BudgetError where there is none although nobody else is aboard.
        """
        try:
            if self._taken and not self._pays(size):
                return False
            self._local.line.reserve(session, size)
        except BudgetError:
            if self._taken:
                return False
            raise
        self._taken[session] = size
        return True

    def leave(self, session: SessionId) -> None:
        """Note that a session was released."""
        self._taken.pop(session, None)

    def _pays(self, size: SequenceSize) -> bool:
        if not self._local.has_part:
            return True
        now, then = self._local.stage.residency, self._local.layout(*self._taken.values(), size)
        if now is None or then.working_bytes <= now.working_bytes:  # the room is there already
            return True
        return saves_reading(len(self._taken), now.streamed_bytes, then.streamed_bytes)
