import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermesh.shared.announcement import MOST_ADDRESSES, SERVICE_TYPE, Announcement, is_reachable, read_announcement

DEN = Announcement("a1b2", "den-pc", 1, 50700, ("192.168.1.7", "2001:db8::1", "fe80::1%eth0"))


def test_an_announcement_comes_back_as_it_was() -> None:
    assert read_announcement(DEN.instance, dict(DEN.properties), DEN.port, DEN.addresses) == DEN
    assert DEN.instance == f"a1b2.{SERVICE_TYPE}"


def test_workers_of_one_name_have_names_of_their_own() -> None:
    other = Announcement("c3", "den-pc", 1, 50700)
    assert other.instance != DEN.instance
    assert other.server != DEN.server


@pytest.mark.parametrize(
    "change",
    [
        {"worker_id": ""}, {"worker_id": "x" * 49}, {"worker_id": "a.b"}, {"worker_id": "a\n"}, {"worker_id": "é"},
        {"name": ""}, {"name": "x" * 64}, {"name": "天" * 63 + "天"}, {"name": "\x1b[2J"}, {"name": "\u202eevil"},
        {"name": " den"},
        {"name": "🙂" * 60}, {"name": "\ud800"}, {"version": 0}, {"version": -1}, {"version": 65536}, {"port": 0},
        {"port": 65536},
        {"addresses": ("nowhere",)}, {"addresses": ("224.0.0.1",)}, {"addresses": ("0.0.0.0",)}, {"addresses": ("::",)},
        {"addresses": ("fe80::1",)}, {"addresses": ("255.255.255.255",)}, {"addresses": ("10.0.0.1",) * (MOST_ADDRESSES + 1)},
    ],
    ids=str,
)  # fmt: skip
def test_what_no_worker_would_say_is_refused(change: dict[str, object]) -> None:
    values: dict[str, object] = {"worker_id": "a1", "name": "den", "version": 1, "port": 1, "addresses": ()}
    with pytest.raises(ValueError):
        Announcement(**{**values, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {b"id": None}, {b"id": b"other"}, {b"id": b"\xff"}, {b"name": None}, {b"name": b"\xff\xfe"}, {b"name": b"a\x00b"},
        {b"version": b""}, {b"version": b"1.5"}, {b"version": b"99999"}, {b"version": b"999999999"}, {b"version": "٣".encode()},
        {b"more": b"x" * 1024},
    ],
    ids=str,
)  # fmt: skip
def test_odd_properties_are_refused(change: dict[bytes, bytes | None]) -> None:
    with pytest.raises(ValueError):
        read_announcement(DEN.instance, {**DEN.properties, **change}, 1, [])


@pytest.mark.parametrize("instance", ["", "a1b2", f"x.{SERVICE_TYPE}", "a1b2._http._tcp.local."])
def test_a_service_speaks_for_itself_only(instance: str) -> None:
    with pytest.raises(ValueError, match="speaks for"):
        read_announcement(instance, dict(DEN.properties), 1, [])


def test_addresses_that_lead_nowhere_are_left_out() -> None:
    given_addresses = ["0.0.0.0", "fe80::1", "10.0.0.1", "ff02::fb", "x", *(f"10.0.1.{number}" for number in range(99))]
    read = read_announcement(DEN.instance, dict(DEN.properties), 1, given_addresses)
    assert read.addresses[:2] == ("10.0.0.1", "10.0.1.0")
    assert len(read.addresses) == MOST_ADDRESSES


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "169.254.3.4", "10.0.0.1", "fe80::1%2", "fd00::1"])
def test_addresses_of_machines_are_reachable(address: str) -> None:
    assert is_reachable(address)


@given(
    st.text(max_size=80),
    st.dictionaries(st.sampled_from([b"id", b"name", b"version", b""]), st.none() | st.binary(max_size=300)),
    st.none() | st.integers(),
    st.lists(st.text(max_size=50), max_size=30),
)
def test_whatever_is_announced_is_read_or_refused(
    instance: str, properties: dict[bytes, bytes | None], port: int | None, addresses: list[str]
) -> None:
    worker_id = properties.get(b"id") or b""
    for each in (instance, f"{worker_id.decode('latin-1')}.{SERVICE_TYPE}"):
        try:
            announcement = read_announcement(each, properties, port, addresses)
        except ValueError:
            continue
        assert read_announcement(each, dict(announcement.properties), port, announcement.addresses) == announcement
