import threading

from layermesh.worker.profiling import measure_profile
from tests.running import num_descriptors, open_model


def test_a_profile_has_rates_and_leaves_nothing_behind(tiny):
    _, table = open_model(tiny("llama"))
    before = num_descriptors(), threading.active_count()
    profile = measure_profile(table.layers[0])
    assert 0 < profile.load_seconds_per_byte < 1e-3
    assert 0 < profile.compute_seconds_per_byte < 1e-3
    assert profile.block_seconds > 0
    assert (num_descriptors(), threading.active_count()) == before
