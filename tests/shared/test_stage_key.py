from dataclasses import replace

import pytest

from layermesh.protos import mesh_pb2 as pb
from layermesh.shared.errors import MeshError
from layermesh.shared.spans import LayerSpan
from layermesh.shared.stage_key import MAX_LAYERS, StageKey

KEY = StageKey("0123456789abcdef" * 4, LayerSpan(3, 8), "bfloat16", fast_path=True, has_head=True)


@pytest.mark.parametrize("changes", [{}, {"fast_path": False}, {"has_head": False}, {"dtype": "float32"}], ids=str)
def test_a_key_arrives_as_it_left(changes):
    key = replace(KEY, **changes)
    assert StageKey.parse(key.to_proto()) == key
    assert StageKey.parse(pb.SpanKey.FromString(key.to_proto().SerializeToString())) == key


def test_keys_that_differ_are_different_stages():
    others = [replace(KEY, span=LayerSpan(3, 9)), replace(KEY, fast_path=False), replace(KEY, has_head=False)]
    assert len({KEY, *others}) == 4


@pytest.mark.parametrize(
    "changes",
    [
        {"fingerprint": ""},
        {"fingerprint": "0" * 63},
        {"fingerprint": "A" * 64},
        {"fingerprint": "../" * 21 + "x"},
        {"start": 8},
        {"start": 9},
        {"end": MAX_LAYERS + 1},
        {"end": 2**32 - 1},
        {"dtype": ""},
        {"dtype": "load"},
        {"dtype": "float64"},
    ],
    ids=str,
)
def test_keys_that_make_no_sense_are_refused(changes):
    message = KEY.to_proto()
    for name, value in changes.items():
        setattr(message, name, value)
    with pytest.raises(MeshError, match=r"fingerprint|make no stage"):
        StageKey.parse(message)
