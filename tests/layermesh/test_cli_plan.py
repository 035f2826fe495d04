from layermesh.cli_plan import _describe, _rows
from layermesh.shared.residency import Residency
from tests.running import open_model


def test_a_plan_shows_where_each_block_lives(tiny):
    _, table = open_model(tiny("llama"))
    names = [block.name for block in table.layers]
    size = table.layers[0].loaded_bytes
    residency = Residency(table.stream, frozenset(names[:1]), 2, size, 0, frozenset(names[1:3]))
    rows = _rows(residency)
    assert [row.partition("   ")[0].split()[0] for row in rows] == ["layer", "layer", "layer", "head"]
    assert all(
        row.endswith(where) for row, where in zip(rows, ["stays", "stays on the host  × 2", "streams", "streams"], strict=True)
    )
    described = [_describe(block, residency) for block in residency.blocks]
    assert [(block["resident"], block["on_host"]) for block in described] == [
        (True, False), (False, True), (False, True), (False, False), (False, False),
    ]  # fmt: skip
