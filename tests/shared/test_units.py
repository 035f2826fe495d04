import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from layermesh.shared.units import format_bytes, format_seconds, parse_bytes

SIZES = st.integers(1, 10**18) | st.integers(0, 17).map(lambda power: 10**power)


@given(SIZES)
@example(10**12 + 1)
@example(999_500)
def test_size_rounded_up_is_never_below_the_number(num_bytes):
    assert num_bytes <= parse_bytes(format_bytes(num_bytes, round_up=True)) <= num_bytes * 1.01 + 1


@given(SIZES)
def test_size_is_read_back_within_its_three_digits(num_bytes):
    assert parse_bytes(format_bytes(num_bytes)) == pytest.approx(num_bytes, rel=0.0051)


@given(SIZES)
def test_what_was_written_is_written_the_same_again(num_bytes):
    written = format_bytes(num_bytes)
    assert format_bytes(parse_bytes(written)) == written
    assert parse_bytes(format_bytes(parse_bytes(written), round_up=True)) == parse_bytes(written)


@given(st.integers(100, 99999), st.sampled_from(["MB", "GB", "TB"]))
def test_two_decimals_are_read_exactly(hundredths, unit):
    factor = {"MB": 10**4, "GB": 10**7, "TB": 10**10}[unit]
    assert parse_bytes(f"{hundredths // 100}.{hundredths % 100:02d}{unit}") == hundredths * factor


@pytest.mark.parametrize(
    ("written", "num_bytes"),
    [
        (64000000, 64000000), ("1", 1), ("64MB", 64 * 10**6), ("1.5GiB", 3 << 29), ("2g", 2 * 10**9), (" 3 kb ", 3000),
        ("0.5K", 500), ("2.01GB", 2_010_000_000), ("1TiB", 1 << 40), ("1024B", 1024),
    ],
    ids=str,
)  # fmt: skip
def test_sizes_as_people_write_them(written, num_bytes):
    assert parse_bytes(written) == num_bytes


@pytest.mark.parametrize("written", ["", "GB", "-1GB", "1e9", "1,5GB", "4 G B", "1PB", "0", "0.1B", "1iB", "nan", None, "1.GB"])
def test_what_is_no_size_is_refused_and_named(written):
    with pytest.raises(ValueError, match="memory"):
        parse_bytes(written)


@pytest.mark.parametrize(
    ("num_bytes", "written"),
    [
        (0, "0B"),
        (999, "999B"),
        (1000, "1.00kB"),
        (9994, "9.99kB"),
        (9995, "10.0kB"),
        (64 * 10**6, "64.0MB"),
        (5e15, "5000TB"),
    ],
)
def test_three_digits_are_written(num_bytes, written):
    assert format_bytes(num_bytes) == written


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.34, "340 ms"),
        (0.0012, "1.2 ms"),
        (2.14, "2.14 s"),
        (99.4, "99.4 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
    ],
)
def test_durations_as_people_say_them(seconds, said):
    assert format_seconds(seconds) == said
