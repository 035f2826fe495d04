import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from layermesh.shared.errors import UsageError
from layermesh.shared.model.context import choose_context, context_notices, stated_context
from layermesh.shared.model.definition import define_model
from tests.architectures.tiny import build

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LONG = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}


def config(kind: str = "llama", **changes: Any) -> Any:
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 40}
    return AutoConfig.for_model(kind, **{**sizes, **changes})


@pytest.mark.parametrize(
    ("changes", "length"),
    [
        ({}, 40),
        ({"rope_scaling": YARN}, 128),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}}, 128),
        ({"rope_parameters": {**YARN, "rope_theta": 1e6}}, 128),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.5}}, 100),
        ({"rope_scaling": {**YARN, "factor": 1.0}}, 40),
        ({"rope_scaling": {**YARN, "factor": None}}, 40),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, 40),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, 40),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                           "original_max_position_embeddings": 8}}, 40),
        ({"rope_scaling": {"rope_type": "longrope", "original_max_position_embeddings": 10, **LONG}}, 40),
    ],
    ids=["plain", "yarn", "yarn-as-on-a-card", "yarn-in-rope-parameters", "yarn-without-original", "yarn-of-one",
         "yarn-without-factor", "linear", "dynamic", "llama3", "longrope"],
)  # fmt: skip
def test_the_limit_of_each_kind_of_scaling(changes: dict[str, Any], length: int) -> None:
    assert stated_context(config(**changes)) == length


def test_factors_of_some_layers_are_in_the_stated_length() -> None:
    ropes = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    assert stated_context(config("gemma3_text", rope_parameters=ropes)) == 40
    ropes["full_attention"] = {**YARN, "rope_theta": 1e6}
    assert stated_context(config("gemma3_text", rope_parameters=ropes)) == 128


@pytest.mark.parametrize("factor", [True, "4", float("inf"), 1e300, -1], ids=str)
def test_a_factor_that_is_none_does_not_count(factor: object) -> None:
    class Odd:
        max_position_embeddings = 40
        rope_parameters = {"rope_type": "yarn", "factor": factor}  # noqa: RUF012

    assert stated_context(Odd()) == 40


def test_scaling_that_depends_on_the_length_is_not_gone_into(tmp_path: Path) -> None:
    folder = build("llama", tmp_path / "llama")
    written = json.loads((folder / "config.json").read_text())
    written["rope_parameters"] = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    (folder / "config.json").write_text(json.dumps(written))
    definition = define_model(folder, torch.float32)
    stated = definition.context_length
    assert stated == written["max_position_embeddings"]
    with pytest.raises(UsageError, match=r"position scaling .dynamic. changes with the length"):
        choose_context(definition, stated + 1, "llama")


@pytest.mark.parametrize(("kind", "longer"), [("llama", True), ("gpt2", False), ("gptj", False), ("opt", False)])
def test_a_context_may_be_longer_only_where_positions_are_computed(tmp_path: Path, kind: str, longer: bool) -> None:
    definition = define_model(build(kind, tmp_path / kind), torch.float32)
    stated = definition.context_length
    assert stated is not None
    assert choose_context(definition, None, kind) == stated
    assert choose_context(definition, stated - 1, kind) == stated - 1
    assert context_notices(definition, stated) == ()
    if longer:
        assert choose_context(definition, stated + 1, kind) == stated + 1
        assert f"made for {stated} tokens" in context_notices(definition, stated + 1)[0]
    else:
        with pytest.raises(
            UsageError, match=f"too long for {kind}: it has positions up to {stated} only. Use --context {stated}"
        ):
            choose_context(definition, stated + 1, kind)
