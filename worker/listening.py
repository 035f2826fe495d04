"""Where a worker listens: encrypted on all networks once it is paired, within this machine only before."""

import errno
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

import grpc
import grpc.aio

from layermesh.shared.addresses import DEFAULT_PORT, format_address, is_loopback
from layermesh.shared.errors import AuthenticationError, LayermeshError, UsageError
from layermesh.shared.security.credentials import Credentials

_EVERYWHERE: Final = ("::", "0.0.0.0")  # the first with IPv4, the other where there is no IPv6  # noqa: S104  # nosec B104
_HERE: Final = ("127.0.0.1", "::1")


def listen(server: grpc.aio.Server, host: str | None, port: int | None, credentials: Callable[[], Credentials | None]) -> int:
    """Listen and return the port: at `host`, or wherever it may; at `port`, or the usual one, or any that is free.

    Raises UsageError for a port that cannot be had, AuthenticationError for a host off this machine before it is paired.
    """
    own = credentials()
    check_host(host, is_paired=own is not None)
    if own is not None:
        secrets = _secrets(own, credentials)
        return _bind(lambda where: server.add_secure_port(where, secrets), _EVERYWHERE if host is None else (host,), port)
    bound = _bind(server.add_insecure_port, _HERE[:1] if host is None else (host,), port)
    if host is None:
        with suppress(RuntimeError):  # a system without IPv6
            server.add_insecure_port(format_address(_HERE[1], bound))
    return bound


def check_host(host: str | None, *, is_paired: bool) -> None:
    """Raise AuthenticationError for a host off this machine, before a worker is paired."""
    if host is not None and not is_paired and not is_loopback(format_address(host, DEFAULT_PORT)):
        raise AuthenticationError(
            f"this worker is not paired, and would listen at {host} for everybody there. Say `layermesh invite` on the machine "
            "that coordinates and paste what it prints, or leave out --host: then it listens within this machine."
        )


def _secrets(own: Credentials, credentials: Callable[[], Credentials | None]) -> grpc.ServerCredentials:
    """Credentials that follow those that are kept: connections that exist go on, new ones are shown new certificates."""
    shown = own

    def renewed() -> Any:  # a configuration, or None where it is still the same
        nonlocal shown
        try:
            current = credentials()
        except LayermeshError:  # somebody is at the file: what was shown until now still holds
            return None
        if current is None or current == shown:
            return None
        shown = current
        return _configuration(current)

    return grpc.dynamic_ssl_server_credentials(_configuration(own), renewed, require_client_authentication=True)


def _configuration(own: Credentials) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(own.key_pem, own.certificate_pem)], own.authority_pem)


def _bind(add: Callable[[str], int], hosts: Sequence[str], port: int | None) -> int:
    ports = (port,) if port is not None else (DEFAULT_PORT, 0)
    problem = ""
    for number in ports:
        for name in hosts:
            try:
                if number == 0 or not _is_taken(name, number):
                    return add(format_address(name, number))
                problem = "another program uses it"
            except RuntimeError as error:
                problem = str(error)
    where = f"port {port}" if len(hosts) > 1 else format_address(hosts[0], port or DEFAULT_PORT)
    raise UsageError(f"cannot listen at {where}: {problem}. Stop what uses it, or say another --port (0 for any) or --host.")


def _is_taken(host: str, port: int) -> bool:
    """Whether somebody listens there: gRPC would listen beside them on systems that allow it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with suppress(OSError), socket.socket(family, socket.SOCK_STREAM) as probe:
        if os.name == "posix":  # ends of old connections do not count
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False
