import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermesh.shared.spans import LayerSpan


@given(st.data(), st.integers(1, 200))
def test_division_covers_every_layer_once_in_order_longer_spans_first(data, num_layers):
    num_stages = data.draw(st.integers(1, num_layers))
    spans = LayerSpan.divide(num_layers, num_stages)
    assert [layer for span in spans for layer in span] == list(range(num_layers))
    lengths = [len(span) for span in spans]
    assert len(spans) == num_stages
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] - lengths[-1] <= 1


@pytest.mark.parametrize(("num_layers", "num_stages"), [(3, 4), (3, 0), (0, 1), (3, -1)])
def test_impossible_divisions_are_refused_with_their_numbers(num_layers, num_stages):
    with pytest.raises(ValueError, match=f"{num_layers} layers .* {num_stages} stages"):
        LayerSpan.divide(num_layers, num_stages)


@pytest.mark.parametrize(("start", "end"), [(3, 2), (-1, 2), (-1, -1)])
def test_spans_that_are_none_are_refused(start, end):
    with pytest.raises(ValueError, match=rf"\[{start}, {end}\)"):
        LayerSpan(start, end)


def test_a_span_is_half_open():
    span = LayerSpan(2, 5)
    assert (len(span), list(span), str(span)) == (3, [2, 3, 4], "[2, 5)")
    assert [layer in span for layer in (1, 2, 4, 5, "2")] == [False, True, True, False, False]


@pytest.mark.parametrize("bound", [0, 2])
def test_a_span_may_be_empty(bound):
    span = LayerSpan(bound, bound)
    assert (len(span), list(span), bound in span) == (0, [], False)
