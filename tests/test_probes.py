"""Laws of the probes: what they must find, must not find, and must not be moved by."""

import pytest
import torch

from pixio_robot.dense_heads import DPTHead, LinearHead, dpt_blocks, metric_depth, token_map
from pixio_robot.encoder import PixioEncoder
from pixio_robot.errors import BadInput, UnknownName
from pixio_robot.pretrain.probes.dense import depth_errors, silog
from pixio_robot.pretrain.probes.linear import linear_probe


def test_a_linear_probe_separates_what_is_separable_and_guesses_on_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 4
    noise = torch.randn(400, 16, generator=generator)
    signal = noise.clone()
    signal[torch.arange(400), labels] += 8
    for features, low, high in ((signal, 0.98, 1.0), (noise, 0.1, 0.4)):
        probe = linear_probe(features[:200], labels[:200], features[200:], seed=0)
        assert low <= float((probe.predictions == labels[200:]).float().mean()) <= high


@pytest.mark.parametrize("grid", [(4, 4), (3, 5)])
@pytest.mark.parametrize("kind", [LinearHead, DPTHead])
def test_heads_overfit_a_few_depth_maps_on_any_grid(kind: type, grid: tuple[int, int]) -> None:
    torch.manual_seed(0)
    encoder = PixioEncoder(dim=32, depth=4, heads=2, patch=8, image_size=32).eval()
    size = (8 * grid[0], 8 * grid[1])
    with torch.no_grad():
        tokens = encoder(torch.randn(4, 3, *size), blocks=dpt_blocks(4))
    maps = [token_map(each, grid) for each in tokens]
    ramp = torch.linspace(0.5, 1.5, size[1]).expand(4, *size)
    truth = ramp + torch.arange(4).view(4, 1, 1) / 4
    head = kind(32)
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=1e-3
    )  # at 3e-3 the sigmoid can saturate, and nothing brings it back
    for _ in range(200):
        optimizer.zero_grad()
        silog(metric_depth(head(maps, size), 4.0), truth).backward()
        optimizer.step()
    depth = metric_depth(head(maps, size), 4.0).detach()
    assert depth.shape == truth.shape and float(depth_errors(depth, truth).abs_rel.mean()) < 0.15


def test_what_cannot_be_read_is_refused() -> None:
    with pytest.raises(BadInput, match="take the linear head"):
        dpt_blocks(3)
    with pytest.raises(UnknownName, match="did you mean 'small'"):
        DPTHead(32, widths="smal")
    with pytest.raises(BadInput, match="four blocks; got 1"):
        DPTHead(32)([torch.zeros(1, 64, 4, 4)], (32, 32))


def test_depth_errors_are_those_computed_by_hand() -> None:
    truth, prediction = torch.tensor([[[1.0, 2.0, 0.0]]]), torch.tensor([[[1.2, 1.0, 7.0]]])
    errors = depth_errors(prediction, truth)
    assert errors.rmse.item() == pytest.approx((1.04 / 2) ** 0.5)
    assert errors.abs_rel.item() == pytest.approx(0.35) and errors.delta1.item() == pytest.approx(0.5)


def test_silog_forgives_scale_only_where_told_and_unknown_pixels_do_not_matter() -> None:
    truth = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0)) + 0.5
    assert float(silog(truth, truth)) < 1e-5
    assert float(silog(3 * truth, truth, variance=1.0)) < 1e-3 < float(silog(3 * truth, truth))
    truth[:, 0] = 0
    other = truth.clone()
    other[:, 0] = 5
    assert torch.equal(silog(truth + 1, truth), silog(torch.where(truth > 0, truth + 1, other), truth))
