"""One answer in the making: tokens become text, and their time and bytes are taken."""

from collections.abc import Sequence

from layermesh.coordinator.answer import Answer, Token
from layermesh.coordinator.generation import Answering, Limits
from layermesh.coordinator.sampling import Sampler
from layermesh.local import LocalModel
from layermesh.meter import Meter
from layermesh.request import Request
from layermesh.shared.frames import SessionId


class Reply:
    """What `request`, asked for at `began` (of the monotonic clock), gets in a session that has been reserved.

    `limits` and `chunk` are those the reservation was made for; `known` are the tokens that there are already. `answer` is
    there with the last token.
    """

    def __init__(
        self,
        local: LocalModel,
        request: Request,
        session: SessionId,
        limits: Limits,
        chunk: int,
        began: float,
        known: Sequence[int] = (),
    ) -> None:
        sampler = Sampler(request.params, request.prompt_ids, max_new_tokens=limits.max_new_tokens, stop_ids=limits.stop_ids)
        self.answering = Answering(session, request.prompt_ids, sampler, limits, chunk, known)
        self.answer: Answer | None = None
        self._local = local
        self._request = request
        self._meter = Meter(local, began)
        self._num_failovers = len(local.line.failovers)  # before this answer

    def take(self, token_id: int) -> Token:
        """Return a token that was just made, with the text that is certain now; a stop string ends the answer."""
        self._meter.token()
        text = self._request.text
        piece = text.push(token_id)
        if text.stopped:
            self.answering.finish_reason = "stop"
        if self.answering.finish_reason is not None:
            piece += text.finish()
            self.answer = self._finish()
        return Token(token_id, piece)

    def _finish(self) -> Answer:
        assert self.answering.finish_reason is not None
        return Answer(
            text=self._request.text.text,
            token_ids=list(self.answering.token_ids),
            prompt_tokens=len(self._request.prompt_ids),
            finish_reason=self.answering.finish_reason,
            seed=self._request.params.seed,
            model=self._local.name,
            plan=self._local.plan(measured=False),
            memory=self._meter.memory(),
            stream=self._meter.stream(self.answering.num_sweeps),
            timings=self._meter.timings(),
            failovers=tuple(self._local.line.failovers[self._num_failovers :]),
        )
