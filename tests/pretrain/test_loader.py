"""The samples of a step depend on the seed and the step only; unreadable images are replaced and named."""

import io
import json
import multiprocessing
import tarfile
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pixio_robot.errors import BadInput, DataError
from pixio_robot.pretrain.images.crops import Cropping
from pixio_robot.pretrain.images.image_set import ImageSet
from pixio_robot.pretrain.images.sources import open_images
from pixio_robot.pretrain.loader import (
    Batch,
    Batching,
    SampleShape,
    UnreadableLog,
    train_batches,
    validation_batch,
)
from pixio_robot.pretrain.order import Order, hold_out


def _shard(path: Path, broken: tuple[int, ...] = (), count: int = 24) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    with tarfile.open(path, "w") as archive:
        for number in range(count):
            buffer = io.BytesIO()
            Image.fromarray(generator.integers(0, 255, (24, 32, 3), np.uint8)).save(buffer, "JPEG")
            content = buffer.getvalue()[: 300 if number in broken else None]
            info = tarfile.TarInfo(f"{number:03d}.jpg")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return str(path)


def _steps(images: ImageSet, first: int, last: int, **options: Any) -> list[Batch]:
    """Return the micro-batches of steps `first` to `last` of 8 samples."""
    split = hold_out(images, 4, seed=0)
    order = Order(split.training, seed=7, block=4)
    options = {"seed": 3, "batch": 8, "ranks": (0, 1), "micro_batch": None, "workers": 0, **options}
    seed, ranks = options.pop("seed"), options.pop("ranks")
    each = options["batch"] // ranks[1]
    many = (last - first) * each // (options["micro_batch"] or each)
    shape = SampleShape((16, 16), mask_blocks=6)
    stream = train_batches(images, split, order, Batching(**options), shape, seed=seed, start=8 * first, ranks=ranks)
    try:
        return list(islice(stream, many))
    finally:
        stream.close()


def _joined(batches: list[Batch]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return tuple(torch.cat([getattr(each, name) for each in batches]) for name in ("images", "mask_noise", "indices"))


def _same(one: list[Batch], other: list[Batch]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(_joined(one), _joined(other), strict=True))


@pytest.fixture
def images() -> ImageSet:
    return open_images(_shard(Path("data/a.tar"), broken=(5, 6)), Path("cache"))


def test_steps_do_not_depend_on_workers_micro_batches_or_restart(images: ImageSet) -> None:
    whole = _steps(images, 0, 6)
    frames, noise, indices = _joined(whole)
    assert frames.shape == (48, 16, 16, 3) and frames.dtype == torch.uint8
    assert noise.shape == (48, 6) and noise.dtype == torch.float32 and indices.dtype == torch.int64
    assert _same(whole, _steps(images, 0, 6, workers=2))
    assert _same(whole, _steps(images, 0, 6, micro_batch=2))
    assert _same(whole, [*_steps(images, 0, 2), *_steps(images, 2, 6, workers=2, micro_batch=4)])
    assert _same(whole, _steps(images, 0, 3, batch=16))


def test_ranks_share_a_step(images: ImageSet) -> None:
    whole = _steps(images, 0, 3)
    ranks = [_steps(images, 0, 3, ranks=(rank, 2), micro_batch=2) for rank in range(2)]
    for step in range(3):
        together = ranks[0][2 * step : 2 * step + 2] + ranks[1][2 * step : 2 * step + 2]
        assert _same([whole[step]], together)


def test_another_seed_gives_other_crops_and_noise(images: ImageSet) -> None:
    one, other = _joined(_steps(images, 0, 3)), _joined(_steps(images, 0, 3, seed=4))
    assert not torch.equal(one[0], other[0]) and not torch.equal(one[1], other[1])
    assert len(set(one[1][:, 0].tolist())) == 24
    assert abs(float(one[1].mean()) - 0.5) < 0.1


def test_an_epoch_holds_every_training_image(images: ImageSet) -> None:
    split = hold_out(images, 4, seed=0)
    indices = _joined(_steps(images, 0, 5))[2][: split.training]
    readable = [index for index in split.index(np.arange(split.training)).tolist() if index not in (5, 6)]
    assert set(indices.tolist()) == set(readable)


def test_unreadable_images_are_replaced_and_named(images: ImageSet) -> None:
    batches = _steps(images, 0, 6, workers=2)
    named = {name for batch in batches for name, _ in batch.unreadable}
    val_images = set(hold_out(images, 4, seed=0).val_images.tolist())
    assert named == {f"data/a.tar:{number:03d}.jpg" for number in (5, 6) if number not in val_images} != set()
    assert not {5, 6} & set(_joined(batches)[2].tolist())
    record = UnreadableLog(Path("unreadable.jsonl"))
    for batch in [*batches, *batches]:
        record.add(batch.unreadable)
    rows = [json.loads(line) for line in Path("unreadable.jsonl").read_text().splitlines()]
    assert {row["name"] for row in rows} == named and record.count == len(rows) == len(named)
    assert "cut short" in rows[0]["reason"]
    assert UnreadableLog(Path("unreadable.jsonl")).count == len(named)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_set_of_broken_images_is_an_error(workers: int) -> None:
    broken = open_images(_shard(Path("data/b.tar"), broken=tuple(range(24))), Path("cache"))
    with pytest.raises(
        DataError, match=r"16 images in a row cannot be read; the last: data/b.tar:\d+.jpg: .*cut short"
    ):
        _steps(broken, 0, 1, workers=workers)
    with pytest.raises(DataError, match="none of 4 validation images"):
        validation_batch(broken, hold_out(broken, 4, seed=0), SampleShape((8, 8), 4), seed=0)


def test_a_text_file_among_images_is_replaced() -> None:
    Path("data").mkdir()
    for number in range(6):
        Image.fromarray(np.full((9, 9, 3), number, np.uint8)).save(f"data/{number}.png")
    Path("data/x.jpg").write_text("I am no image")
    images = open_images("data", Path("cache"))
    split = hold_out(images, 0, seed=0)
    stream = train_batches(images, split, Order(7, 0), Batching(7), SampleShape((4, 4), 2), seed=0)
    batch = next(stream)
    assert [name for name, _ in batch.unreadable] == ["data/x.jpg"] and "no image" in batch.unreadable[0][1]
    assert torch.equal(batch.images[:, 0, 0, 0].long(), batch.indices)
    stream.close()


def test_validation_images_are_always_the_same(images: ImageSet) -> None:
    split = hold_out(images, 8, seed=0)
    one = validation_batch(images, split, SampleShape((8, 12), 4), seed=0)
    assert one.images.shape[1:] == (8, 12, 3) and _same(
        [one], [validation_batch(images, split, SampleShape((8, 12), 4), seed=0)]
    )
    assert set(one.indices.tolist()) == set(split.evaluated.tolist()) - {5, 6}
    fewer = hold_out(images, 4, seed=0)
    assert np.isin(fewer.evaluated, split.evaluated).all()
    part = validation_batch(images, fewer, SampleShape((8, 12), 4), seed=0)
    rows = [one.indices.tolist().index(index) for index in part.indices.tolist()]
    assert torch.equal(part.mask_noise, one.mask_noise[rows])  # an image keeps its mask


def test_workers_may_be_forked_or_spawned() -> None:
    """Sets that hold files open are read on in a fork and after a trip through pickle."""
    images = open_images([_shard(Path("data/a.tar")), "procedural:4"], Path("cache"))
    mine = [images.read(index) for index in (3, 25)]
    for method in ("fork", "spawn"):
        context = multiprocessing.get_context(method)
        with context.Pool(1) as pool:
            theirs = pool.map(images.read, (3, 25))
        assert theirs[0] == mine[0] and np.array_equal(theirs[1], mine[1])


def test_impossible_batch_splits_are_refused(images: ImageSet) -> None:
    for options in ({"ranks": (0, 3)}, {"micro_batch": 3}, {"ranks": (2, 2)}, {"micro_batch": 16}):
        with pytest.raises(BadInput, match="multiple of ranks"):
            _steps(images, 0, 1, **options)
    split = hold_out(images, 4, seed=0)
    with pytest.raises(BadInput, match="the order is of 3 images"):
        train_batches(images, split, Order(3, 0), Batching(8), SampleShape((8, 8), 4), seed=0)


def test_whole_images_come_through_unchanged() -> None:
    images = open_images("synthetic:8", Path("cache"))
    split = hold_out(images, 0, seed=0)
    whole = Cropping(scale=(1.0, 1.0), ratio=(1.0, 1.0))
    stream = train_batches(images, split, Order(8, 0), Batching(8, cropping=whole), SampleShape((256, 256), 2), seed=0)
    batch = next(stream)
    for image, index in zip(batch.images, batch.indices.tolist(), strict=True):
        assert np.array_equal(image.numpy(), images.read(index))
    stream.close()


def test_missing_shard_loses_its_images_but_not_the_run() -> None:
    images = open_images([_shard(Path("one.tar")), _shard(Path("two.tar"))], Path("cache"))
    Path("two.tar").rename("elsewhere.tar")
    batches = _steps(images, 0, 4)
    assert {name.partition(":")[0] for each in batches for name, _ in each.unreadable} == {"two.tar"}


def test_truncated_unreadable_log_is_continued() -> None:
    path = Path("unreadable.jsonl")
    path.write_text('{"name": "a", "reason": "gone"}\n{"name": "b", "rea')
    UnreadableLog(path).add([("c", "gone")])
    log = UnreadableLog(path)
    assert log.count == 2 and [json.loads(line)["name"] for line in path.read_text().splitlines()] == ["a", "c"]
