import itertools
import math
from contextlib import suppress

import pytest
import torch
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from layermesh.protos import mesh_pb2 as pb
from layermesh.shared.errors import MeshError
from layermesh.shared.frames import Frame, LayerOutput, Logits, SessionId
from layermesh.shared.protocol import PART_BYTES
from layermesh.shared.wire import Envelope, FrameAssembler, HopTime, Scores, ScoresAssembler, envelope_parts, scores_parts

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.bool)
FRAME_BYTES = (
    "0a380a0272311002180122027331280330083a0305ac02420708031203010102420050075802621209000000000000e03f11"
    "000000000000d03f1204803f00c01801"
)
SCORES_BYTES = "0a02723110021a0273312003280232080000803f0000003f3801"


def whole(parts):
    """Send messages through their bytes, as the wire does, and put together what comes out."""
    assembler = FrameAssembler()
    made = [assembler.add(pb.FramePart.FromString(part.SerializeToString())) for part in parts]
    assert made[:-1] == [None] * (len(made) - 1)
    return made[-1]


def add_all(assembler, parts):
    for part in parts:
        assembler.add(part)


def equal(one: LayerOutput | None, other: LayerOutput | None) -> bool:
    if one is None or other is None:
        return one is other
    same = [
        a is b if a is None or b is None else a.dtype == b.dtype and a.shape == b.shape and bits(a) == bits(b)
        for a, b in zip(one.tensors, other.tensors, strict=True)
    ]
    return one.bare == other.bare and all(same)


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


@st.composite
def tensors(draw):
    shape = draw(st.lists(st.integers(0, 5), min_size=0, max_size=4))
    dtype = draw(st.sampled_from(DTYPES))
    raw = torch.randint(0, 256, (math.prod(shape) * dtype.itemsize,), dtype=torch.uint8)
    made = (raw % 2).bool() if dtype is torch.bool else raw.view(dtype)
    return made.reshape(shape)


@st.composite
def envelopes(draw):
    counts = st.integers(0, 2**40)
    handed_on = draw(st.none() | st.lists(st.none() | tensors(), min_size=1, max_size=4))
    hidden = None
    if handed_on is not None:
        hidden = LayerOutput(tuple(handed_on), bare=len(handed_on) == 1 and draw(st.booleans()))
    token_ids = tuple(draw(st.lists(st.integers(0, 2**31), min_size=1, max_size=9)))
    frame = Frame(SessionId("s"), draw(counts), draw(counts), draw(counts), token_ids, hidden)
    times = tuple(HopTime(each, each / 2) for each in draw(st.lists(st.floats(0, 1e3), max_size=3)))
    return Envelope("r", draw(st.integers(0, 99)), draw(counts), draw(st.integers(1, 99)), frame, times)


@given(envelopes())
def test_what_is_sent_is_what_comes(envelope):
    came = whole(list(envelope_parts(envelope)))
    assert equal(came.frame.hidden, envelope.frame.hidden)
    for part in ("route", "hop", "sweep", "sweep_size", "times"):
        assert getattr(came, part) == getattr(envelope, part)
    for part in ("session", "epoch", "step", "position", "token_ids"):
        assert getattr(came.frame, part) == getattr(envelope.frame, part)


def test_a_large_frame_goes_in_parts_that_every_receiver_takes():
    hidden = torch.randn(1, 300, 4096)
    envelope = Envelope("r", 0, 0, 1, Frame(SessionId("s"), 0, 0, 0, (1,), LayerOutput((hidden,), bare=True)))
    parts = list(envelope_parts(envelope))
    assert len(parts) == math.ceil(hidden.nbytes / PART_BYTES)
    assert max(part.ByteSize() for part in parts) < PART_BYTES + 1000
    assert torch.equal(whole(parts).frame.hidden.tensors[0], hidden)


def test_parts_may_be_of_any_size():
    hidden = torch.randn(1, 5, 64)
    (part,) = envelope_parts(Envelope("r", 0, 0, 1, Frame(SessionId("s"), 0, 0, 0, (1,), LayerOutput((hidden,), bare=True))))
    cuts = [0, 0, *range(1, hidden.nbytes, 7), hidden.nbytes, hidden.nbytes]
    pieces = [pb.FramePart(data=part.data[start:end]) for start, end in itertools.pairwise(cuts)]
    pieces[0].header.CopyFrom(part.header)
    pieces[-1].last = True
    assert torch.equal(whole(pieces).frame.hidden.tensors[0], hidden)


def test_bytes_on_the_wire_stay_as_they_are():
    hidden = torch.tensor([[[1.0, -2.0]]], dtype=torch.bfloat16)
    frame = Frame(SessionId("s1"), 2, 3, 8, (5, 300), LayerOutput((hidden, None), bare=False))
    (part,) = envelope_parts(Envelope("r1", 1, 7, 2, frame, (HopTime(0.5, 0.25),)))
    assert part.SerializeToString(deterministic=True).hex() == FRAME_BYTES
    (scores,) = scores_parts(Scores("r1", 2, Logits(SessionId("s1"), 3, torch.tensor([1.0, 0.5]))))
    assert scores.SerializeToString(deterministic=True).hex() == SCORES_BYTES


def test_logits_come_as_they_are_sent():
    values = torch.randn(300_000)
    parts = list(scores_parts(Scores("r", 4, Logits(SessionId("s"), 9, values), (HopTime(1, 2),))))
    assembler = ScoresAssembler()
    came = [assembler.add(part) for part in parts]
    assert len(parts) == 2
    assert came[0] is None
    assert torch.equal(came[1].logits.scores, values)
    assert (came[1].route, came[1].epoch, came[1].times) == ("r", 4, (HopTime(1, 2),))


def header(**changes):
    fields = {"route": "r", "session": "s", "token_ids": [1], "sweep_size": 1} | changes
    return pb.FrameHeader(**fields)


HUGE = pb.TensorSpec(dtype=pb.D_TYPE_FLOAT32, shape=[2**31, 2**31])
SMALL = pb.TensorSpec(dtype=pb.D_TYPE_FLOAT32, shape=[1, 1, 2])


@pytest.mark.parametrize(
    "parts",
    [
        [pb.FramePart(data=b"x", last=True)],
        [pb.FramePart(header=header(session=""), last=True)],
        [pb.FramePart(header=header(session="s" * 300), last=True)],
        [pb.FramePart(header=header(route=""), last=True)],
        [pb.FramePart(header=header(token_ids=[]), last=True)],
        [pb.FramePart(header=header(sweep_size=0), last=True)],
        [pb.FramePart(header=header(tensors=[HUGE]), last=True)],
        [pb.FramePart(header=header(tensors=[SMALL] * 17), last=True)],
        [pb.FramePart(header=header(tensors=[SMALL, SMALL], bare=True), last=True)],
        [pb.FramePart(header=header(tensors=[pb.TensorSpec(dtype=99, shape=[1])]), data=b"1234", last=True)],
        [pb.FramePart(header=header(tensors=[SMALL]), data=b"1234567", last=True)],
        [pb.FramePart(header=header(tensors=[SMALL]), data=b"123456789")],
        [pb.FramePart(header=header(tensors=[SMALL]), data=b"1234"), pb.FramePart(header=header(), last=True)],
    ],
    ids=[
        "no header", "no session", "long session", "no route", "no tokens", "no sweep", "huge tensor", "many tensors",
        "bare and several", "unknown dtype", "too few bytes", "too many bytes", "two beginnings",
    ],
)  # fmt: skip
def test_what_cannot_be_a_frame_is_refused(parts):
    with pytest.raises(MeshError):
        add_all(FrameAssembler(), parts)


@given(st.binary(max_size=300))
def test_no_bytes_bring_a_receiver_down(data):
    try:
        part = pb.FramePart.FromString(data)
    except DecodeError:
        return
    with suppress(MeshError):
        FrameAssembler().add(part)
