"""Laws of the decoder and the masked autoencoder: published sizes and names, exact targets, who sees what."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pixio_robot.encoders.pixio import PRESETS, PixioEncoder
from pixio_robot.errors import BadInput, UnknownName
from pixio_robot.pretrain.cost import decoder_flops, encoder_flops, training_flops
from pixio_robot.pretrain.decoder import DECODERS, PixelDecoder, sincos_positions_
from pixio_robot.pretrain.mae import MaskedAutoencoder, images_of
from pixio_robot.pretrain.masking import PatchMask, mask_shape
from pixio_robot.pretrain.reconstruction_images import true_statistics, visible_statistics


def small(norm_pixels: bool = True, **changes: int) -> MaskedAutoencoder:
    encoder = PixioEncoder(dim=24, depth=2, heads=2, patch=8, image_size=32)
    decoder = PixelDecoder(
        **{"encoder_dim": 24, "dim": 16, "depth": 2, "heads": 2, "patch": 8, "image_size": 32, **changes}
    )
    model = MaskedAutoencoder(encoder, decoder, norm_pixels)
    model.initialise(generator=torch.Generator().manual_seed(0))
    return model


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def masks(grid: tuple[int, int], count: int, block: int = 2) -> PatchMask:
    return PatchMask.random(grid, 0.75, block, [torch.Generator().manual_seed(seed) for seed in range(count)])


def test_names_of_the_state() -> None:
    names = set(small().state_dict())
    outside = {name for name in names if ".blocks." not in name and name.startswith("decoder.")}
    ends = (
        "embed.weight",
        "embed.bias",
        "mask_token",
        "pos_embed",
        "norm.weight",
        "norm.bias",
        "head.weight",
        "head.bias",
    )
    assert outside == {f"decoder.{end}" for end in ends}
    inside = {name.removeprefix("decoder.blocks.0.") for name in names if name.startswith("decoder.blocks.0.")}
    assert inside == {name.removeprefix("encoder.blocks.0.") for name in names if name.startswith("encoder.blocks.0.")}


@pytest.mark.parametrize(("size", "count"), [("ti", 101.5), ("b", 101.8), ("h", 102.1), ("5b", 102.98)])
def test_the_reference_decoder_has_the_published_number_of_parameters(size: str, count: float) -> None:
    with torch.device("meta"):
        decoder = PixelDecoder.preset("reference", PRESETS[size][0])
    assert sum(each.numel() for each in decoder.parameters()) / 1e6 == pytest.approx(count, abs=0.05)


# forward GFLOP of an image, from 24 N D^2 + 4 N^2 D a block; 256 px, 72 and 264 tokens
@pytest.mark.parametrize(
    ("size", "encoder", "decoder"),
    [
        ("ti", 0.89, 57.9),
        ("s", 3.30, 57.9),
        ("b", 12.7, 58.0),
        ("l", 44.4, 58.0),
        ("h", 92.0, 58.0),
        ("1b", 197.8, 58.0),
        ("5b", 787.0, 58.2),
    ],
)
def test_flops_match_the_table(size: str, encoder: float, decoder: float) -> None:
    with torch.device("meta"):
        model = MaskedAutoencoder(PixioEncoder.preset(size), PixelDecoder.preset("reference", PRESETS[size][0]))
    shape = mask_shape((16, 16), 0.75, 4)
    hidden = 2 * 192 * 768 * model.encoder.dim  # the table embeds hidden patches too; we do not
    assert (encoder_flops(model.encoder, 64) + hidden) / 1e9 == pytest.approx(encoder, rel=0.005)
    assert decoder_flops(model.decoder, 64, 256) / 1e9 == pytest.approx(decoder, rel=0.005)
    assert training_flops(model, shape) == 3 * (
        encoder_flops(model.encoder, 64) + decoder_flops(model.decoder, 64, 256)
    )


def test_flops_match_pytorchs_counter() -> None:
    model, pixels, mask = small(), noise(2, 3, 32, 32), masks((4, 4), 2)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as forward:
        loss = model(pixels, mask).loss
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as backward:
        loss.backward()
    ours = training_flops(model, mask_shape((4, 4), 0.75, 2))
    assert forward.get_total_flops() == pytest.approx(2 * ours / 3)
    assert forward.get_total_flops() + backward.get_total_flops() == pytest.approx(
        2 * ours, rel=0.02
    )  # no input gradient


def test_loss_is_the_mean_square_over_hidden_patches_of_normalised_targets() -> None:
    model, pixels, mask = small(), noise(2, 3, 32, 32), masks((4, 4), 2)
    with torch.no_grad():
        out = model(pixels, mask)
    losses = []
    for image in range(2):
        for patch in mask.hidden[image].tolist():
            row, column = divmod(patch, 4)
            target = pixels[image, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8].permute(1, 2, 0).reshape(-1)
            target = (target - target.mean()) / (target.var(unbiased=True) + 1e-6) ** 0.5
            losses.append((out.prediction[image, patch] - target).square().mean())
    assert float(out.loss) == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)
    assert float(out.per_image_loss[0]) == pytest.approx(float(torch.stack(losses[:12]).mean()), rel=1e-5)
    assert out.prediction.shape == (2, 16, 192) and not out.per_image_loss.requires_grad


def test_raw_pixels_are_the_target_when_nothing_is_normalised() -> None:
    model, pixels = small(norm_pixels=False), noise(1, 3, 32, 32)
    every = torch.arange(16).unsqueeze(0)
    torch.testing.assert_close(images_of(model.target(pixels, every), (4, 4)), pixels)


def test_a_flat_patch_has_a_zero_target() -> None:
    assert small().target(torch.full((1, 3, 32, 32), 0.7), torch.arange(16).unsqueeze(0)).abs().max() < 1e-3


def test_targets_and_loss_stay_fp32_under_autocast() -> None:
    model, pixels, mask = small(), noise(2, 3, 32, 32), masks((4, 4), 2)
    full = model(pixels, mask)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(pixels, mask)
        assert torch.equal(model.target(pixels, mask.hidden), small().target(pixels, mask.hidden))
    assert half.loss.dtype == half.per_image_loss.dtype == torch.float32 and half.prediction.dtype == torch.bfloat16
    assert float(half.loss.detach()) == pytest.approx(float(full.loss.detach()), rel=0.02)


def test_hidden_pixels_do_not_reach_the_prediction_and_visible_ones_do() -> None:
    model, pixels, mask = small(), noise(1, 3, 32, 32), masks((4, 4), 1)
    cells = pixels.clone().view(1, 3, 4, 8, 4, 8)
    before = model(pixels, mask).prediction
    row, column = divmod(int(mask.hidden[0, 0]), 4)
    cells[:, :, row, :, column] += 3.0
    assert torch.equal(model(cells.view_as(pixels), mask).prediction, before)
    row, column = divmod(int(mask.visible[0, 0]), 4)
    cells[:, :, row, :, column] += 3.0
    assert not torch.allclose(model(cells.view_as(pixels), mask).prediction, before)


def test_the_order_of_visible_patches_does_not_matter() -> None:
    model, pixels, mask = small(), noise(1, 3, 32, 32), masks((4, 4), 1)
    turned = PatchMask(mask.visible.flip(1), mask.hidden, (4, 4))
    torch.testing.assert_close(model(pixels, turned).prediction, model(pixels, mask).prediction)


def test_class_tokens_go_through_the_decoder() -> None:
    model, pixels, mask = small(), noise(1, 3, 32, 32), masks((4, 4), 1)
    model(pixels, mask).loss.backward()
    gradient = model.encoder.cls_token.grad
    assert gradient is not None and bool((gradient.abs().sum(dim=(0, 2)) > 0).all())


def test_images_can_be_decoded_from_class_tokens_only() -> None:
    model = small().eval()
    mask = masks((8, 8), 2)
    tokens = model.encoder(noise(2, 3, 64, 64), visible=mask.visible)
    other = tokens._replace(patches=tokens.patches + noise(*tokens.patches.shape, seed=1))
    alone = torch.tensor([True, False])
    first, second = (model.decoder(each, mask, alone) for each in (tokens, other))
    assert torch.equal(first[0], second[0]) and not torch.allclose(first[1], second[1])
    assert torch.equal(model.decoder(tokens, mask)[1], first[1])


def test_cls_only_loss_includes_visible_patches() -> None:
    model, pixels, mask = small(norm_pixels=False).eval(), noise(2, 3, 64, 64), masks((8, 8), 2)
    out = model(pixels, mask, torch.tensor([True, False]))
    whole = (images_of(out.prediction, (8, 8)) - pixels).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(out.per_image_loss[0], whole[0].detach())
    torch.testing.assert_close(out.per_image_loss[1], model(pixels, mask).per_image_loss[1])


def test_every_parameter_learns() -> None:
    model = small()
    model(noise(2, 3, 32, 32), masks((4, 4), 2)).loss.backward()
    assert [name for name, each in model.named_parameters() if each.grad is None] == []


def test_activation_checkpointing_changes_neither_loss_nor_gradients() -> None:
    plain, frugal, pixels, mask = small(), small(), noise(2, 3, 32, 32), masks((4, 4), 2)
    for block in [*frugal.encoder.blocks, *frugal.decoder.blocks]:
        block.activation_checkpointing = True
    losses = [model(pixels, mask).loss for model in (plain, frugal)]
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    pairs = zip(plain.parameters(), frugal.parameters(), strict=True)
    assert all(torch.equal(a.grad, b.grad) for a, b in pairs if a.grad is not None and b.grad is not None)


def test_rectangles_and_other_sizes_work() -> None:
    model = small()
    out = model(noise(2, 3, 48, 64), masks((6, 8), 2))
    assert out.prediction.shape == (2, 48, 192) and bool(torch.isfinite(out.loss))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's compiler looks at it
def test_blocks_of_all_drop_path_rates_compile_to_two_programs() -> None:
    """One with and one without; a program for each rate would soon exceed the compiler's limit and run eagerly."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    encoder = PixioEncoder(dim=16, depth=12, heads=2, patch=8, image_size=32, drop_path=0.3).train()
    for block in encoder.blocks:
        block.compile(backend="eager", dynamic=False)
    encoder(noise(2, 3, 32, 32))
    assert counters["stats"]["unique_graphs"] == 2


def test_initial_loss_is_that_of_chance() -> None:
    encoder = PixioEncoder.preset("ti")
    model = MaskedAutoencoder(encoder, PixelDecoder.preset("ti", encoder.dim))
    model.initialise(generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        loss = float(model(noise(2, 3, 256, 256), masks((16, 16), 2, block=4)).loss)
    assert 1.2 < loss < 2.2  # 1 for predicting nothing, and the untrained head's own variance


def test_sine_cosine_positions_are_distinct() -> None:
    table = torch.ones(1, 8 + 16, 32)
    sincos_positions_(table, 8)
    assert not table[:, :8].any()
    grid = table[0, 8:].view(4, 4, 32)
    assert torch.equal(grid[1, 2, 16:], grid[1, 0, 16:]) and torch.equal(grid[1, 2, :16], grid[3, 2, :16])
    distances = torch.cdist(table[0, 8:], table[0, 8:])
    assert distances[~torch.eye(16, dtype=torch.bool)].min() > 0.1
    with pytest.raises(BadInput, match="multiple of 4"):
        sincos_positions_(torch.ones(1, 24, 30), 8)


def test_parts_that_do_not_fit_are_refused() -> None:
    for changes, what in (
        ({"patch": 16}, "patch"),
        ({"cls_tokens": 1}, "cls_tokens"),
        ({"encoder_dim": 32}, "encoder_dim"),
    ):
        with pytest.raises(BadInput, match=what):
            small(**changes)
    with pytest.raises(UnknownName, match="did you mean 'reference'"):
        PixelDecoder.preset("referense", 32)
    model = small()
    with pytest.raises(BadInput, match="grid of 2x2, the images have 4x4"):
        model(noise(1, 3, 32, 32), PatchMask.random((2, 2), 0.5, 1, torch.Generator()))
    with pytest.raises(BadInput, match="hides no patch"):
        model(noise(1, 3, 32, 32), PatchMask.none((4, 4)))


def test_masking_nothing_changes_nothing() -> None:
    model, pixels = small(), noise(2, 3, 32, 32)
    seen, all_ = model.encoder(pixels, visible=PatchMask.none((4, 4), 2).visible), model.encoder(pixels)
    torch.testing.assert_close(seen.patches, all_.patches, atol=1e-5, rtol=0)


def test_decoders_have_the_names_of_their_encoders() -> None:
    assert DECODERS["reference"] == (512, 32, 16)
    assert all(dim % heads == 0 and dim % 4 == 0 for dim, _, heads in DECODERS.values())


def test_hidden_statistics_are_interpolated_from_visible_patches_only() -> None:
    pixels, mask = noise(2, 3, 32, 32), masks((4, 4), 2)
    changed = pixels.clone().view(2, 3, 4, 8, 4, 8)
    for image in range(2):
        for patch in mask.hidden[image].tolist():
            changed[image, :, patch // 4, :, patch % 4] = 9.0
    before, after = visible_statistics(pixels, mask), visible_statistics(changed.view_as(pixels), mask)
    hidden = mask.is_hidden()
    assert torch.equal(before.mean[hidden], after.mean[hidden]) and torch.equal(before.std[hidden], after.std[hidden])
    truth = true_statistics(pixels, mask)
    assert torch.equal(before.mean[~hidden], truth.mean[~hidden])
