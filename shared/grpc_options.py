"""gRPC as a mesh needs it: connections that notice within seconds when the other end is gone."""

from typing import Final

MAX_MESSAGE_BYTES: Final = 4 << 20
HANDSHAKE_MILLISECONDS: Final = 5000
_ONLY_PLAIN: Final = 1  # of the algorithms that a message may be compressed with: none, so no small message becomes a large one

# Workers are on this machine's own networks, so the proxies that the environment names for the internet are not for them.
NO_PROXY: Final[list[tuple[str, int | str]]] = [
    ("grpc.enable_http_proxy", 0),  # http_proxy, https_proxy, grpc_proxy
    ("grpc.address_http_proxy_enabled_addresses", ""),  # GRPC_ADDRESS_HTTP_PROXY
]

CHANNEL_OPTIONS: Final[list[tuple[str, int | str]]] = [
    *NO_PROXY,
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.compression_enabled_algorithms_bitset", _ONLY_PLAIN),
    ("grpc.keepalive_time_ms", 5000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.http2.ping_timeout_ms", 2000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.min_reconnect_backoff_ms", 3000),  # also how long a try may take: a lost packet must not cost twenty seconds
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 3000),
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),  # two clients in one process do not share a connection that one of them breaks
]

SERVER_OPTIONS: Final[list[tuple[str, int]]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.compression_enabled_algorithms_bitset", _ONLY_PLAIN),
    ("grpc.server_handshake_timeout_ms", HANDSHAKE_MILLISECONDS),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 5000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.http2.ping_timeout_ms", 2000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.max_concurrent_streams", 128),
    ("grpc.so_reuseport", 0),
]
