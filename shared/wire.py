"""Frames as they travel: typed headers, dense tensors, parts of at most a mebibyte."""

import ctypes
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from layermesh.protos import mesh_pb2 as pb
from layermesh.shared.errors import MeshError
from layermesh.shared.frames import Frame, LayerOutput, Logits, SessionId
from layermesh.shared.protocol import PART_BYTES

MAX_FRAME_BYTES = 1 << 30
MAX_TENSORS = 16
MAX_DIMS = 8
MAX_TOKENS = 1 << 17  # of one frame
MAX_NAME = 200  # characters of a session's or a route's

_DTYPES = {
    torch.float32: pb.D_TYPE_FLOAT32,
    torch.float16: pb.D_TYPE_FLOAT16,
    torch.bfloat16: pb.D_TYPE_BFLOAT16,
    torch.float64: pb.D_TYPE_FLOAT64,
    torch.int64: pb.D_TYPE_INT64,
    torch.int32: pb.D_TYPE_INT32,
    torch.bool: pb.D_TYPE_BOOL,
}
_BY_NUMBER = {number: dtype for dtype, number in _DTYPES.items()}


@dataclass(frozen=True, slots=True)
class HopTime:
    """Seconds that a frame waited at a hop, and that its layers took."""

    waited: float
    computed: float


@dataclass(frozen=True, slots=True)
class Envelope:
    """A frame on its way to hop number `hop` of a route, as one of the `sweep_size` frames of a sweep.

    It ends at hop `end_hop`, if that is not None, or where the route does. A hop may have it for `deadline` seconds; 0: for as
    long as it takes.
    """

    route: str
    hop: int
    sweep: int
    sweep_size: int
    frame: Frame
    times: tuple[HopTime, ...] = ()
    end_hop: int | None = None
    deadline: float = 0.0

    @property
    def ends_here(self) -> bool:
        """Whether it goes no further than this hop."""
        return self.hop == self.end_hop

    def passed(self, frame: Frame, sweep_size: int, time: HopTime) -> "Envelope":
        """Return it as it goes on to the next hop."""
        return replace(self, hop=self.hop + 1, sweep_size=sweep_size, frame=frame, times=(*self.times, time))


@dataclass(frozen=True, slots=True)
class Scores:
    """The logits of a frame on their way back to the coordinator."""

    route: str
    epoch: int
    logits: Logits
    times: tuple[HopTime, ...] = ()


def envelope_parts(envelope: Envelope) -> Iterator[pb.FramePart]:
    """Cut an envelope into messages."""
    frame, output = envelope.frame, envelope.frame.hidden
    tensors = () if output is None else output.tensors
    header = pb.FrameHeader(
        route=envelope.route,
        epoch=frame.epoch,
        hop=envelope.hop,
        session=frame.session,
        step=frame.step,
        position=frame.position,
        token_ids=frame.token_ids,
        tensors=[_spec(tensor) for tensor in tensors],
        bare=output is not None and output.bare,
        sweep=envelope.sweep,
        sweep_size=envelope.sweep_size,
        timings=_timings(envelope.times),
        end_hop=0 if envelope.end_hop is None else envelope.end_hop + 1,
        deadline_seconds=envelope.deadline,
    )
    data = b"".join(_bytes(tensor) for tensor in tensors if tensor is not None)
    for start, part, last in _cut(data):
        yield pb.FramePart(header=None if start else header, data=part, last=last)


def scores_parts(scores: Scores) -> Iterator[pb.LogitsPart]:
    """Cut logits into messages."""
    values = scores.logits.scores
    for start, part, last in _cut(_bytes(values)):
        yield pb.LogitsPart(
            route=scores.route,
            epoch=scores.epoch,
            session=scores.logits.session,
            step=scores.logits.step,
            num_scores=values.numel(),
            data=part,
            last=last,
            timings=() if start else _timings(scores.times),
        )


class _Gathered:
    """The bytes of parts that follow each other; those of a single part, as most frames are, are not copied."""

    def __init__(self) -> None:
        self._data: bytes | bytearray = b""

    def add(self, piece: bytes) -> int:
        """Add some, and return how many there are now."""
        if not self._data:
            self._data = piece
        elif piece:
            if isinstance(self._data, bytes):
                self._data = bytearray(self._data)
            self._data += piece
        return len(self._data)

    def take(self) -> bytes:
        """Return all, and hold none any more."""
        data, self._data = self._data, b""
        return bytes(data)


class FrameAssembler:
    """Puts the parts of frames together that follow each other on one stream."""

    def __init__(self) -> None:
        self._header: pb.FrameHeader | None = None
        self._data = _Gathered()
        self._num_bytes = 0

    def add(self, part: pb.FramePart) -> Envelope | None:
        """Return the envelope that `part` completes; raises MeshError for what cannot be one."""
        if part.HasField("header"):
            if self._header is not None:
                raise MeshError("a frame began in the middle of another.")
            self._num_bytes = _checked_bytes(part.header)
            self._header = part.header
        if self._header is None:
            raise MeshError("a frame came without its beginning.")
        held = self._data.add(part.data)
        if held > self._num_bytes or (part.last and held < self._num_bytes):
            raise MeshError(f"a frame has {held} bytes and its header says {self._num_bytes}.")
        if not part.last:
            return None
        header, self._header = self._header, None
        return _envelope(header, self._data.take())


class ScoresAssembler:
    """Puts the parts of logits together that follow each other on one stream."""

    def __init__(self) -> None:
        self._first: pb.LogitsPart | None = None
        self._data = _Gathered()

    def add(self, part: pb.LogitsPart) -> Scores | None:
        """Return the logits that `part` completes; raises MeshError for what cannot be any."""
        first = self._first = self._first or part
        if (first.session, first.step) != (part.session, part.step):
            raise MeshError("logits of two frames were mixed.")
        held, num_bytes = self._data.add(part.data), 4 * first.num_scores
        if held > min(num_bytes, MAX_FRAME_BYTES) or (part.last and held < num_bytes):
            raise MeshError(f"logits have {held} bytes and should have {num_bytes}.")
        if not part.last:
            return None
        self._first = None
        scores = _tensor(self._data.take(), torch.float32, (first.num_scores,))
        logits = Logits(SessionId(first.session), first.step, scores)
        return Scores(first.route, first.epoch, logits, _times(first.timings))


def _envelope(header: pb.FrameHeader, data: bytes) -> Envelope:
    tensors: list[torch.Tensor | None] = []
    start = 0
    for spec in header.tensors:
        dtype = _BY_NUMBER.get(spec.dtype)
        if dtype is None:
            tensors.append(None)
            continue
        end = start + math.prod(spec.shape) * dtype.itemsize
        tensors.append(_tensor(data[start:end], dtype, tuple(spec.shape)))
        start = end
    hidden = LayerOutput(tuple(tensors), header.bare) if tensors else None
    try:
        frame = Frame(SessionId(header.session), header.epoch, header.step, header.position, tuple(header.token_ids), hidden)
    except ValueError as error:
        raise MeshError(f"{error}.") from error
    return Envelope(
        header.route,
        header.hop,
        header.sweep,
        header.sweep_size,
        frame,
        _times(header.timings),
        header.end_hop - 1 if header.end_hop else None,
        max(header.deadline_seconds, 0.0),
    )


def _checked_bytes(header: pb.FrameHeader) -> int:
    """Return how many bytes the tensors of a frame have, after a look at everything that can be looked at."""
    if not (0 < len(header.session) <= MAX_NAME and 0 < len(header.route) <= MAX_NAME):
        raise MeshError("a frame names no session or no route.")
    if not 0 < len(header.token_ids) <= MAX_TOKENS or header.sweep_size < 1:
        raise MeshError(f"a frame of {len(header.token_ids)} tokens in a sweep of {header.sweep_size} makes no sense.")
    if len(header.tensors) > MAX_TENSORS or (header.bare and len(header.tensors) != 1):
        raise MeshError(f"a layer hands on a few tensors, not {len(header.tensors)}.")
    if not math.isfinite(header.deadline_seconds):
        raise MeshError(f"a frame may not take {header.deadline_seconds} s.")
    num_bytes = 0
    for spec in header.tensors:
        if spec.dtype == pb.D_TYPE_UNSPECIFIED:
            continue
        if spec.dtype not in _BY_NUMBER:
            raise MeshError(f"there is no dtype number {spec.dtype}. Is this worker of an older version?")
        if len(spec.shape) > MAX_DIMS or math.prod(max(size, 1) for size in spec.shape) > MAX_FRAME_BYTES:
            raise MeshError(f"a tensor of shape {list(spec.shape[:MAX_DIMS])} is larger than any that makes sense.")
        num_bytes += math.prod(spec.shape) * _BY_NUMBER[spec.dtype].itemsize
    if num_bytes > MAX_FRAME_BYTES:
        raise MeshError(f"a frame of {num_bytes} bytes is larger than any that makes sense.")
    return num_bytes


def _spec(tensor: torch.Tensor | None) -> pb.TensorSpec:
    if tensor is None:
        return pb.TensorSpec()
    if tensor.dtype not in _DTYPES:
        raise MeshError(f"a layer hands on {tensor.dtype}, which has no form on the wire.")
    return pb.TensorSpec(dtype=_DTYPES[tensor.dtype], shape=tensor.shape)


def _bytes(tensor: torch.Tensor) -> bytes:
    dense = tensor.cpu().contiguous()
    if dense.nbytes > MAX_FRAME_BYTES:  # which nobody takes, and ctypes counts no further than twice that
        raise MeshError(f"a tensor of {dense.nbytes} bytes is larger than any that makes sense.")
    return ctypes.string_at(dense.data_ptr(), dense.nbytes)  # a view as a numpy array takes torch several steps


def _tensor(data: bytes, dtype: torch.dtype, shape: Sequence[int]) -> torch.Tensor:
    """Copy `data` to where torch would have allocated it: kernels may round differently elsewhere."""
    tensor = torch.empty(tuple(shape), dtype=dtype)
    if len(data) != tensor.nbytes:
        raise MeshError(f"a tensor of shape {list(shape)} came with {len(data)} bytes.")
    ctypes.memmove(tensor.data_ptr(), data, tensor.nbytes)
    return tensor


def _cut(data: bytes) -> Iterator[tuple[int, bytes, bool]]:
    """Yield where each part of `data` begins, the part, and whether it is the last; an empty one makes one part."""
    view = memoryview(data)
    for start in range(0, max(len(data), 1), PART_BYTES):
        yield start, bytes(view[start : start + PART_BYTES]), start + PART_BYTES >= len(data)


def _timings(times: Sequence[HopTime]) -> list[pb.HopTiming]:
    return [pb.HopTiming(waited_seconds=time.waited, computed_seconds=time.computed) for time in times]


def _times(timings: Sequence[pb.HopTiming]) -> tuple[HopTime, ...]:
    return tuple(HopTime(timing.waited_seconds, timing.computed_seconds) for timing in timings)
