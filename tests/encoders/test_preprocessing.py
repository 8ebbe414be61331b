"""Laws of preprocessing: Pillow's bicubic resize, the named statistics, no other input."""

import numpy as np
import pytest
import torch
from torch import Tensor

from pixio_robot.encoders.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, preprocess
from pixio_robot.errors import BadInput


def frame(height: int, width: int, seed: int = 0) -> Tensor:
    """Return one image with smooth and with hard parts, (1, H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    waves = 127 + 120 * np.sin(rows / 9)[..., None] * np.cos(columns / 7)[..., None] * np.ones(3)
    waves[height // 3 : height // 2, width // 4 :] = rng.integers(0, 256, 3)
    waves[: height // 4, : width // 4] = rng.integers(0, 256, (height // 4, width // 4, 3))
    return torch.from_numpy(waves.clip(0, 255).astype(np.uint8))[None]


def grey_levels(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Undo the normalisation: (B, 3, H, W) pixels to (B, H, W, 3) in 0..255."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    return ((pixels * std + mean) * 255).permute(0, 2, 3, 1)


@pytest.mark.parametrize("size", [(480, 640), (300, 257), (64, 84), (100, 400)])
@pytest.mark.parametrize("mode", ["squash", "crop"])
def test_resize_is_pillows_bicubic_within_a_grey_level(size: tuple[int, int], mode: str) -> None:
    image_module = pytest.importorskip("PIL.Image")
    images = frame(*size)
    preprocessing = Preprocessing(resize=mode)
    source = image_module.fromarray(images[0].numpy())
    if mode == "crop":
        scale = 256 / min(size)
        height, width = round(size[0] * scale), round(size[1] * scale)
        top, left = (height - 256) // 2, (width - 256) // 2
    else:
        (height, width), (top, left) = (256, 256), (0, 0)
    for target in ((width, size[0]), (width, height)):  # one side at a time: which one Pillow takes first has changed
        source = source.resize(target, image_module.Resampling.BICUBIC)
    expected = source.crop((left, top, left + 256, top + 256))
    ours = grey_levels(preprocess(images, preprocessing), preprocessing)[0]
    difference = (ours - torch.from_numpy(np.array(expected)).float()).abs()
    assert difference.max() <= 1.001


@pytest.mark.parametrize("mode", ["squash", "crop"])
def test_images_of_the_right_size_are_only_normalised(mode: str) -> None:
    images = frame(256, 256)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    expected = (images.permute(0, 3, 1, 2).float() / 255 - mean) / std
    assert torch.equal(preprocess(images, Preprocessing(resize=mode)), expected)


def test_resized_values_are_whole_grey_levels_in_range() -> None:
    preprocessing = Preprocessing(size=(64, 96))
    levels = grey_levels(preprocess(frame(300, 200), preprocessing), preprocessing)
    assert levels.shape == (1, 64, 96, 3)
    torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)
    assert levels.min() > -0.01 and levels.max() < 255.01


def test_images_of_a_batch_do_not_mix() -> None:
    images = torch.cat([frame(100, 80, seed) for seed in range(3)])
    together = preprocess(images)
    apart = torch.cat([preprocess(image[None]) for image in images])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "images",
    [
        torch.rand(1, 8, 8, 3),
        torch.zeros(8, 8, 3, dtype=torch.uint8),
        torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
        torch.zeros(1, 8, 8, 4, dtype=torch.uint8),
    ],
    ids=["floats", "no batch", "channels first", "four channels"],
)
def test_anything_but_a_batch_of_uint8_rgb_is_refused(images: Tensor) -> None:
    with pytest.raises(BadInput, match=r"uint8 \(B, H, W, 3\)"):
        preprocess(images)


def test_unknown_resize_mode_lists_the_modes() -> None:
    with pytest.raises(BadInput, match="squash, crop"):
        preprocess(frame(32, 32), Preprocessing(resize="stretch"))


def test_preprocessing_survives_json() -> None:
    import json

    preprocessing = Preprocessing((224, 320), "crop", (0.5, 0.5, 0.5), (0.2, 0.3, 0.4))
    assert Preprocessing.from_arguments(json.loads(json.dumps(preprocessing._asdict()))) == preprocessing


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_a_margin_is_cut_as_pillow_would(interpolation: str) -> None:
    """The shorter side to 256, then the centre 224, with the interpolation asked for."""
    image_module = pytest.importorskip("PIL.Image")
    frames = torch.randint(0, 256, (1, 480, 480, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    settings = Preprocessing((224, 224), "crop", (0, 0, 0), (1, 1, 1), shorter=256, interpolation=interpolation)
    ours = preprocess(frames, settings)[0].permute(1, 2, 0) * 255
    resample = getattr(image_module.Resampling, interpolation.upper())
    resized = image_module.fromarray(frames[0].numpy()).resize((256, 256), resample)
    theirs = torch.tensor(list(resized.crop((16, 16, 240, 240)).tobytes())).view(224, 224, 3)
    assert float((ours - theirs).abs().max()) <= 1.01
    with pytest.raises(BadInput, match="bicubic, bilinear"):
        preprocess(frames, settings._replace(interpolation="nearest"))
