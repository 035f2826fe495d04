import pytest
import torch

from layermesh.shared.model.scaled_values import apply_scale, fit_grid


def spread(scale: torch.Tensor, weights: tuple[int, ...], block: tuple[int, ...]) -> torch.Tensor:
    """The scale of each weight, looked up one by one."""
    indices = [
        index // side for index, side in zip(torch.meshgrid(*map(torch.arange, weights), indexing="ij"), block, strict=True)
    ]
    return scale[tuple(indices)]


@pytest.mark.parametrize(
    ("weights", "block"),
    [
        ((576, 7), (128, 128)),  # the rows of DeepSeek's kv_a_proj_with_mqa
        ((256, 384), (128, 128)),
        ((10, 11), (3, 4)),
        ((10, 11), (20, 3)),
        ((10, 11), (4, 50)),
        ((10, 64), (1, 32)),
        ((10, 11), (1, 1)),
        ((3, 10, 11), (3, 4)),
        ((3, 10, 11), (16, 16)),
    ],
    ids=str,
)
def test_each_weight_has_the_scale_of_its_block(weights, block):
    shape = (*weights[:-2], -(-weights[-2] // block[0]), -(-weights[-1] // block[1]))
    scale, zero = torch.rand(shape), torch.randint(-3, 4, shape).float()
    values = torch.randn(weights)
    reach = (*(1 for _ in weights[:-2]), *block)
    expected = (values - spread(zero, weights, reach)) * spread(scale, weights, reach)
    grid = fit_grid(weights, shape, block)
    assert grid is not None
    assert torch.equal(apply_scale(values.clone(), scale, grid, zero), expected)


@pytest.mark.parametrize(
    ("weights", "shape", "by_output", "broadcast"),
    [
        ((4, 6), (), False, (1, 1)),
        ((4, 6), (1,), False, (1, 1)),
        ((4, 6), (1, 1), False, (1, 1)),
        ((4, 6), (4,), False, (4, 1)),
        ((4, 6), (4, 1), False, (4, 1)),
        ((2, 4, 6), (2,), False, (2, 1, 1)),
        ((2, 4, 6), (2, 1, 1), False, (2, 1, 1)),
        ((2, 4, 6), (2, 1, 6), False, (2, 1, 6)),
        ((2, 4, 6), (2, 4, 1), False, (2, 4, 1)),
        ((2, 4, 6), (2, 6, 1), True, (2, 1, 6)),
        ((2, 4, 4), (2, 4, 1), True, (2, 1, 4)),
        ((5,), (1,), False, (1,)),
    ],
    ids=str,
)
def test_scales_without_blocks_are_for_the_tensor_its_rows_or_its_experts(weights, shape, by_output, broadcast):
    values, scale = torch.randn(weights), torch.rand(shape)
    grid = fit_grid(weights, shape, None, by_output=by_output)
    assert grid is not None
    assert torch.equal(apply_scale(values.clone(), scale, grid), values * scale.reshape(broadcast))


@pytest.mark.parametrize(
    ("weights", "shape", "block"),
    [
        ((256, 384), (2, 3), None),  # 128 or anything up to 255 rows each
        ((576, 7), (4, 1), (128, 128)),
        ((576, 7), (576, 1), (128, 128)),
        ((4, 6), (6,), None),
        ((4, 6), (1, 6), None),
        ((4, 6), (0,), None),
        ((4, 6), (4, 1, 1), None),
        ((2, 4, 6), (2, 2), None),
        ((2, 4, 6), (2, 6, 1), None),
        ((2, 4, 6), (4, 1), None),
        ((2, 256, 256), (2, 2), (128, 128)),
        ((2, 256, 256), (2,), (128, 128)),
        ((5,), (5,), None),
        ((5,), (5,), (1, 1)),
        ((2, 2, 2, 2), (2, 1, 1, 1), None),
    ],
    ids=str,
)
def test_other_shapes_do_not_fit(weights, shape, block):
    assert fit_grid(weights, shape, block) is None
