import json

import pytest

from layermesh.coordinator.plan import Plan, StagePlan
from layermesh.shared.prediction import predict
from layermesh.shared.profile import Profile
from layermesh.shared.residency import plan_residency
from layermesh.shared.spans import LayerSpan
from tests.running import PLENTY, open_model


@pytest.fixture
def blocks(tiny):
    return open_model(tiny("llama"))[1].stream


def least(blocks):
    return 2 * max(block.loaded_bytes for block in blocks)


@pytest.mark.parametrize(
    ("load", "compute", "bottleneck"), [(1e-6, 1e-9, "disk"), (1e-9, 1e-6, "compute")], ids=["slow disk", "slow chip"]
)
def test_the_slower_of_reading_and_computing_sets_the_pace(blocks, load, compute, bottleneck):
    residency = plan_residency(blocks, least(blocks), 0)
    prediction = predict([residency], Profile(load, compute, 1e-5))
    assert prediction.bottleneck == bottleneck
    reading = residency.streamed_bytes * load
    computing = sum(block.loaded_bytes for block in residency.blocks) * compute
    assert prediction.seconds_per_token == pytest.approx(max(reading, computing) + 1e-5)


def test_what_stays_is_not_read(blocks):
    residency = plan_residency(blocks, PLENTY, 0)
    assert predict([residency], Profile(1.0, 1e-9, 0)).bottleneck == "compute"


def test_stages_add_up(blocks):
    residency = plan_residency(blocks, least(blocks), 0)
    profile = Profile(1e-6, 1e-9, 0)
    one, two = predict([residency], profile), predict([residency, residency], profile)
    assert two.seconds_per_token == pytest.approx(2 * one.seconds_per_token)


def test_a_plan_is_written_as_json_says(blocks):
    residency = plan_residency(blocks, least(blocks) + 7, 7)
    plan = Plan((StagePlan.of("den-pc", LayerSpan(0, 4), residency),), 0.5, "disk")
    written = json.loads(json.dumps(plan.to_dict()))
    stage = {"worker": "den-pc", "start": 0, "end": 4}
    stage |= {"resident_bytes": residency.resident_bytes, "streamed_bytes": residency.streamed_bytes}
    assert written == {"stages": [stage], "predicted_seconds_per_token": 0.5, "bottleneck": "disk"}
    assert Plan(plan.stages).to_dict()["predicted_seconds_per_token"] is None
    assert plan["stages"][0]["start"] == plan.stages[0].start == 0
