"""What is to be killed when: a plan that a seed decides, and nothing else."""

import random
from dataclasses import dataclass
from typing import Literal

NUM_WORKERS = 3
LAST_TOKEN = 32
NUM_CHUNKS = 12  # of the prompt that trials in the middle of a prompt have

Moment = Literal["decode", "prefill", "load", "transfer", "again"]


@dataclass(frozen=True, slots=True)
class Trial:
    """One kill -9 of the worker `victim`: `share` of the time from step `at` to the next one.

    Steps are tokens of the answer (decode), calls of the prompt (prefill), nothing in particular (load), or parts that were
    asked for (transfer). "again" kills a second worker while it makes ready what the first one, killed at token `at`, had.
    """

    number: int
    moment: Moment
    victim: int
    at: int
    share: float

    def __str__(self) -> str:
        return f"trial {self.number}: {self.moment} w{self.victim} at {self.at}+{self.share:.2f}"


def plan(seed: int, *, full: bool) -> list[Trial]:
    """Every worker at every token and twelve times in each other moment; or ten trials of these."""
    chance = random.Random(seed)
    kinds: list[tuple[Moment, int]] = [("decode", token) for token in range(1, LAST_TOKEN + 1)]
    for number in range(12):
        kinds += [("prefill", number % NUM_CHUNKS), ("load", 0), ("transfer", 1 + number % 2)]
        kinds += [("again", 1 + number)] * (number % 2)
    trials = [
        Trial(0, moment, victim, at, chance.random() * (chance.random() < 0.75))
        for moment, at in kinds
        for victim in range(NUM_WORKERS)
    ]
    if not full:
        of_each: list[tuple[Moment, int]] = [("decode", 4), ("prefill", 2), ("load", 1), ("transfer", 2), ("again", 1)]
        trials = [
            trial
            for moment, number in of_each
            for trial in chance.sample([trial for trial in trials if trial.moment == moment], number)
        ]
    chance.shuffle(trials)
    return [Trial(number, trial.moment, trial.victim, trial.at, trial.share) for number, trial in enumerate(trials)]
