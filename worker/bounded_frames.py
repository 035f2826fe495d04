"""Frames that come in parts, on any number of streams, and what may be in between at once."""

from layermesh.protos import mesh_pb2 as pb
from layermesh.shared.errors import MeshError
from layermesh.shared.wire import Envelope, FrameAssembler
from layermesh.worker.limits import MAX_HELD_BYTES


class Inflow:
    """The bytes of frames that have begun to come and have not ended, of all streams together."""

    def __init__(self, max_bytes: int = MAX_HELD_BYTES) -> None:
        self.num_bytes = 0
        self._max_bytes = max_bytes

    def grow(self, num_bytes: int) -> None:
        """Count more; raises MeshError, having counted nothing, where that is too much."""
        if self.num_bytes + num_bytes > self._max_bytes:
            raise MeshError(f"more than {self._max_bytes:,} bytes come in at once. Send less at a time.")
        self.num_bytes += num_bytes

    def shrink(self, num_bytes: int) -> None:
        """Count what was grown by no longer."""
        self.num_bytes -= num_bytes


class BoundedFrames:
    """Puts the parts of one stream together, as far as `inflow` has room for them."""

    def __init__(self, inflow: Inflow) -> None:
        self._inflow = inflow
        self._assembler = FrameAssembler()
        self._begun_bytes = 0

    def add(self, part: pb.FramePart) -> Envelope | None:
        """Return the envelope that `part` completes; raises MeshError for what cannot be one, or is too much."""
        self._inflow.grow(len(part.data))
        self._begun_bytes += len(part.data)
        envelope = self._assembler.add(part)
        if envelope is not None:
            self.drop()
        return envelope

    def drop(self) -> None:
        """Count what has begun to come no longer: it is complete, or its stream ended."""
        self._inflow.shrink(self._begun_bytes)
        self._begun_bytes = 0
