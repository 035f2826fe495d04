"""Hosts for tests of a mesh: network namespaces of Linux, joined by a bridge, each with a memory limit if wanted.

Everything lives in namespaces of its own, the bridge too, so nothing of this machine is touched or reached.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import pytest

from tests.mesh.memory_caps import MemoryCap, launched
from tests.mesh.waiting import wait_until

ROOT = Path(__file__).parents[2]
LINK = "eth0"  # of every host
MOST_HOSTS = 200
DONE_SECONDS = 20.0


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True, timeout=DONE_SECONDS)
    return done.stdout


class Host:
    """A machine of its own as far as the network is concerned. The disk is everybody's: give commands folders of their own."""

    def __init__(self, network: "Network", number: int) -> None:
        self.name = "coordinator" if number == 0 else f"host{number}"
        self.address = network.address(number)
        self._network = network
        self._namespace = f"{network.name}-{number}"
        self._port = f"port{number}"
        self._processes: list[subprocess.Popen[str]] = []
        self._caps: list[MemoryCap] = []
        _ip("netns", "add", self._namespace)

    def connect(self) -> None:
        """Plug the host in and give it its addresses."""
        switch = self._network.switch
        # Without this an IPv6 address cannot be used in its first second or two.
        self.run(["sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad || true"])
        _ip("link", "add", LINK, "netns", self._namespace, "type", "veth", "peer", "name", self._port, "netns", switch)
        _ip("-n", switch, "link", "set", self._port, "master", "bridge", "up")
        _ip("-n", self._namespace, "link", "set", "lo", "up")
        _ip("-n", self._namespace, "addr", "add", f"{self.address}/24", "dev", LINK)
        _ip("-n", self._namespace, "link", "set", LINK, "up")
        _ip("-n", self._namespace, "route", "add", "224.0.0.0/4", "dev", LINK)

    def popen(
        self,
        command: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        memory_bytes: int | None = None,
        stdin: int | IO[Any] | None = subprocess.DEVNULL,
        stdout: int | IO[Any] | None = None,
        stderr: int | IO[Any] | None = None,
    ) -> "subprocess.Popen[str]":
        """Start a command on this host; its process id is the command's own. `env` comes on top of this process's.

        With `memory_bytes` all it takes, page cache included, stays below. What still runs when the network ends is killed.
        """
        # Unlike `ip netns exec` this leaves /sys alone, where memory limits are read.
        entering = ["nsenter", f"--net=/run/netns/{self._namespace}", "--"]
        cap = None if memory_bytes is None else MemoryCap(f"{self._namespace}-{len(self._caps)}", memory_bytes)
        if cap is not None:
            self._caps.append(cap)
        process = subprocess.Popen(
            launched([*entering, *map(str, command)], cap),
            env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
            stdin=stdin, stdout=stdout, stderr=stderr, text=True, cwd=ROOT,
        )  # fmt: skip
        self._processes.append(process)
        return process

    def python(self, *arguments: str, **options: Any) -> "subprocess.Popen[str]":
        """Start this interpreter on this host."""
        return self.popen([sys.executable, *arguments], **options)

    def run(self, command: Sequence[str | Path], **options: Any) -> str:
        """Run a command to its end and return what it wrote; raises where it fails or takes long."""
        process = self.popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
        written = process.communicate(timeout=DONE_SECONDS)[0]
        assert process.returncode == 0, f"{command} on {self.name}: {written}"
        return written

    def down(self) -> None:
        """Pull the cable."""
        _ip("-n", self._network.switch, "link", "set", self._port, "down")

    def up(self) -> None:
        """Plug it in again."""
        _ip("-n", self._network.switch, "link", "set", self._port, "up")

    def move(self) -> str:
        """Give the host another address, as another lease would, and return it."""
        before, self.address = self.address, self._network.new_address()
        _ip("-n", self._namespace, "addr", "del", f"{before}/24", "dev", LINK)
        _ip("-n", self._namespace, "addr", "add", f"{self.address}/24", "dev", LINK)
        _ip("-n", self._namespace, "route", "replace", "224.0.0.0/4", "dev", LINK)
        return self.address

    def remove(self) -> None:
        """End everything here, and the host itself."""
        with ExitStack() as stack:
            for cap in self._caps:
                stack.callback(cap.remove)
            stack.callback(_ip, "netns", "del", self._namespace)
            stack.callback(self._kill)

    def _kill(self) -> None:
        for process in self._processes:
            with suppress(ProcessLookupError):
                process.kill()
            process.wait(DONE_SECONDS)
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with suppress(OSError):
                        stream.close()
        wait_until(self._kill_children, DONE_SECONDS)

    def _kill_children(self) -> bool:
        children = _ip("netns", "pids", self._namespace).split()
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
        return not children


class Network:
    """A coordinator and `num_hosts` others on one switch, while it is entered."""

    def __init__(self, num_hosts: int) -> None:
        assert 0 <= num_hosts < MOST_HOSTS
        self.name = f"lm{secrets.token_hex(3)}"
        self.switch = f"{self.name}-switch"
        self.coordinator: Host
        self.hosts: list[Host] = []
        self._subnet = secrets.randbelow(256)
        self._num_hosts = num_hosts
        self._last = num_hosts
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            _ip("netns", "add", self.switch)
            stack.callback(_ip, "netns", "del", self.switch)
            _ip("-n", self.switch, "link", "add", "bridge", "type", "bridge", "mcast_snooping", "0")
            _ip("-n", self.switch, "link", "set", "bridge", "up")
            every = [self._add(stack, number) for number in range(self._num_hosts + 1)]
            self.coordinator, *self.hosts = every
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._stack.close()

    def address(self, number: int) -> str:
        """The address of the host with this number."""
        return f"10.77.{self._subnet}.{10 + number}"

    def new_address(self) -> str:
        """An address that no host had before."""
        self._last += 1
        return self.address(self._last)

    def _add(self, stack: ExitStack, number: int) -> Host:
        host = Host(self, number)
        stack.callback(host.remove)
        host.connect()
        return host


@contextmanager
def network(num_hosts: int) -> Iterator[Network]:
    """A `Network`, or a skipped test where there can be none."""
    if reason := why_no_namespaces():
        pytest.skip(reason)
    with Network(num_hosts) as made:
        yield made


@cache
def why_no_namespaces() -> str | None:
    """Why this machine cannot play several hosts; None where it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "hosts are network namespaces, which need root on Linux"
    if missing := [tool for tool in ("ip", "nsenter") if shutil.which(tool) is None]:
        return f"hosts need {' and '.join(missing)}"
    try:
        with Network(0):
            return None
    except (subprocess.CalledProcessError, OSError) as error:
        return f"no network namespaces with veth and bridge here: {getattr(error, 'stderr', None) or error}"


requires_namespaces = pytest.mark.skipif(why_no_namespaces() is not None, reason=why_no_namespaces() or "")
