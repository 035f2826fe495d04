"""What comes back from a route of workers, and what it has to be before anybody uses it."""

from typing import TypeVar

from layermesh.shared.hidden_states import HiddenStatesError, blame, check_finite, check_scores
from layermesh.shared.wire import Envelope, Scores

A = TypeVar("A")


def checked(arrival: A, sender: str) -> A:
    """Return `arrival`; raises MeshError, naming the worker `sender`, for hidden states or scores that are not numbers.

    Whether hidden states fit the model is for the stage to see that takes them.
    """
    try:
        if isinstance(arrival, Scores):
            check_scores(arrival.logits.scores)
        elif isinstance(arrival, Envelope) and arrival.frame.hidden is not None:
            hidden = arrival.frame.hidden.tensors[0]
            if hidden is not None and hidden.is_floating_point():
                check_finite(hidden)
    except HiddenStatesError as error:
        raise blame(error, f"worker {sender}") from error
    return arrival
