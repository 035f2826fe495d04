"""An answer as it comes: token by token, then as a whole."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from layermesh.coordinator.answer import Answer, Token


@dataclass(slots=True)
class StreamOutcome:
    """What becomes of a stream. Apart from it, so that a stream that is dropped goes, and its memory, at once."""

    answer: Answer | None = None
    cut_to: int | None = None
    num_tokens: int = 0
    differs: bool = False


class TokenStream:
    """The tokens of an answer as they are made.

    Memory is set aside with the first token and given back with the last, by `close`, or when the stream is dropped.
    `greedy` is whether the likeliest token is taken each time.
    """

    def __init__(self, tokens: Generator[Token], outcome: StreamOutcome, *, greedy: bool) -> None:
        self.greedy = greedy
        self._tokens = tokens
        self._outcome = outcome

    @property
    def answer(self) -> Answer | None:
        """The whole answer, once all tokens have been taken."""
        return self._outcome.answer

    @property
    def cut_to(self) -> int | None:
        """The most tokens that memory had room for; None where it had enough."""
        return self._outcome.cut_to

    @property
    def num_tokens(self) -> int:
        """How many tokens there are so far."""
        return self._outcome.num_tokens

    @property
    def differs(self) -> bool:
        """Whether this machine would have begun otherwise than the answer that it goes on with."""
        return self._outcome.differs

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def __iter__(self) -> Iterator[Token]:
        return self

    def __next__(self) -> Token:
        return next(self._tokens)

    def close(self) -> None:
        """End early and forget the session."""
        self._tokens.close()
