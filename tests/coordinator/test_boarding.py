import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermesh.coordinator.boarding import Boarding, saves_reading

BUDGET = 10
PROMPTS = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 5)), max_size=30)  # the room each takes, and for how long


def board_all(boarding: Boarding, rooms: list[int]) -> tuple[list[int], list[int]]:
    """Let board whoever may, for as long as the budget lasts; return them and those who were turned away."""
    boarded, turned_away = [], []
    while (index := boarding.candidate) is not None:
        if sum(rooms[other] for other in boarding.aboard) + rooms[index] <= BUDGET:
            boarding.board()
            boarded.append(index)
        elif boarding.aboard:
            boarding.wait()
        else:
            boarding.turn_away()
            turned_away.append(index)
    return boarded, turned_away


@given(PROMPTS, st.integers(1, 6))
def test_everybody_boards_once_in_turn_and_within_the_budget(prompts, max_sessions):
    rooms, stays = [room for room, _ in prompts], [stay for _, stay in prompts]
    boarding = Boarding(len(prompts), max_sessions)
    order, refused, left = [], [], []
    while not boarding.is_over:
        boarded, turned_away = board_all(boarding, rooms)
        order += boarded
        refused += turned_away
        taken = sum(rooms[index] for index in boarding.aboard)
        assert taken <= BUDGET
        assert len(boarding.aboard) <= max_sessions
        following = len(order) + len(refused)  # no place stays empty that the next one could have had
        assert following == len(prompts) or len(boarding.aboard) == max_sessions or taken + rooms[following] > BUDGET
        for index in list(boarding.aboard):
            stays[index] -= 1
            if stays[index] == 0:
                boarding.leave(index)
                left.append(index)
    assert order == [index for index, room in enumerate(rooms) if room <= BUDGET]
    assert refused == [index for index, room in enumerate(rooms) if room > BUDGET]
    assert sorted(left) == order


def test_whoever_finds_no_room_is_asked_again_when_somebody_left():
    boarding = Boarding(3, max_sessions=3)
    boarding.board()
    boarding.wait()
    assert (boarding.candidate, boarding.aboard) == (None, [0])
    boarding.leave(0)
    assert boarding.candidate == 1


def test_places_are_bounded_and_refilled():
    boarding = Boarding(3, max_sessions=2)
    boarding.board()
    boarding.board()
    assert boarding.candidate is None
    boarding.leave(0)
    assert boarding.candidate == 2


def test_nobody_waits_for_room_that_nobody_takes():
    with pytest.raises(ValueError, match="prompt 0 cannot wait"):
        Boarding(1, max_sessions=1).wait()
    with pytest.raises(ValueError, match="not 0"):
        Boarding(1, max_sessions=0)


def test_nothing_to_do_is_over_at_once():
    assert Boarding(0, max_sessions=1).is_over


@pytest.mark.parametrize(
    ("num_aboard", "now", "then", "saves"),
    [
        (1, 0, 0, True),
        (1, 0, 1, False),
        (1, 100, 100, True),
        (1, 100, 199, True),
        (1, 100, 200, False),
        (10, 1000, 1099, True),
        (10, 1000, 1100, False),
    ],
    ids=["all resident", "no longer resident", "free", "cheap", "as dear", "one of many", "one too many"],
)
def test_a_session_pays_where_each_token_reads_less(num_aboard, now, then, saves):
    assert saves_reading(num_aboard, now, then) is saves


@given(st.integers(1, 50), st.integers(1, 10**12), st.integers(0, 10**12))
def test_what_pays_is_what_lowers_the_bytes_of_a_token(num_aboard, now, more):
    assert saves_reading(num_aboard, now, now + more) == ((now + more) / (num_aboard + 1) < now / num_aboard)
