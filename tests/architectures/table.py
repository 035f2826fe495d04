"""The architecture table: every causal LM that transformers knows, through layermesh, against plain transformers.

`python -m tests.architectures.table [MODEL_TYPE ...]` prints a line for each and fails when one that should be equal is not,
when one listed as an exception has become equal, or when fewer are equal than the bars ask for.
"""

import multiprocessing
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from tests.architectures.exceptions import EXCEPTIONS
from tests.architectures.tiny import MODEL_TYPES, NOT_BUILT, PROMPT, build, reference

NUM_TOKENS = 8
ROUNDING = 1e-3  # of a logit, by which the fast path may differ
BARS = {"one stage": 145, "fast path": 145, "two stages": 138, "three stages": 138, "three sessions": 138}
PROMPTS = (PROMPT, PROMPT[3:10], PROMPT[:4])


def check(model_type: str) -> dict[str, str]:
    """Return for each way of running `model_type` in what it differs from transformers; nothing where it is equal."""
    from transformers import logging

    from tests.architectures.runs import answer_greedily, difference, streaming_pipeline

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="layermesh-tiny-") as folder:
        path = build(model_type, Path(folder) / "model")
        length = len(PROMPT) + NUM_TOKENS

        def divided(num_stages: int) -> str:
            with streaming_pipeline(path, num_stages, length, len(PROMPT)) as pipeline:
                (answer,) = answer_greedily(pipeline, [PROMPT], NUM_TOKENS)
            return difference(answer, reference(path, PROMPT, NUM_TOKENS))

        def shared() -> str:
            with streaming_pipeline(path, 1, length, len(PROMPT)) as pipeline:
                together = answer_greedily(pipeline, PROMPTS, NUM_TOKENS)
            for prompt, answer in zip(PROMPTS, together, strict=True):
                with streaming_pipeline(path, 1, length, len(PROMPT)) as pipeline:
                    (alone,) = answer_greedily(pipeline, [prompt], NUM_TOKENS)
                if found := difference(answer, alone):
                    return found
            return ""

        def fast() -> str:
            with streaming_pipeline(path, 1, length, len(PROMPT), fast_path=True) as pipeline:
                (answer,) = answer_greedily(pipeline, [PROMPT], NUM_TOKENS)
            return difference(answer, reference(path, PROMPT, NUM_TOKENS), within=ROUNDING)

        return {
            "one stage": _attempt(lambda: divided(1)),
            "fast path": _attempt(fast),
            "two stages": _attempt(lambda: divided(2)),
            "three stages": _attempt(lambda: divided(3)),
            "three sessions": _attempt(shared),
        }


def main(chosen: list[str]) -> int:
    """Check the `chosen` types, or all, and return the exit code."""
    types = chosen or [model_type for model_type in MODEL_TYPES if model_type not in NOT_BUILT]
    equal = dict.fromkeys(BARS, 0)
    surprises = []
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for model_type, results in zip(types, pool.imap(check, types), strict=True):
            for way, found in results.items():
                equal[way] += not found
                expected = EXCEPTIONS.get(model_type, {}).get(way)
                if bool(found) != bool(expected):
                    surprises.append(f"{model_type}, {way}: {found or 'is equal now, and still listed as an exception'}")
            differing = "; ".join(f"{way}: {found}" for way, found in results.items() if found)
            print(f"{model_type:<28} {differing or 'equal'}", flush=True)
    for model_type, reason in sorted(NOT_BUILT.items()):
        print(f"{model_type:<28} not built: {reason}")
    for way, count in equal.items():
        print(f"{way}: {count} of {len(types)} equal to transformers, {BARS[way]} asked for")
    short = [] if chosen else [way for way, bar in BARS.items() if equal[way] < bar]
    for surprise in surprises:
        print(f"unexpected: {surprise}")
    num_failed = len(surprises) + len(short)
    print(f"{len(types) * len(BARS) - num_failed} passed, {num_failed} failed")
    return 1 if num_failed else 0


def _attempt(run: Callable[[], str]) -> str:
    try:
        return run()
    except Exception as error:
        return f"{type(error).__name__}: {error}".replace("\n", " ")[:200]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
