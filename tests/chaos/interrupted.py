"""An answer that things happen to on the way."""

from collections.abc import Sequence

from layermesh import LayerMesh
from layermesh.coordinator.recovery.failover import Failover
from tests.chaos.meshes import NUM_TOKENS, PROMPT, Heard, answers


class Interrupted:
    """One answer, token by token; `heard` is what came so far."""

    def __init__(self, mesh: LayerMesh, prompt: Sequence[int] = PROMPT, num_tokens: int = NUM_TOKENS) -> None:
        self.heard = Heard()
        self._tokens = answers(mesh, self.heard, prompt, num_tokens)

    def until(self, num_tokens: int) -> None:
        """Go on until there are so many tokens."""
        while len(self.heard.token_ids) < num_tokens:
            next(self._tokens)

    def finish(self) -> Heard:
        for _ in self._tokens:
            pass
        return self.heard

    @property
    def failovers(self) -> tuple[Failover, ...]:
        assert self.heard.answer is not None
        return self.heard.answer.failovers
