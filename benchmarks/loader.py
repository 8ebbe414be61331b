"""Reading, decoding and cropping images for pre-training: ours against Pillow, alone and behind webdataset.

``python benchmarks/loader.py [SHARD ...]`` takes real shards instead of made-up images.
"""

import io
import itertools
import sys
import tarfile
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from timing import Section, cells, compare, in_turns, markdown, per_second, seconds

NEEDS = {"webdataset": "dev"}  # package: extra of pixio-robot
COUNT, HEIGHT, WIDTH, QUALITY, GRAIN = 128, 375, 500, 90, 14  # images of a turn; their size [px]; noise [levels]
SIZE, SCALE, RATIO = 256, (0.2, 1.0), (3 / 4, 4 / 3)
PAIRS = 9


def measure(shards: Sequence[str] = ()) -> Section:
    """Compare on images made up in a temporary folder, or on `shards`."""
    with tempfile.TemporaryDirectory() as folder:
        if shards:
            return _measure(Path(folder), list(shards), "images of the shards given")
        return _measure(Path(folder), [str(_write_shard(Path(folder)))], f"drawn images of {WIDTH}x{HEIGHT}")


def _measure(folder: Path, shards: list[str], what: str) -> Section:
    from pixio_robot.hardware import threads
    from pixio_robot.pretrain.images.sources import open_images

    images = open_images(shards, folder / "cache")
    files = [bytes(images.read(index)) for index in range(min(COUNT, len(images)))]
    kilobytes = sum(map(len, files)) / len(files) / 1e3
    ours = _ours(folder, shards, len(files))
    with threads(1):
        pillow = in_turns(ours, _pillow(files), PAIRS)
        webdataset = in_turns(ours, _webdataset(shards, len(files)), PAIRS)
    comparisons = [
        compare("against Pillow, files in memory", *([time / len(files) for time in side] for side in pillow)),
        compare("against webdataset with Pillow", *([time / len(files) for time in side] for side in webdataset)),
    ]
    how = (
        f"Images a second of one core: decoding and a random resized crop to {SIZE}x{SIZE} (area {SCALE[0]} to "
        f"{SCALE[1]}, antialiased bicubic), from JPEGs of {kilobytes:.0f} KB ({what}). Ours is `train_batches` without "
        "workers, all of it: order, reading tar members at random, decoding, crop, mask noise, batch of 32. Pillow "
        "does what torchvision's transform does with it, `convert`, `crop`, `resize`, and puts the result in a batch; "
        "its files lie in memory. webdataset reads the shard from front to back, without shuffling, and does the "
        f"same. A turn is {len(files)} images; every side draws its own crops from the same distribution."
    )
    return Section("Image loading", how, rows=cells(comparisons, per_second))


def _ours(folder: Path, shards: list[str], count: int) -> Callable[[], float]:
    from pixio_robot.pretrain.images.sources import open_images
    from pixio_robot.pretrain.loader import Batching, SampleShape, train_batches
    from pixio_robot.pretrain.order import Order, hold_out

    images = open_images(shards, folder / "cache")
    split = hold_out(images, 0, seed=0)
    order = Order(split.training, seed=0)
    batches = train_batches(images, split, order, Batching(32), SampleShape((SIZE, SIZE), mask_blocks=16), seed=0)
    return lambda: seconds(lambda: list(itertools.islice(batches, count // 32)))


def _pillow(files: list[bytes]) -> Callable[[], float]:
    generator = np.random.default_rng(0)

    def work() -> None:
        for first in range(0, len(files), 32):
            np.stack([_pillow_crop(data, generator) for data in files[first : first + 32]])

    return lambda: seconds(work)


def _webdataset(shards: list[str], count: int) -> Callable[[], float]:
    import webdataset

    warnings.filterwarnings("ignore", category=ResourceWarning)  # it leaves its files to the collector
    generator = np.random.default_rng(0)

    def endless() -> Iterator[np.ndarray]:
        while True:
            dataset = webdataset.WebDataset(shards, shardshuffle=False).to_tuple("jpg")
            for (data,) in dataset:
                yield _pillow_crop(data, generator)

    crops = endless()

    def work() -> None:
        for _ in range(0, count, 32):
            np.stack(list(itertools.islice(crops, 32)))

    return lambda: seconds(work)


def _pillow_crop(data: bytes, generator: np.random.Generator) -> np.ndarray:
    """Decode and crop as torchvision's RandomResizedCrop does with Pillow's images."""
    from PIL import Image

    image = Image.open(io.BytesIO(data)).convert("RGB")
    width, height = image.size
    for _ in range(10):
        area = width * height * generator.uniform(*SCALE)
        ratio = np.exp(generator.uniform(*np.log(RATIO)))
        wide, high = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if wide <= width and high <= height:
            break
    else:
        wide = high = min(width, height)
    left, top = int(generator.integers(width - wide + 1)), int(generator.integers(height - high + 1))
    part = image.crop((left, top, left + wide, top + high))
    return np.asarray(part.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def _write_shard(folder: Path) -> Path:
    """Write drawn images with grain, as large as photographs in bytes, too."""
    from PIL import Image

    from pixio_robot.pretrain.images.procedural import draw

    generator = np.random.default_rng(0)
    with tarfile.open(folder / "images.tar", "w") as archive:
        for number in range(COUNT):
            frame = draw(0, number, WIDTH)[:HEIGHT].astype(np.float32)
            frame += generator.normal(0, GRAIN, (HEIGHT, WIDTH, 1))
            buffer = io.BytesIO()
            Image.fromarray(np.clip(frame, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=QUALITY)
            info = tarfile.TarInfo(f"{number:04d}.jpg")
            info.size = buffer.tell()
            archive.addfile(info, io.BytesIO(buffer.getvalue()))
    return folder / "images.tar"


if __name__ == "__main__":
    print(markdown(measure(sys.argv[1:])))
