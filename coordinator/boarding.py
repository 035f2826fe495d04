"""Who is aboard and who waits, decided without a model."""


class Boarding:
    """A queue of `num_waiting` prompts, by index, for at most `max_sessions` places: first come, first served.

    Who finds no room waits at the head of the queue until somebody leaves, so a long prompt is never overtaken for good.
    """

    def __init__(self, num_waiting: int, max_sessions: int) -> None:
        if max_sessions < 1:
            raise ValueError(f"somebody must be able to board, so there is at least one place, not {max_sessions}")
        self.aboard: list[int] = []  # in the order in which they boarded
        self._num_prompts = num_waiting
        self._max_sessions = max_sessions
        self._next = 0
        self._waits_for_room = False

    @property
    def candidate(self) -> int | None:
        """Who may try to board now; None where nobody may."""
        nobody = self._next == self._num_prompts or self._waits_for_room or len(self.aboard) >= self._max_sessions
        return None if nobody else self._next

    @property
    def is_over(self) -> bool:
        """Whether nobody is aboard and nobody waits."""
        return not self.aboard and self._next == self._num_prompts

    def board(self) -> None:
        """The candidate has come aboard."""
        self.aboard.append(self._next)
        self._next += 1

    def turn_away(self) -> None:
        """The candidate can never board; the next one is the candidate."""
        self._next += 1

    def wait(self) -> None:
        """The candidate found no room beside those aboard; nobody boards until one of them leaves."""
        if not self.aboard:
            raise ValueError(f"prompt {self._next} cannot wait for room that nobody takes")
        self._waits_for_room = True

    def leave(self, index: int) -> None:
        """Somebody has gone, with an answer or without."""
        self.aboard.remove(index)
        self._waits_for_room = False


def saves_reading(num_aboard: int, bytes_now: int, bytes_then: int) -> bool:
    """Tell whether one session more, beside `num_aboard`, lowers the bytes read for each token.

    Its cache takes room from resident blocks, so that a sweep reads `bytes_then` instead of `bytes_now`; but one more shares
    the sweep. Where nothing is read, nothing is shared.
    """
    return bytes_then == 0 or bytes_then * num_aboard < bytes_now * (num_aboard + 1)
