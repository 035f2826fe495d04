import shutil
import threading

import pytest
import torch

from layermesh.shared.errors import CheckpointError
from layermesh.shared.frames import SessionId
from layermesh.shared.spans import LayerSpan
from layermesh.worker import profiling
from layermesh.worker.loading import BlockLoader
from layermesh.worker.profiling import measure_profile
from layermesh.worker.stage import Stage
from tests.running import PLENTY, SIZE, num_descriptors, open_model, open_stage, opened


@pytest.mark.parametrize("model_type", ["llama", "mixtral", "qwen3_next", "gemma3n_text", "falcon_mamba", "hrm_text"])
def test_a_profile_has_rates_and_leaves_nothing_behind(tiny, model_type):
    with opened(tiny(model_type)) as stage:
        before = num_descriptors(), threading.active_count()
        profile = measure_profile(stage)
        assert 0 < profile.load_seconds_per_byte < 1e-3
        assert 0 <= profile.compute_seconds_per_byte < 1e-3
        assert profile.outside_seconds >= 0
        assert (num_descriptors(), threading.active_count()) == before
        assert not stage._sessions
        assert all(parameter.is_meta for parameter in stage._definition.layers.parameters())


def test_a_first_reading_that_was_slow_says_nothing_of_those_that_follow(tiny, monkeypatch):
    monkeypatch.setattr(profiling, "_load", lambda *_: 3600.0)
    monkeypatch.setattr(BlockLoader, "passes_page_cache", True)  # whatever file system this is
    with opened(tiny("llama")) as stage:
        assert 0 < measure_profile(stage).load_seconds_per_byte < 1e-3


def test_a_stage_answers_as_ever_after_it_was_measured(tiny):
    from tests.running import first_frame

    scores = []
    for measured in (False, True):
        with opened(tiny("llama")) as stage:
            if measured:
                measure_profile(stage)
            (logits,) = stage.forward([first_frame("first", [5, 6, 7])])
            scores.append(logits.scores)
    assert (scores[0] == scores[1]).all()


@pytest.mark.parametrize(("start", "end"), [(0, 1), (0, 4), (2, 4)], ids=["first layer", "all layers", "last layers"])
def test_stages_without_the_head_are_tried_without_it(tiny, monkeypatch, start, end):
    def no_head(_):
        raise AssertionError("its weights are elsewhere")

    monkeypatch.setattr(profiling, "FALLBACK_SECONDS", 1e6)
    definition, table = open_model(tiny("llama"))
    monkeypatch.setattr(definition.model.lm_head, "forward", no_head)
    assert definition.num_layers == 4
    stage = Stage(definition, table, LayerSpan(start, end), torch.device("cpu"), PLENTY, has_head=False)
    try:
        stage.reserve(SessionId("first"), SIZE)
        assert measure_profile(stage).compute_seconds_per_byte < 1e-3
    finally:
        stage.close()


def test_a_block_that_cannot_be_read(tiny, tmp_path):
    shutil.copytree(tiny("llama"), tmp_path, dirs_exist_ok=True)
    stage = open_stage(tmp_path)
    stage.reserve(SessionId("first"), SIZE)
    stage.files.close()
    (tmp_path / "model.safetensors").write_bytes(b"")
    before = num_descriptors(), threading.active_count()
    with pytest.raises(CheckpointError, match="ends at byte"):
        measure_profile(stage)
    assert (num_descriptors(), threading.active_count()) == before
    stage.close()
