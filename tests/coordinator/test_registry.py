import asyncio
from typing import ClassVar

import pytest

from layermesh.coordinator import registry as registry_module
from layermesh.coordinator.event_loop import EventLoop
from layermesh.coordinator.planning.machines import Link
from layermesh.coordinator.registry import Peer, Registry
from layermesh.protos import mesh_pb2 as pb
from layermesh.shared.announcement import Announcement
from layermesh.shared.errors import MeshError


class FakeClient:
    """Answers as `there` says for its address; None for nobody."""

    there: ClassVar[dict[str, pb.DescribeResponse | None]] = {}

    node = member = None

    def __init__(self, address, *_):
        self.address = address
        self.name = address
        self.worker_id = ""
        self.is_closed = False

    async def describe(self):
        described = self.there.get(self.address)
        if described is None:
            raise MeshError(f"worker {self.name} at {self.address} does not answer.")
        self.name = described.name
        self.worker_id = described.worker_id
        return described

    async def measure_link(self):
        return Link(1e-3, 1e8)

    async def close(self):
        self.is_closed = True


class FakeBrowser:
    announced: tuple[Announcement, ...] = ()
    problem = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def found(self):
        return self.announced

    def wait(self, _seconds, _enough):
        return self.announced


@pytest.fixture(autouse=True)
def there(monkeypatch):
    monkeypatch.setattr(registry_module, "WorkerClient", FakeClient)
    monkeypatch.setattr(registry_module, "Browser", FakeBrowser)
    monkeypatch.setattr(FakeBrowser, "announced", ())
    monkeypatch.setattr(FakeBrowser, "problem", None)
    monkeypatch.setattr(FakeClient, "there", {})
    return FakeClient.there


def describe(name, worker_id="1" * 32, addresses=()):
    profile = pb.Profile(device_bytes=1 << 30, disk_bytes_per_second=1e9, weight_bytes_per_second={"float32": 1e9})
    return pb.DescribeResponse(version=1, worker_id=worker_id, name=name, addresses=addresses, profile=profile)


def announce(*announcements):
    FakeBrowser.announced = announcements


def peer(address, *addresses):
    client = FakeClient(address)
    return Peer(client, describe("attic", addresses=addresses), Link(1e-3, 1e8))


@pytest.mark.parametrize(
    ("address", "told", "others", "expected"),
    [
        ("192.168.1.7:5", ["10.0.0.1:5"], ["192.168.1.8:5"], "192.168.1.7:5"),
        ("127.0.0.1:5", ["192.168.1.7:5"], ["127.0.0.1:6"], "127.0.0.1:5"),
        ("127.0.0.1:5", ["127.0.0.1:5", "192.168.1.7:5"], ["127.0.0.1:5", "192.168.1.8:5"], "192.168.1.7:5"),
        ("[::1]:5", ["[fd00::7]:5"], ["192.168.1.8:5"], "[fd00::7]:5"),
        ("[fe80::7%eth0]:5", ["[fe80::7%wlan0]:5", "192.168.1.7:5"], ["192.168.1.8:5"], "192.168.1.7:5"),
        ("127.0.0.1:5", [], ["192.168.1.8:5"], "127.0.0.1:5"),
    ],
    ids=["as it was found", "all here", "one elsewhere", "IPv6", "on one link", "nothing better is known"],
)
def test_others_reach_a_worker_by_a_way_that_they_have_too(address, told, others, expected):
    assert peer(address, *told).address_for([peer(other) for other in others]) == expected


def test_workers_are_found_by_name_and_by_announcement_once_each(there):
    there |= {"10.0.0.1:5": describe("attic", "a"), "10.0.0.2:5": describe("den", "d"), "10.0.0.3:5": describe("hall", "h")}
    announce(Announcement("d", "den", 1, 5, ("10.0.0.9", "10.0.0.2")), Announcement("a", "attic", 1, 5, ("10.0.0.1",)))
    with Registry(["10.0.0.3:5", "10.0.0.1:5"]) as registry:
        assert [(peer.name, peer.client.address) for peer in registry.find()] == [
            ("attic", "10.0.0.1:5"),
            ("den", "10.0.0.2:5"),
            ("hall", "10.0.0.3:5"),
        ]
        assert registry.notices == ()


def test_an_address_that_holds_on_one_link_is_taken_only_where_there_is_no_other(there):
    there |= {"[fe80::1%eth0]:5": describe("attic"), "10.0.0.1:5": describe("attic")}
    announce(Announcement("a", "attic", 1, 5, ("fe80::1%eth0", "10.0.0.1")))
    with Registry() as registry:
        assert [peer.client.address for peer in registry.find()] == ["10.0.0.1:5"]
        there["10.0.0.1:5"] = None
        assert [peer.client.address for peer in registry.find()] == ["[fe80::1%eth0]:5"]


def test_a_named_worker_that_never_answered_is_an_error_and_an_announced_one_a_notice(there):
    announce(Announcement("a", "attic", 1, 5, ("10.0.0.1",)))
    with Registry() as registry:
        assert registry.find() == []
        assert "10.0.0.1:5 does not answer" in registry.notices[0]
    with Registry(["10.0.0.2:5"]) as registry, pytest.raises(MeshError, match=r"10\.0\.0\.2:5 does not answer"):
        registry.find()


def test_a_named_worker_that_went_away_is_a_notice_until_it_is_back(there):
    there["10.0.0.1:5"] = describe("attic")
    with Registry(["10.0.0.1:5"], discover=False) as registry:
        assert len(registry.find()) == 1
        there["10.0.0.1:5"] = None
        assert registry.find() == []
        assert "worker attic at 10.0.0.1:5 does not answer" in registry.notices[0]
        there["10.0.0.1:5"] = describe("attic")
        assert len(registry.find()) == 1


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["den", "hall"], ["den", "hall"]),
        (["den", "den", "hall"], ["den (000000)", "den (111111)", "hall"]),
        (["local", "hall"], ["hall", "local (000000)"]),
    ],
    ids=["different", "two alike", "as the own machine"],
)
def test_names_are_distinct_each_time(there, names, expected):
    there |= {f"10.0.0.{number}:5": describe(name, f"{number}" * 32) for number, name in enumerate(names)}
    with Registry([f"10.0.0.{number}:5" for number in range(len(names))], discover=False) as registry:
        for _ in range(2):
            assert sorted(peer.name for peer in registry.find()) == expected


def test_a_survey_shows_those_that_do_not_answer_too(there):
    there["10.0.0.1:5"] = describe("attic", "a")
    with Registry(["10.0.0.1:5", "10.0.0.2:5"], discover=False) as registry:
        infos = registry.survey()
    assert [(info.name, info.problem is None) for info in infos] == [("10.0.0.2:5", False), ("attic", True)]


def test_a_closed_loop_refuses_work():
    loop = EventLoop()
    loop.close()
    with pytest.raises(RuntimeError, match="closed"):
        loop.run(asyncio.sleep(0))
