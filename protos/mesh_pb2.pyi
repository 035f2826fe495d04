from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    D_TYPE_UNSPECIFIED: _ClassVar[DType]
    D_TYPE_FLOAT32: _ClassVar[DType]
    D_TYPE_FLOAT16: _ClassVar[DType]
    D_TYPE_BFLOAT16: _ClassVar[DType]
    D_TYPE_INT64: _ClassVar[DType]
    D_TYPE_INT32: _ClassVar[DType]
    D_TYPE_BOOL: _ClassVar[DType]
    D_TYPE_FLOAT64: _ClassVar[DType]
D_TYPE_UNSPECIFIED: DType
D_TYPE_FLOAT32: DType
D_TYPE_FLOAT16: DType
D_TYPE_BFLOAT16: DType
D_TYPE_INT64: DType
D_TYPE_INT32: DType
D_TYPE_BOOL: DType
D_TYPE_FLOAT64: DType

class DescribeRequest(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: int
    def __init__(self, version: _Optional[int] = ...) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("version", "worker_id", "name", "software", "device", "profile", "running", "stored", "addresses", "slowdown", "leaving")
    class SlowdownEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    VERSION_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    SLOWDOWN_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    version: int
    worker_id: str
    name: str
    software: str
    device: str
    profile: Profile
    running: _containers.RepeatedCompositeFieldContainer[RunningSpan]
    stored: _containers.RepeatedCompositeFieldContainer[StoredModel]
    addresses: _containers.RepeatedScalarFieldContainer[str]
    slowdown: _containers.ScalarMap[str, float]
    leaving: bool
    def __init__(self, version: _Optional[int] = ..., worker_id: _Optional[str] = ..., name: _Optional[str] = ..., software: _Optional[str] = ..., device: _Optional[str] = ..., profile: _Optional[_Union[Profile, _Mapping]] = ..., running: _Optional[_Iterable[_Union[RunningSpan, _Mapping]]] = ..., stored: _Optional[_Iterable[_Union[StoredModel, _Mapping]]] = ..., addresses: _Optional[_Iterable[str]] = ..., slowdown: _Optional[_Mapping[str, float]] = ..., leaving: _Optional[bool] = ...) -> None: ...

class Profile(_message.Message):
    __slots__ = ("device_bytes", "host_bytes", "bus_bytes_per_second", "disk_bytes_per_second", "weight_bytes_per_second", "flops_per_second", "compute_fingerprint")
    class WeightBytesPerSecondEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    DEVICE_BYTES_FIELD_NUMBER: _ClassVar[int]
    HOST_BYTES_FIELD_NUMBER: _ClassVar[int]
    BUS_BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    FLOPS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    device_bytes: int
    host_bytes: int
    bus_bytes_per_second: float
    disk_bytes_per_second: float
    weight_bytes_per_second: _containers.ScalarMap[str, float]
    flops_per_second: float
    compute_fingerprint: str
    def __init__(self, device_bytes: _Optional[int] = ..., host_bytes: _Optional[int] = ..., bus_bytes_per_second: _Optional[float] = ..., disk_bytes_per_second: _Optional[float] = ..., weight_bytes_per_second: _Optional[_Mapping[str, float]] = ..., flops_per_second: _Optional[float] = ..., compute_fingerprint: _Optional[str] = ...) -> None: ...

class RunningSpan(_message.Message):
    __slots__ = ("key", "num_sessions", "resident_bytes", "streamed_bytes", "seconds_per_token", "num_routes", "model")
    KEY_FIELD_NUMBER: _ClassVar[int]
    NUM_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    STREAMED_BYTES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    NUM_ROUTES_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    key: SpanKey
    num_sessions: int
    resident_bytes: int
    streamed_bytes: int
    seconds_per_token: float
    num_routes: int
    model: str
    def __init__(self, key: _Optional[_Union[SpanKey, _Mapping]] = ..., num_sessions: _Optional[int] = ..., resident_bytes: _Optional[int] = ..., streamed_bytes: _Optional[int] = ..., seconds_per_token: _Optional[float] = ..., num_routes: _Optional[int] = ..., model: _Optional[str] = ...) -> None: ...

class StoredModel(_message.Message):
    __slots__ = ("fingerprint", "name", "num_bytes", "parts")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    fingerprint: str
    name: str
    num_bytes: int
    parts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, fingerprint: _Optional[str] = ..., name: _Optional[str] = ..., num_bytes: _Optional[int] = ..., parts: _Optional[_Iterable[str]] = ...) -> None: ...

class SpanKey(_message.Message):
    __slots__ = ("fingerprint", "start", "end", "dtype", "fast_path", "has_head")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    FAST_PATH_FIELD_NUMBER: _ClassVar[int]
    HAS_HEAD_FIELD_NUMBER: _ClassVar[int]
    fingerprint: str
    start: int
    end: int
    dtype: str
    fast_path: bool
    has_head: bool
    def __init__(self, fingerprint: _Optional[str] = ..., start: _Optional[int] = ..., end: _Optional[int] = ..., dtype: _Optional[str] = ..., fast_path: _Optional[bool] = ..., has_head: _Optional[bool] = ...) -> None: ...

class EchoRequest(_message.Message):
    __slots__ = ("payload", "num_bytes")
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    payload: bytes
    num_bytes: int
    def __init__(self, payload: _Optional[bytes] = ..., num_bytes: _Optional[int] = ...) -> None: ...

class EchoResponse(_message.Message):
    __slots__ = ("payload",)
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    payload: bytes
    def __init__(self, payload: _Optional[bytes] = ...) -> None: ...

class PrepareRequest(_message.Message):
    __slots__ = ("start", "chunk")
    START_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    start: PrepareStart
    chunk: Chunk
    def __init__(self, start: _Optional[_Union[PrepareStart, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ...) -> None: ...

class PrepareStart(_message.Message):
    __slots__ = ("version", "key", "model", "revision", "sources", "route", "keeps", "most_bytes")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    KEEPS_FIELD_NUMBER: _ClassVar[int]
    MOST_BYTES_FIELD_NUMBER: _ClassVar[int]
    version: int
    key: SpanKey
    model: str
    revision: str
    sources: _containers.RepeatedScalarFieldContainer[str]
    route: str
    keeps: _containers.RepeatedCompositeFieldContainer[SpanKey]
    most_bytes: int
    def __init__(self, version: _Optional[int] = ..., key: _Optional[_Union[SpanKey, _Mapping]] = ..., model: _Optional[str] = ..., revision: _Optional[str] = ..., sources: _Optional[_Iterable[str]] = ..., route: _Optional[str] = ..., keeps: _Optional[_Iterable[_Union[SpanKey, _Mapping]]] = ..., most_bytes: _Optional[int] = ...) -> None: ...

class PrepareResponse(_message.Message):
    __slots__ = ("wanted", "progress", "ready", "failed")
    WANTED_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    wanted: Wanted
    progress: PrepareProgress
    ready: PrepareReady
    failed: Problem
    def __init__(self, wanted: _Optional[_Union[Wanted, _Mapping]] = ..., progress: _Optional[_Union[PrepareProgress, _Mapping]] = ..., ready: _Optional[_Union[PrepareReady, _Mapping]] = ..., failed: _Optional[_Union[Problem, _Mapping]] = ...) -> None: ...

class Wanted(_message.Message):
    __slots__ = ("part", "offset")
    PART_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    part: str
    offset: int
    def __init__(self, part: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("part", "data", "sha256")
    PART_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    part: str
    data: bytes
    sha256: bytes
    def __init__(self, part: _Optional[str] = ..., data: _Optional[bytes] = ..., sha256: _Optional[bytes] = ...) -> None: ...

class PrepareProgress(_message.Message):
    __slots__ = ("done_bytes", "total_bytes", "doing")
    DONE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    DOING_FIELD_NUMBER: _ClassVar[int]
    done_bytes: int
    total_bytes: int
    doing: str
    def __init__(self, done_bytes: _Optional[int] = ..., total_bytes: _Optional[int] = ..., doing: _Optional[str] = ...) -> None: ...

class PrepareReady(_message.Message):
    __slots__ = ("fetched_bytes", "resident_bytes", "streamed_bytes")
    FETCHED_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    STREAMED_BYTES_FIELD_NUMBER: _ClassVar[int]
    fetched_bytes: int
    resident_bytes: int
    streamed_bytes: int
    def __init__(self, fetched_bytes: _Optional[int] = ..., resident_bytes: _Optional[int] = ..., streamed_bytes: _Optional[int] = ...) -> None: ...

class Problem(_message.Message):
    __slots__ = ("kind", "message", "budget_bytes", "needed_bytes", "busy")
    KIND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    BUDGET_BYTES_FIELD_NUMBER: _ClassVar[int]
    NEEDED_BYTES_FIELD_NUMBER: _ClassVar[int]
    BUSY_FIELD_NUMBER: _ClassVar[int]
    kind: str
    message: str
    budget_bytes: int
    needed_bytes: int
    busy: bool
    def __init__(self, kind: _Optional[str] = ..., message: _Optional[str] = ..., budget_bytes: _Optional[int] = ..., needed_bytes: _Optional[int] = ..., busy: _Optional[bool] = ...) -> None: ...

class ReserveRequest(_message.Message):
    __slots__ = ("key", "session", "num_tokens", "num_new", "route", "num_steps")
    KEY_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_NEW_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    key: SpanKey
    session: str
    num_tokens: int
    num_new: int
    route: str
    num_steps: int
    def __init__(self, key: _Optional[_Union[SpanKey, _Mapping]] = ..., session: _Optional[str] = ..., num_tokens: _Optional[int] = ..., num_new: _Optional[int] = ..., route: _Optional[str] = ..., num_steps: _Optional[int] = ...) -> None: ...

class ReserveResponse(_message.Message):
    __slots__ = ("resident_bytes", "streamed_bytes", "problem", "goes_on")
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    STREAMED_BYTES_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    GOES_ON_FIELD_NUMBER: _ClassVar[int]
    resident_bytes: int
    streamed_bytes: int
    problem: Problem
    goes_on: bool
    def __init__(self, resident_bytes: _Optional[int] = ..., streamed_bytes: _Optional[int] = ..., problem: _Optional[_Union[Problem, _Mapping]] = ..., goes_on: _Optional[bool] = ...) -> None: ...

class ReleaseRequest(_message.Message):
    __slots__ = ("key", "session", "route")
    KEY_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    key: SpanKey
    session: str
    route: str
    def __init__(self, key: _Optional[_Union[SpanKey, _Mapping]] = ..., session: _Optional[str] = ..., route: _Optional[str] = ...) -> None: ...

class ReleaseResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("version", "fingerprint", "part", "offset")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    version: int
    fingerprint: str
    part: str
    offset: int
    def __init__(self, version: _Optional[int] = ..., fingerprint: _Optional[str] = ..., part: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class FetchResponse(_message.Message):
    __slots__ = ("chunk",)
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    chunk: Chunk
    def __init__(self, chunk: _Optional[_Union[Chunk, _Mapping]] = ...) -> None: ...

class ForwardRequest(_message.Message):
    __slots__ = ("route", "frame")
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    route: Route
    frame: FramePart
    def __init__(self, route: _Optional[_Union[Route, _Mapping]] = ..., frame: _Optional[_Union[FramePart, _Mapping]] = ...) -> None: ...

class ForwardResponse(_message.Message):
    __slots__ = ("accepted", "frame", "logits", "failure", "replayed", "leaving")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    LOGITS_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    REPLAYED_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    accepted: RouteAccepted
    frame: FramePart
    logits: LogitsPart
    failure: FrameFailure
    replayed: Replayed
    leaving: Leaving
    def __init__(self, accepted: _Optional[_Union[RouteAccepted, _Mapping]] = ..., frame: _Optional[_Union[FramePart, _Mapping]] = ..., logits: _Optional[_Union[LogitsPart, _Mapping]] = ..., failure: _Optional[_Union[FrameFailure, _Mapping]] = ..., replayed: _Optional[_Union[Replayed, _Mapping]] = ..., leaving: _Optional[_Union[Leaving, _Mapping]] = ...) -> None: ...

class RouteAccepted(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Leaving(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Replayed(_message.Message):
    __slots__ = ("route", "epoch", "session", "step")
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    route: str
    epoch: int
    session: str
    step: int
    def __init__(self, route: _Optional[str] = ..., epoch: _Optional[int] = ..., session: _Optional[str] = ..., step: _Optional[int] = ...) -> None: ...

class Route(_message.Message):
    __slots__ = ("version", "id", "epoch", "hops", "hop")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    HOPS_FIELD_NUMBER: _ClassVar[int]
    HOP_FIELD_NUMBER: _ClassVar[int]
    version: int
    id: str
    epoch: int
    hops: _containers.RepeatedCompositeFieldContainer[Hop]
    hop: int
    def __init__(self, version: _Optional[int] = ..., id: _Optional[str] = ..., epoch: _Optional[int] = ..., hops: _Optional[_Iterable[_Union[Hop, _Mapping]]] = ..., hop: _Optional[int] = ...) -> None: ...

class Hop(_message.Message):
    __slots__ = ("worker", "address", "key")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    worker: str
    address: str
    key: SpanKey
    def __init__(self, worker: _Optional[str] = ..., address: _Optional[str] = ..., key: _Optional[_Union[SpanKey, _Mapping]] = ...) -> None: ...

class FramePart(_message.Message):
    __slots__ = ("header", "data", "last")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    header: FrameHeader
    data: bytes
    last: bool
    def __init__(self, header: _Optional[_Union[FrameHeader, _Mapping]] = ..., data: _Optional[bytes] = ..., last: _Optional[bool] = ...) -> None: ...

class FrameHeader(_message.Message):
    __slots__ = ("route", "epoch", "hop", "session", "step", "position", "token_ids", "tensors", "bare", "sweep", "sweep_size", "timings", "end_hop", "deadline_seconds")
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    HOP_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    BARE_FIELD_NUMBER: _ClassVar[int]
    SWEEP_FIELD_NUMBER: _ClassVar[int]
    SWEEP_SIZE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    END_HOP_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    route: str
    epoch: int
    hop: int
    session: str
    step: int
    position: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    tensors: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    bare: bool
    sweep: int
    sweep_size: int
    timings: _containers.RepeatedCompositeFieldContainer[HopTiming]
    end_hop: int
    deadline_seconds: float
    def __init__(self, route: _Optional[str] = ..., epoch: _Optional[int] = ..., hop: _Optional[int] = ..., session: _Optional[str] = ..., step: _Optional[int] = ..., position: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., tensors: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., bare: _Optional[bool] = ..., sweep: _Optional[int] = ..., sweep_size: _Optional[int] = ..., timings: _Optional[_Iterable[_Union[HopTiming, _Mapping]]] = ..., end_hop: _Optional[int] = ..., deadline_seconds: _Optional[float] = ...) -> None: ...

class HopTiming(_message.Message):
    __slots__ = ("waited_seconds", "computed_seconds")
    WAITED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    waited_seconds: float
    computed_seconds: float
    def __init__(self, waited_seconds: _Optional[float] = ..., computed_seconds: _Optional[float] = ...) -> None: ...

class TensorSpec(_message.Message):
    __slots__ = ("dtype", "shape")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    dtype: DType
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, dtype: _Optional[_Union[DType, str]] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class LogitsPart(_message.Message):
    __slots__ = ("route", "epoch", "session", "step", "num_scores", "data", "last", "timings")
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    NUM_SCORES_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    route: str
    epoch: int
    session: str
    step: int
    num_scores: int
    data: bytes
    last: bool
    timings: _containers.RepeatedCompositeFieldContainer[HopTiming]
    def __init__(self, route: _Optional[str] = ..., epoch: _Optional[int] = ..., session: _Optional[str] = ..., step: _Optional[int] = ..., num_scores: _Optional[int] = ..., data: _Optional[bytes] = ..., last: _Optional[bool] = ..., timings: _Optional[_Iterable[_Union[HopTiming, _Mapping]]] = ...) -> None: ...

class FrameFailure(_message.Message):
    __slots__ = ("route", "epoch", "session", "step", "worker", "problem", "lost_hop")
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    LOST_HOP_FIELD_NUMBER: _ClassVar[int]
    route: str
    epoch: int
    session: str
    step: int
    worker: str
    problem: Problem
    lost_hop: int
    def __init__(self, route: _Optional[str] = ..., epoch: _Optional[int] = ..., session: _Optional[str] = ..., step: _Optional[int] = ..., worker: _Optional[str] = ..., problem: _Optional[_Union[Problem, _Mapping]] = ..., lost_hop: _Optional[int] = ...) -> None: ...

class RemoveRequest(_message.Message):
    __slots__ = ("body", "signature")
    BODY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    body: bytes
    signature: bytes
    def __init__(self, body: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class RemoveResponse(_message.Message):
    __slots__ = ("number",)
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    number: int
    def __init__(self, number: _Optional[int] = ...) -> None: ...

class BeginRenewalRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class BeginRenewalResponse(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: bytes
    def __init__(self, request: _Optional[bytes] = ...) -> None: ...

class FinishRenewalRequest(_message.Message):
    __slots__ = ("certificate",)
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    certificate: bytes
    def __init__(self, certificate: _Optional[bytes] = ...) -> None: ...

class FinishRenewalResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
