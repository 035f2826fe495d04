"""Connections of gRPC: all are opened with the same options, and go straight to the other end."""

import ast
import asyncio

import grpc.aio
import pytest

from layermesh.shared.channels import Channels
from layermesh.shared.grpc_options import CHANNEL_OPTIONS
from tests.test_imports import ROOT, SOURCES, called

NOWHERE = "http://127.0.0.1:9"  # nobody listens there
PROXIES = {
    **{name: {name: NOWHERE} for name in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy")},
    **{name: {name: NOWHERE} for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")},
    "all but others": {"http_proxy": NOWHERE, "no_proxy": "example.org"},
    "by address": {
        "GRPC_ADDRESS_HTTP_PROXY": "127.0.0.1:9",
        "GRPC_ADDRESS_HTTP_PROXY_ENABLED_ADDRESSES": "0.0.0.0/0,127.0.0.0/8",
    },
}


@pytest.mark.parametrize("environment", PROXIES.values(), ids=PROXIES)
def test_a_proxy_of_the_environment_is_not_asked(environment, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    async def connect() -> None:
        server = grpc.aio.server()
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with Channels().open(f"127.0.0.1:{port}") as channel:
                async with asyncio.timeout(10):
                    await channel.channel_ready()
        finally:
            await server.stop(0)

    asyncio.run(connect())


def test_channels_are_opened_in_one_place_and_with_the_same_options():
    opened = {}
    for name, path in SOURCES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and called(node).rpartition(".")[2] in ("insecure_channel", "secure_channel"):
                opened.setdefault(name, []).append(ast.unparse(node.args[-1]))
    assert {name: sorted(options) for name, options in opened.items()} == {"shared/channels.py": ["CHANNEL_OPTIONS", "options"]}
    assert "options = [*CHANNEL_OPTIONS, " in (ROOT / "shared/channels.py").read_text()
    assert dict(CHANNEL_OPTIONS)["grpc.enable_http_proxy"] == 0
