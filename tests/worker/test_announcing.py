import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from tests.mesh.hosts import Host, Network, requires_namespaces
from tests.mesh.waiting import wait_until

pytestmark = requires_namespaces

Seen = list[dict[str, object]]
SEED = 20


class Script:
    """A script that runs on a host until it is told to end, and the lines it wrote."""

    def __init__(self, host: Host, name: str, *arguments: str) -> None:
        self.process = host.python(
            "-W", "error", "-m", f"tests.mesh.{name}_script", *arguments,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.lines: list[str] = []
        self.errors: list[str] = []
        for stream, kept in ((self.process.stdout, self.lines), (self.process.stderr, self.errors)):
            threading.Thread(target=self._read, args=[stream, kept], daemon=True).start()

    @staticmethod
    def _read(stream: object, kept: list[str]) -> None:
        with suppress(ValueError):  # closed meanwhile
            kept.extend(stream)  # type: ignore[call-overload]

    def end(self) -> None:
        """Tell it to end, and see that it does so well."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.close()
        assert self.process.wait(10) == 0, self.errors


class Announced(Script):
    def __init__(self, host: Host, worker_id: str, name: str, port: int = 50700) -> None:
        super().__init__(host, "announce", worker_id, name, str(port))

    @property
    def began(self) -> float:
        wait_until(lambda: bool(self.lines))
        return float(self.lines[0])


class Browsed(Script):
    def __init__(self, host: Host) -> None:
        super().__init__(host, "browse")

    @property
    def seen(self) -> Seen:
        return json.loads(self.lines[-1])[1] if self.lines else []

    @property
    def problem(self) -> str | None:
        return json.loads(self.lines[-1])[2] if self.lines else None

    def when(self, holds: Callable[[Seen], bool], seconds: float = 10.0) -> float:
        """Wait until what is found is so, and return since when it was."""
        wait_until(lambda: any(holds(json.loads(line)[1]) for line in tuple(self.lines)) or self._ended, seconds)
        assert not self._ended, self.errors
        return next(seen[0] for seen in map(json.loads, self.lines) if holds(seen[1]))

    @property
    def _ended(self) -> bool:
        return self.process.poll() is not None


def ids(seen: Seen) -> set[object]:
    return {each["worker_id"] for each in seen}


def addresses(seen: Seen, worker_id: str) -> list[str]:
    return next((each["addresses"] for each in seen if each["worker_id"] == worker_id), [])  # type: ignore[misc]


@pytest.fixture
def network() -> Iterator[Network]:
    with Network(2) as made:
        yield made


@pytest.fixture
def browser(network: Network) -> Browsed:
    browsing = Browsed(network.coordinator)
    wait_until(lambda: bool(browsing.lines) or browsing._ended)
    return browsing


def test_a_worker_is_found_at_once_and_gone_after_its_goodbye(network: Network, browser: Browsed) -> None:
    announced = Announced(network.hosts[0], "w1", "den-pc", 50701)
    found = browser.when(lambda seen: ids(seen) == {"w1"})
    assert found - announced.began <= 1.5
    (worker,) = browser.seen
    assert (worker["name"], worker["version"], worker["port"]) == ("den-pc", 1, 50701)
    wait_until(lambda: len(addresses(browser.seen, "w1")) == 2)
    first, second = addresses(browser.seen, "w1")
    assert first == network.hosts[0].address
    assert second.startswith("fe80::")
    assert second.endswith("%eth0")
    announced.end()
    wait_until(lambda: browser.seen == [], 2.0)
    assert announced.errors == []
    browser.end()


def test_workers_that_were_there_before_are_found(network: Network) -> None:
    announced = [Announced(host, f"w{number}", "laptop") for number, host in enumerate(network.hosts)]
    assert all(each.began for each in announced)
    browser = Browsed(network.coordinator)
    browser.when(lambda seen: ids(seen) == {"w0", "w1"}, 5.0)  # of one name, too
    assert [each["name"] for each in browser.seen] == ["laptop", "laptop"]
    browser.end()


def test_a_worker_that_gets_another_address_is_followed(network: Network, browser: Browsed) -> None:
    host = network.hosts[0]
    Announced(host, "w1", "den-pc")
    browser.when(lambda seen: host.address in addresses(seen, "w1"))
    before, after = host.address, host.move()
    wait_until(lambda: after in addresses(browser.seen, "w1"))
    wait_until(lambda: before not in addresses(browser.seen, "w1"))
    assert addresses(browser.seen, "w1")[0] == after


def test_a_network_that_comes_later_is_used(network: Network) -> None:
    host = network.hosts[0]
    host.down()
    network.coordinator.down()
    announced, browser = Announced(host, "w1", "den-pc"), Browsed(network.coordinator)
    wait_until(lambda: browser.problem is not None)
    assert "on no network" in str(browser.problem)
    assert "--worker HOST:PORT" in str(browser.problem)
    wait_until(lambda: len(announced.errors) == 1)
    assert announced.errors[0].startswith("WARNING Nobody finds this worker by itself: this machine is on no network")
    host.up()
    network.coordinator.up()
    browser.when(lambda seen: ids(seen) == {"w1"})
    wait_until(lambda: browser.problem is None)  # an answer may be there before the last of the sockets is
    announced.end()
    assert len(announced.errors) == 1


def test_garbage_is_survived(network: Network, browser: Browsed) -> None:
    host, rogue = network.hosts
    print("seed", SEED)
    Announced(host, "w1", "den-pc")
    browser.when(lambda seen: "w1" in ids(seen))
    for seed in range(SEED, SEED + 3):
        rogue.run([sys.executable, "-m", "tests.mesh.garbage_script", str(seed), rogue.address])
    late = Announced(rogue, "w2", "attic")
    browser.when(lambda seen: {"w1", "w2"} <= ids(seen))
    late.end()
    wait_until(lambda: "w2" not in ids(browser.seen))
    assert "w1" in ids(browser.seen)
    browser.end()
    assert browser.errors == []
