import json

import pytest

from layermesh.coordinator.answer import Answer, Memory, StreamFigures, Timings
from layermesh.coordinator.plan import Plan, StagePlan

ANSWER = Answer(
    text="Paris",
    token_ids=[5, 6],
    prompt_tokens=3,
    finish_reason="stop",
    seed=7,
    model="x",
    plan=Plan((StagePlan("local", 0, 4, 100, 50),)),
    memory=Memory(0, 100, None, 200),
    stream=StreamFigures(1000, 0.5, 2, 500.0),
    timings=Timings(0.1, 0.2, 0.3, None, 0.5),
)


def test_figures_are_read_by_attribute_key_and_as_a_dictionary():
    assert ANSWER.memory.host_peak_bytes == ANSWER.memory["host_peak_bytes"] == dict(ANSWER.memory)["host_peak_bytes"] == 100
    assert list(ANSWER.stream) == ["disk_bytes", "disk_seconds", "sweeps", "bytes_per_token"]
    assert ANSWER["text"] == ANSWER.text == "Paris"
    assert ANSWER["plan"]["stages"][0]["end"] == ANSWER.plan.stages[0].end == 4
    with pytest.raises(KeyError):
        ANSWER.timings["keys"]


def test_an_answer_is_written_as_one_json_object():
    written = json.loads(json.dumps(ANSWER.to_dict()))
    assert list(written) == [
        "text", "token_ids", "prompt_tokens", "finish_reason", "seed", "model", "plan", "memory", "stream", "timings",
        "failovers",
    ]  # fmt: skip
    assert written["timings"]["decode_tokens_per_second"] is None
    assert written["plan"]["stages"][0]["worker"] == "local"
    assert written["memory"]["host_budget_bytes"] == 200


@pytest.mark.parametrize(("seconds", "rate"), [(0.5, 2000.0), (0.0, 0.0)], ids=["read", "nothing read"])
def test_the_rate_of_the_disk_is_that_while_it_was_read(seconds, rate):
    assert StreamFigures(1000, seconds, 2, 500.0).bytes_per_second == rate
