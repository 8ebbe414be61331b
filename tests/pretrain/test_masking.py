"""Masks: a partition of the grid, whole blocks, one random stream per image, static shapes."""

import pytest
import torch

from pixio_robot.errors import BadInput
from pixio_robot.pretrain.masking import PatchMask, mask_shape


def streams(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


SETTINGS = [((16, 16), 0.75, 4), ((16, 16), 0.9, 4), ((8, 12), 0.5, 2), ((6, 9), 0.7, 3), ((7, 5), 0.6, 1)]


@pytest.mark.parametrize(("grid", "ratio", "block"), SETTINGS)
def test_every_patch_is_seen_or_hidden_and_never_both(grid: tuple[int, int], ratio: float, block: int) -> None:
    mask, shape = PatchMask.random(grid, ratio, block, streams(*range(5))), mask_shape(grid, ratio, block)
    both = torch.cat([mask.visible, mask.hidden], dim=1).sort(dim=1).values
    assert torch.equal(both, torch.arange(grid[0] * grid[1]).expand(5, -1))
    assert mask.visible.shape == (5, shape.visible)
    assert mask.ratio == pytest.approx(shape.ratio) and shape.ratio >= ratio - 1e-9


@pytest.mark.parametrize(("grid", "ratio", "block"), SETTINGS)
def test_a_block_is_wholly_hidden_or_wholly_visible(grid: tuple[int, int], ratio: float, block: int) -> None:
    hidden = PatchMask.random(grid, ratio, block, streams(*range(5))).is_hidden().view(5, *grid)
    blocks = hidden.unfold(1, block, block).unfold(2, block, block).flatten(3)
    assert torch.equal(blocks.any(-1), blocks.all(-1))


def test_the_reference_shows_64_of_256_patches_and_rounds_down() -> None:
    assert mask_shape((16, 16), 0.75, 4)[2:] == (16, 4) and mask_shape((16, 16), 0.75, 4).visible == 64
    assert mask_shape((16, 16), 0.9, 4).visible == 16 and mask_shape((16, 16), 0.9, 4).ratio == 0.9375
    assert mask_shape((10, 10), 0.8, 2).visible_blocks == 5  # 25 x (1 - 0.8) is 4.999... in floating point


def test_visible_patches_come_block_by_block_row_major_inside() -> None:
    mask = PatchMask.random((4, 4), 0.5, 2, streams(3))
    first = mask.visible[0, :4]
    assert torch.equal(first - first[0], torch.tensor([0, 1, 4, 5]))


def test_an_image_has_the_same_mask_in_any_batch() -> None:
    together = PatchMask.random((16, 16), 0.75, 4, streams(1, 2, 3))
    alone = PatchMask.random((16, 16), 0.75, 4, streams(2)[0])
    assert torch.equal(together.visible[1:2], alone.visible) and torch.equal(together.hidden[1:2], alone.hidden)
    assert not torch.equal(together.visible[0], together.visible[1])


def test_every_block_is_hidden_as_often() -> None:
    hidden = PatchMask.random((4, 4), 0.75, 1, streams(*range(2000))).is_hidden().float().mean(dim=0)
    assert (hidden - 0.75).abs().max() < 4 * (0.75 * 0.25 / 2000) ** 0.5


def test_none_hides_nothing() -> None:
    mask = PatchMask.none((3, 5), batch=2)
    assert mask.ratio == 0 and mask.hidden.shape == (2, 0) and not mask.is_hidden().any()


def test_blocks_that_do_not_tile_are_refused_with_the_nearest_that_do() -> None:
    with pytest.raises(BadInput, match=r"4x4 .* 14x14; the nearest that do: 2 or 7"):
        mask_shape((14, 14), 0.75, 4)
    with pytest.raises(BadInput, match="the nearest that do: 4"):
        mask_shape((8, 12), 0.75, 5)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 1.5])
def test_ratio_must_leave_visible_and_hidden_patches(ratio: float) -> None:
    with pytest.raises(BadInput, match="between 0 and 1"):
        mask_shape((16, 16), ratio, 4)


def test_a_tiny_ratio_hides_one_block_and_one_that_hides_all_is_refused() -> None:
    assert mask_shape((4, 4), 0.01, 2).visible_blocks == mask_shape((4, 4), 1e-12, 2).visible_blocks == 3
    with pytest.raises(BadInput, match=r"hides all 4 blocks .* at most 0.75"):
        mask_shape((4, 4), 0.99, 2)
