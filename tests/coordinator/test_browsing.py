import threading

from layermesh.coordinator.browsing import _MOST_NAMES, MOST_PEERS, Browser
from layermesh.shared.announcement import Announcement


def announcement(number: int) -> Announcement:
    return Announcement(f"w{number}", "laptop", 1, 50700, ("10.0.0.1",))


def test_a_crowd_is_bounded() -> None:
    browser = Browser()
    for number in range(2 * _MOST_NAMES):
        browser._keep(f"w{number}", announcement(number))
    assert len(browser._names) == _MOST_NAMES
    assert browser.found() == tuple(map(announcement, range(MOST_PEERS)))


def test_names_with_nobody_behind_them_make_room() -> None:
    browser = Browser()
    for number in range(2 * _MOST_NAMES):
        assert browser._keep(f"nobody{number}", None)
    assert browser._keep("w1", announcement(1))
    assert len(browser._names) == _MOST_NAMES
    assert browser.found() == (announcement(1),)


def test_one_that_leaves_is_forgotten() -> None:
    browser = Browser()
    browser._keep("w1", announcement(1))
    browser._forget("w1")
    browser._forget("never there")
    assert browser.found() == ()


def test_waiting_ends_with_enough_with_time_or_with_a_problem() -> None:
    browser = Browser()
    assert browser.wait(0.01, lambda found: len(found) > 0) == ()
    waiting = threading.Thread(target=browser.wait, args=[20, lambda found: len(found) > 1])
    waiting.start()
    browser._keep("w1", announcement(1))
    browser._keep("w2", announcement(2))
    waiting.join(10)
    assert not waiting.is_alive()
    browser._report("this machine is on no network")
    assert browser.wait(20, lambda _found: False) == (announcement(1), announcement(2))
    assert browser.problem == "workers cannot be looked for: this machine is on no network. Name them with --worker HOST:PORT."
    browser._report(None)
    assert browser.problem is None
