"""The text of an answer, piece by piece while its tokens are chosen."""

from collections.abc import Sequence
from typing import Final

from layermesh.coordinator.tokenizer import Tokenizer
from layermesh.shared.errors import UsageError

_REPLACEMENT: Final = "\ufffd"  # what half a character decodes to
_MAX_UNDECIDED: Final = 16  # tokens; a character has at most four bytes


class TextStream:
    """Turns the tokens of one sequence into text, up to the first stop string.

    All pieces together are what decoding all ids at once gives, for ids whose bytes are valid UTF-8. (Where they are
    not, a tokenizer with bytes as tokens, like Llama 2's, decodes a whole run of them to U+FFFD, characters that were
    already given out too. It also takes more than five real U+FFFD in a row for such a run.) Each token is decoded
    after those that came right before it, since many tokenizers write the first token of a text differently: the idea
    of text-generation-inference's and vLLM's detokenizers.

    Without a tokenizer there is no text. Raises UsageError for stop strings that could never be found.
    """

    def __init__(self, tokenizer: Tokenizer | None, stop: Sequence[str] = ()) -> None:
        self._stop = (stop,) if isinstance(stop, str) else tuple(stop)
        if not all(self._stop):
            raise UsageError("a stop string must not be empty.")
        if self._stop and tokenizer is None:
            raise UsageError("stop strings need a tokenizer, and this model has none. Leave out --stop.")
        self._tokenizer = tokenizer
        self._context: list[int] = []  # tokens whose text has been given out, to decode the next ones after
        self._context_text = ""
        self._undecided: list[int] = []  # tokens whose text is not certain yet
        self._held = ""  # text that may be the beginning of a stop string
        self._pieces: list[str] = []
        self._stopped = False

    @property
    def text(self) -> str:
        """What has been given out so far."""
        return "".join(self._pieces)

    @property
    def stopped(self) -> bool:
        """Whether a stop string occurred; neither it nor anything after it is given out."""
        return self._stopped

    def push(self, token_id: int) -> str:
        """Return the text that is certain now: no half of a character, and no possible beginning of a stop string."""
        if self._tokenizer is None or self._stopped or self._tokenizer.is_special(token_id):
            return ""
        self._undecided.append(token_id)
        return self._give_out(self._decode(self._tokenizer))

    def finish(self) -> str:
        """Return the rest of the text, when no token follows."""
        if self._tokenizer is None or self._stopped:
            return ""
        rest = self._give_out(self._decode(self._tokenizer, last=True))
        self._pieces.append(self._held)
        rest, self._held = rest + self._held, ""
        return rest

    def _decode(self, tokenizer: Tokenizer, *, last: bool = False) -> str:
        text = tokenizer.decode(self._context + self._undecided)[len(self._context_text) :]
        if not last and len(self._undecided) < _MAX_UNDECIDED and (not text or text.endswith(_REPLACEMENT)):
            return ""
        if text:
            self._context = self._undecided
            self._context_text = tokenizer.decode(self._context)
        self._undecided = []
        return text

    def _give_out(self, text: str) -> str:
        self._held += text
        # The first one to be complete, so that it does not matter how the text is cut into tokens.
        found = [(start + len(stop), start) for stop in self._stop if (start := self._held.find(stop)) >= 0]
        self._stopped = bool(found)
        end = min(found)[1] if found else len(self._held) - self._num_undecided_chars()
        piece, self._held = self._held[:end], "" if found else self._held[end:]
        self._pieces.append(piece)
        return piece

    def _num_undecided_chars(self) -> int:
        """Return the length of the longest end of the held text that is the beginning of a stop string."""
        lengths = (n for stop in self._stop for n in range(1, len(stop)) if self._held.endswith(stop[:n]))
        return max(lengths, default=0)
