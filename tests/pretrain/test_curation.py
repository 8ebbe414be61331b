"""Curation: scores are bit-identical, weights follow the rule, an epoch's images depend on seed and weights only.

Images here are drawn. What needs pyarrow is skipped where the extra is not installed.
"""

import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import pixio_robot
from pixio_robot.cli import run
from pixio_robot.config import compose
from pixio_robot.errors import BadInput, CheckpointError, DataError, MissingExtra, PixioError, Stopped, UnknownName
from pixio_robot.jobs.workers import SHARD_ENGINES
from pixio_robot.pretrain.commands import Pretrain, pretrain, pretrain_values
from pixio_robot.pretrain.curation import score_run
from pixio_robot.pretrain.curation.accepted_order import CHUNK, AcceptedOrder, drawn, draws
from pixio_robot.pretrain.curation.commands import Curate, Score, compute_scores, compute_weights
from pixio_robot.pretrain.curation.entropy import colour_entropy
from pixio_robot.pretrain.curation.joined import join_weights
from pixio_robot.pretrain.curation.official import official_statistics
from pixio_robot.pretrain.curation.score import Scoring, model_hash, score_shard
from pixio_robot.pretrain.curation.score_run import ScoreConfig, scoring_of
from pixio_robot.pretrain.curation.sidecar import read_head, read_sidecar
from pixio_robot.pretrain.curation.statistics import NO_RECORD, NOT_FINITE, OK, UNREADABLE, ShardStatistics
from pixio_robot.pretrain.curation.weight_file import WeightFile
from pixio_robot.pretrain.curation.weights import VERDICTS, WeightRule, weigh
from pixio_robot.pretrain.images.procedural import draw
from pixio_robot.pretrain.images.sources import open_images
from pixio_robot.pretrain.loader import Batching, SampleShape, train_batches
from pixio_robot.pretrain.mae import MaskedAutoencoder
from pixio_robot.pretrain.networks import load_autoencoder, new_autoencoder, save_autoencoder
from pixio_robot.pretrain.order import hold_out
from pixio_robot.pretrain.training_set import order_of, split_images

needs_arrow = pytest.mark.skipif(find_spec("pyarrow") is None, reason="needs the extra curation")
SMALL = Pretrain(
    encoder="32x2x2",
    decoder="32x2x2",
    patch=4,
    image_size=32,
    mask_block=2,
    val_images=4,
    batch=8,
    steps=6,
    lr=1e-3,
    workers=0,
    device="cpu",
    cache="cache",
    log_every=2,
    save_every=3,
    valid_every=6,
    visualize_every=6,
)


def network(seed: int = 0) -> MaskedAutoencoder:
    return new_autoencoder(pretrain_values(SMALL).network, seed)


def encoded(image: np.ndarray, suffix: str = ".png") -> bytes:
    return bytes(cv2.imencode(suffix, np.ascontiguousarray(image[..., ::-1]))[1].tobytes())


def pack(path: Path | str, members: list[tuple[str, bytes]]) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def frames(count: int, seed: int = 0, side: int = 48) -> list[tuple[str, bytes]]:
    return [(f"{number:04d}.png", encoded(draw(seed, number, side))) for number in range(count)]


def statistics(loss: list[float], **columns: Any) -> ShardStatistics:
    """Return images of 512 px and 7 bits with these losses."""
    count = len(loss)
    values: dict[str, Any] = {
        "hash": np.arange(count, dtype=np.uint64),
        "offset": np.arange(count),
        "size": np.ones(count, np.int64),
        "width": np.full(count, 512),
        "height": np.full(count, 512),
        "entropy": np.full(count, 7.0),
        "loss": np.array(loss, np.float64),
        "spread": np.zeros(count),
        "status": (OK,) * count,
    }
    return ShardStatistics("a/0", 2, False, tuple(map(str, range(count))), **(values | columns))


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An autoencoder that learned for a moment: enough for flat frames to be easier than others."""
    path = tmp_path_factory.mktemp("model") / "autoencoder.safetensors"
    save_autoencoder(path, network(), {"mask_ratio": 0.75, "mask_block": 2})
    return path


@pytest.fixture
def shards() -> Path:
    """Four shards of two folders, 36 frames in all."""
    for number, count in enumerate((8, 12, 7, 9)):
        pack(f"data/{'ab'[number // 2]}/{number:03d}.tar", frames(count, seed=number))
    return Path("data")


def score(model: Path, **changes: Any) -> Score:
    return replace(Score(images="data", model=str(model), out="scores", device="cpu", workers=1, batch=5), **changes)


def curate(**changes: Any) -> Curate:
    return replace(Curate(scores="scores", entropy=None, least_side=0, out="curated"), **changes)


def files(folder: str) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def order_in(folder: Path, weights: np.ndarray, seed: int = 0) -> AcceptedOrder:
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(1)
    np.save(folder / "hashes.npy", generator.integers(0, 2**64, len(weights), np.uint64, endpoint=False))
    np.save(folder / "weights.npy", weights.astype(np.float32))
    return AcceptedOrder(folder, seed)


# 1. An image is drawn as often as its weight says.


@pytest.mark.parametrize("loss", [0.0, 0.02, 0.37, 0.8, 0.999, 1.0, 1.7])
def test_draw_frequency_equals_the_weight(loss: float) -> None:
    (weight,) = weigh(statistics([loss]), WeightRule()).weight
    hashes = np.random.default_rng(0).integers(0, 2**64, 1000, np.uint64, endpoint=False)
    hits = sum(int(drawn(3, epoch, hashes, np.full(1000, weight)).sum()) for epoch in range(100))
    share = min(1.0, loss)
    assert weight == share and abs(hits - 1e5 * share) <= 4.5 * math.sqrt(1e5 * share * (1 - share))


def test_temperature_changes_the_contrast_of_weights() -> None:
    losses = [0.25, 0.5, 1.0, 2.0]
    assert weigh(statistics(losses), WeightRule(temperature=2)).weight == pytest.approx([0.5, 0.5**0.5, 1, 1])
    assert weigh(statistics(losses), WeightRule(temperature=0.5)).weight == pytest.approx([0.0625, 0.25, 1, 1])


# 2. An epoch's images depend on seed, epoch and image only.


def test_image_of_a_position_does_not_depend_on_the_query(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).random(3 * CHUNK + 17)
    order = order_in(tmp_path, weights)
    ends = np.cumsum([len(order.epoch(number)) for number in range(3)])
    whole = order.at(np.arange(ends[-1]))
    for number, (begin, end) in enumerate(zip([0, *ends], ends, strict=False)):
        assert np.array_equal(np.sort(whole[begin:end]), order.epoch(number))  # each once
        assert not np.array_equal(whole[begin:end], order.epoch(number))  # in another order
    assert abs(ends[0] - order.epoch_length) < 4 * math.sqrt((weights * (1 - weights)).sum())
    again = AcceptedOrder(tmp_path, 0)  # as after a restart
    places = np.random.default_rng(1).permutation(ends[-1])
    assert np.array_equal(again.at(places), whole[places])
    assert np.array_equal(np.concatenate([again.at(places[i : i + 7]) for i in range(0, 700, 7)]), whole[places[:700]])
    assert not np.array_equal(AcceptedOrder(tmp_path, 1).epoch(0), order.epoch(0))


@needs_arrow
@pytest.mark.filterwarnings("ignore:This DataLoader will create 7 worker")  # torch's, where there are fewer cores
def test_drawn_images_do_not_depend_on_workers_ranks_or_restart(shards: Path, model_file: Path) -> None:
    compute_scores(score(model_file))
    compute_weights(curate(temperature=0.2))
    images = open_images("data", Path("cache"))
    split = hold_out(images, 4, seed=0)
    joined = join_weights(images, split, Path("curated/weights.parquet"), Path("cache"))
    order = AcceptedOrder(joined.folder, seed=5)
    assert joined.missing == 0 and order.length == split.training

    def indices(start: int, steps: int, rank: int = 0, world: int = 1, workers: int = 0) -> list[list[int]]:
        batching, shape = Batching(14, workers=workers), SampleShape((32, 32), mask_blocks=16)
        stream = train_batches(images, split, order, batching, shape, seed=5, start=start, ranks=(rank, world))
        try:
            return [batch.indices.tolist() for batch in islice(stream, steps)]
        finally:
            stream.close()  # type: ignore[attr-defined]

    whole = indices(0, 6)
    assert all(indices(0, 6, workers=workers) == whole for workers in (2, 7))
    assert indices(28, 4) == whole[2:]
    ranks = [indices(0, 6, rank=rank, world=2) for rank in range(2)]
    assert [[*first, *second] for first, second in zip(*ranks, strict=True)] == whole
    assert not set(np.concatenate(whole).tolist()) & set(split.val_images.tolist())
    names = {images.name(int(split.index(np.array([number]))[0])) for number in order.epoch(2)}
    turned = open_images(["data/b/003.tar", "data/b/002.tar", "data/a/001.tar", "data/a/000.tar"], Path("cache"))
    everything = hold_out(turned, 0, seed=0)
    other = AcceptedOrder(join_weights(turned, everything, Path("curated/weights.parquet"), Path("cache")).folder, 5)
    theirs = {turned.name(int(number)) for number in other.epoch(2)}
    held = {images.name(int(number)) for number in split.val_images}
    assert {Path(name).name for name in names} == {Path(name).name for name in theirs - held}


@needs_arrow
def test_every_engine_writes_the_same_bytes(shards: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute_scores(score(model_file))
    compute_scores(score(model_file, out="readers", readers=3))
    compute_scores(score(model_file, out="turned", images=["data/b", "data/a/001.tar", "data/a/000.tar"]))
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "3")
        compute_scores(score(model_file, out="ranks"))
    assert files("scores") == files("readers") == files("turned") == files("ranks")
    assert set(files("scores")) == {"a/000.parquet", "a/001.parquet", "b/002.parquet", "b/003.parquet"}


@needs_arrow
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_processes_and_actors_write_the_same_bytes(engine: str, shards: Path, model_file: Path) -> None:
    if engine == "ray":
        pytest.importorskip("ray.data")
    compute_scores(score(model_file))
    try:
        result = compute_scores(score(model_file, out="other", engine=engine, workers=2))
    finally:
        if engine == "ray":
            import ray

            ray.shutdown()
    assert result.images == 36 and files("scores") == files("other")


# 3. Epochs are independent and reach everything.


def test_epochs_are_independent_and_together_reach_everything(tmp_path: Path) -> None:
    hashes = np.arange(20_000, dtype=np.uint64)
    numbers = np.stack([draws(0, epoch, hashes) for epoch in range(6)] + [draws(1, 0, hashes)])
    assert np.abs(np.corrcoef(numbers) - np.eye(7)).max() < 4 / math.sqrt(20_000)
    assert numbers.min() >= 0 and numbers.max() < 1 and abs(numbers.mean() - 0.5) < 0.003
    neighbours = np.corrcoef(numbers[0, :-1], numbers[0, 1:])[0, 1]
    assert abs(neighbours) < 4 / math.sqrt(20_000)
    weights = np.tile([0.0, 0.05, 0.5, 1.0], 500)
    order = order_in(tmp_path, weights)
    reached = np.unique(np.concatenate([order.epoch(number) for number in range(300)]))
    assert np.array_equal(reached, np.flatnonzero(weights))


# 4. Entropy.


def test_entropy_equals_values_computed_by_hand() -> None:
    flat = np.full((16, 16, 3), 77, np.uint8)
    halves = np.repeat(np.array([0, 255], np.uint8), 128).reshape(16, 16)
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert colour_entropy(flat) == 0
    assert colour_entropy(np.stack([halves] * 3, -1)) == pytest.approx(1)
    assert colour_entropy(np.stack([ramp] * 3, -1)) == pytest.approx(8)
    assert colour_entropy(np.stack([ramp, halves, halves * 0], -1)) == pytest.approx(3)  # mean over channels
    frame = draw(0, 6)
    shuffled = np.random.default_rng(0).permutation(frame.reshape(-1, 3)).reshape(frame.shape)
    assert colour_entropy(shuffled) == pytest.approx(colour_entropy(frame))
    at_the_edge = weigh(statistics([1, 1, 1], entropy=np.array([4.5, 4.5000001, 4.4])), WeightRule())
    assert [VERDICTS[each] for each in at_the_edge.verdict] == ["few colours", "drawn", "few colours"]


# 5. Sizes.


def test_both_sides_are_checked_after_exif_rotation(model_file: Path) -> None:
    shapes = {"wide.jpg": (30, 40), "tall.jpg": (40, 30), "large.jpg": (40, 44)}
    members = [
        (name, encoded(np.random.default_rng(0).integers(0, 255, (*shape, 3), np.uint8), ".jpg"))
        for name, shape in shapes.items()
    ]
    turned = Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 48, 3), np.uint8))
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[274] = 6  # a quarter turn
    turned.save(buffer, "JPEG", exif=exif)
    found = scored(pack("a/0.tar", [*members, ("turned.jpg", buffer.getvalue())]), model_file)
    assert list(zip(found.width.tolist(), found.height.tolist(), strict=True)) == [
        (40, 30),
        (30, 40),
        (44, 40),
        (30, 48),
    ]
    verdicts = [VERDICTS[each] for each in weigh(found, WeightRule(least_side=40)).verdict]
    assert verdicts == ["too small", "too small", "drawn", "too small"]


def scored(shard: Path, model_file: Path, **changes: Any) -> ShardStatistics:
    model = load_autoencoder(model_file)
    scoring = Scoring(model_hash(model), 32, 0.75, 2, 2, 4, "fp32")._replace(**changes)
    return score_shard(shard, model, scoring, torch.device("cpu"))


# 6. Nothing is lost silently.


def test_unreadable_images_and_truncated_shards_are_recorded(model_file: Path) -> None:
    good = frames(6)
    broken = [
        ("bad.jpg", b"\xff\xd8\xff no frame"),
        ("empty.png", b""),
        ("half.jpg", encoded(draw(0, 6, 48), ".jpg")[:900]),
    ]
    shard = pack("a/0.tar", [*good[:3], *broken, *good[3:]])
    found = scored(shard, model_file)
    assert found.status == (OK,) * 3 + (UNREADABLE,) * 3 + (OK,) * 3 and not found.cut
    assert np.isnan(found.loss[3:6]).all() and np.isfinite(found.loss[[0, 1, 2, 6, 7, 8]]).all()
    assert found.width[5] == 48  # its header is complete
    assert (weigh(found, WeightRule(None, 0)).weight[3:6] == 0).all()
    content = shard.read_bytes()
    cut = pack("a/1.tar", [])
    cut.write_bytes(content[: int(found.offset[-1]) + 10])
    assert scored(cut, model_file).cut and len(scored(cut, model_file).key) == 8
    compressed = Path("a/2.tar")
    compressed.write_bytes(b"\x1f\x8b" + content)
    assert scored(compressed, model_file).cut and not scored(compressed, model_file).key


def test_a_loss_that_is_not_finite_has_a_status(model_file: Path) -> None:
    model = load_autoencoder(model_file)
    with torch.no_grad():
        model.decoder.blocks[0].mlp.fc1.weight.fill_(float("nan"))
    scoring = Scoring(model_hash(model), 32, 0.75, 2, 2, 4, "fp32")
    found = score_shard(pack("a/0.tar", frames(2)), model, scoring, torch.device("cpu"))
    assert found.status == (NOT_FINITE,) * 2 and (weigh(found, WeightRule(None, 0)).weight == 0).all()


@needs_arrow
def test_missing_duplicate_and_unreadable_images_are_counted(
    model_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = frames(12)
    pack(
        "data/a/0.tar",
        [*good[:8], ("bad.png", b"no"), ("x/y.png", good[8][1]), ("z.cls", b"1"), ("x/y.png", good[9][1])],
    )
    compute_scores(score(model_file))
    pack("data/a/1.tar", frames(5, seed=9))  # came later
    _, result = compute_weights(curate(images="data"))
    numbers = result["numbers"]
    assert numbers["images"] == 11 and numbers["unreadable or without a finite loss"] == 1
    assert numbers["same name twice in a shard"] == 1 and numbers["shards without scores"] == 1
    assert numbers["drawable"] == 9 and "1 shards have no statistics" in caplog.text
    images = open_images("data", Path("cache"))
    split = hold_out(images, 0, seed=0)
    joined = join_weights(images, split, Path("curated/weights.parquet"), Path("cache"))
    weights = np.load(joined.folder / "weights.npy")
    assert joined.missing == 5 and (weights[:8] > 0).all() and weights[8] == 0 and weights[9] > 0
    assert not weights[10:].any()


# 7. A stopped job resumes.


@needs_arrow
def test_stopped_scoring_resumes_to_the_same_bytes(
    shards: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute_scores(score(model_file, out="whole"))
    original, done = score_run.write_scores, []

    def stopping(*arguments: Any) -> score_run.ShardResult:
        done.append(1)
        if len(done) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    monkeypatch.setattr(score_run, "write_scores", stopping)
    with pytest.raises(Stopped, match="stopped by SIGTERM after 2 of 4 shards"):
        compute_scores(score(model_file))
    assert len(files("scores")) == 2 and files("scores").items() <= files("whole").items()
    result = compute_scores(score(model_file))
    assert (result.reused, result.images) == (2, 16) and files("scores") == files("whole")
    assert compute_scores(score(model_file)).reused == 4


@needs_arrow
@pytest.mark.slow
def test_stopped_processes_finish_their_shards(model_file: Path) -> None:
    for number in range(30):
        pack(f"data/a/{number:03d}.tar", frames(60, seed=number))
    words = ["score", "images=data", f"model={model_file}", "out=scores", "batch=5", "workers=2", "device=cpu"]
    command = [sys.executable, "-m", "pixio_robot", *words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not list(Path("scores").rglob("*.parquet")):
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=100)
    assert process.returncode == 143 and "stopped by SIGTERM after" in said, said
    done = files("scores")
    assert 0 < len(done) < 30 and all(name.endswith(".parquet") for name in done)
    assert compute_scores(score(model_file)).reused == len(done)


@needs_arrow
@pytest.mark.slow
def test_a_killed_job_leaves_whole_sidecars_and_no_process(shards: Path, model_file: Path) -> None:
    compute_scores(score(model_file, out="whole"))
    words = ["score", "images=data", f"model={model_file}", "out=scores", "batch=5", "workers=2", "device=cpu"]
    command = [sys.executable, "-m", "pixio_robot", *words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not files("scores"):
            pass
        process.kill()
    found = {name: content for name, content in files("scores").items() if name.endswith(".parquet")}
    assert found and found.items() <= files("whole").items()
    compute_scores(score(model_file))
    again = {name: content for name, content in files("scores").items() if not name.endswith(".tmp")}
    assert again == files("whole")


# 8. The official format.


def test_official_statistics_give_the_official_stream() -> None:
    generator = np.random.default_rng(0)
    records: dict[str, Any] = {}
    for number in range(200):
        records[f"{number:04d}.png"] = {
            "mae_loss": float(generator.uniform(0, 1.2)),
            "histogram_score": float(generator.choice([3.0, 4.5, 4.6, 7.0])),
            "height": int(generator.choice([319, 320, 800])),
            "width": int(generator.choice([319, 320, 800])),
        }
    del records["0003.png"], records["0004.png"]["mae_loss"]
    shard = pack("web/part-01.tar", [(f"{number:04d}.png", b"x") for number in range(200)])
    file = Path("json/web/part-01.json")
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(records))
    found = official_statistics(shard, Path("json"))
    assert found.status.count(NO_RECORD) == 2
    weight = weigh(found, WeightRule()).weight
    for _ in range(20):
        uniform = generator.random(200)
        ours = [key for key, hit in zip(found.key, uniform < weight, strict=True) if hit]
        theirs = [  # the rule in the order in which the official loader applies it
            key
            for key, u in zip(found.key, uniform.tolist(), strict=True)
            if key in records
            and "mae_loss" in records[key]
            and not records[key]["histogram_score"] <= 4.5
            and not (records[key]["height"] < 320 or records[key]["width"] < 320)
            and not u > records[key]["mae_loss"]
        ]
        assert ours == theirs and len(ours) > 20
    file.write_text("[]")
    with pytest.raises(DataError, match="holds a list"):
        official_statistics(shard, Path("json"))


@needs_arrow
def test_official_statistics_become_weights_too(shards: Path) -> None:
    for name, count in (("a/000", 8), ("a/001", 12), ("b/002", 7)):
        record = {"mae_loss": 0.5, "histogram_score": 7, "height": 400, "width": 400}
        path = Path(f"json/{name}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({f"{number:04d}.png": record for number in range(count)}))
    out, result = compute_weights(Curate(official="json", images="data", out="curated"))
    numbers = result["numbers"]
    assert (numbers["images"], numbers["drawable"], numbers["without a record"]) == (36, 27, 9)
    assert numbers["expected images an epoch"] == 13.5 and numbers["shards without scores"] == 1
    known = WeightFile(out / "weights.parquet").read("a/001")
    assert known is not None and known.weight.tolist() == [0.5] * 12


# 9. What is drawn more and less often.


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An autoencoder after some hundred steps on textures and scenes."""
    folder = tmp_path_factory.mktemp("trained")
    pack(folder / "data/0.tar", frames(400, seed=5))
    settings = replace(
        SMALL,
        images=str(folder / "data"),
        encoder="64x2x2",
        decoder="64x2x2",
        batch=32,
        steps=250,
        lr=2e-3,
        cache=str(folder / "cache"),
        out=str(folder / "run"),
        save_every=250,
        valid_every=250,
        visualize_every=250,
        log_every=50,
    )
    pretrain(settings)
    return folder / "run"


def mixture() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """Yield kinds of frames, 40 of each."""
    generator = np.random.default_rng(3)
    ramp = np.linspace(0, 1, 96, dtype=np.float32)

    def gradient() -> np.ndarray:
        corners = generator.uniform(0, 255, (2, 2, 3)).astype(np.float32)
        sides = [corners[0, each] * (1 - ramp[:, None]) + corners[1, each] * ramp[:, None] for each in range(2)]
        return (sides[0][:, None] * (1 - ramp[None, :, None]) + sides[1][:, None] * ramp[None, :, None]).astype(
            np.uint8
        )

    def page() -> np.ndarray:
        paper = np.full((96, 96, 3), 255, np.uint8)
        for line in range(12, 92, 14):
            words = "".join(generator.choice(list("abcdefgh  "), 14))
            cv2.putText(paper, words, (4, line), cv2.FONT_HERSHEY_SIMPLEX, 0.35, (0, 0, 0), 1)
        return paper

    yield (
        "flat",
        [encoded_as(number, np.full((96, 96, 3), generator.integers(0, 256, 3), np.uint8)) for number in range(40)],
    )
    yield "gradient", [encoded_as(number, gradient()) for number in range(40)]
    yield "page", [encoded_as(number, page()) for number in range(40)]
    yield "texture", [encoded_as(number, draw(11, 8 * number + 2, 96)) for number in range(40)]
    yield "scene", [encoded_as(number, draw(12, 8 * number + 6, 96)) for number in range(40)]


def encoded_as(number: int, image: np.ndarray) -> tuple[str, bytes]:
    return f"{number:04d}.png", encoded(image)


def test_easy_images_are_drawn_less_and_rendered_pages_never(trained: Path) -> None:
    found = {kind: scored(pack(f"{kind}/0.tar", members), trained, masks=4) for kind, members in mixture()}
    loss = {kind: float(each.loss.mean()) for kind, each in found.items()}
    share = {kind: float(weigh(each, WeightRule(least_side=0)).weight.mean()) for kind, each in found.items()}
    assert loss["flat"] < 0.2 < loss["scene"] and loss["gradient"] < 0.9 * loss["scene"]
    assert loss["page"] > loss["scene"] or loss["page"] > 0.8  # without the entropy filter, pages would be drawn most
    assert share["flat"] == 0 and share["page"] == 0
    assert share["gradient"] < share["scene"] and 0.3 < share["texture"] <= 1
    for each in found.values():  # a few masks suffice
        assert np.nanmean(each.spread) / 2 < np.concatenate([one.loss for one in found.values()]).std()


# 10. The report counts what is there.


@needs_arrow
@pytest.mark.parametrize("cap", [None, 4.0])
def test_report_equals_a_recount(cap: float | None, shards: Path, model_file: Path) -> None:
    flat = [(f"flat{number}.png", encoded(np.full((48, 48, 3), 9, np.uint8))) for number in range(3)]
    pack("data/b/004.tar", [*frames(5, seed=8), *flat, ("bad.png", b"no"), ("tiny.png", encoded(draw(9, 1, 20)))])
    compute_scores(score(model_file))
    out, result = compute_weights(curate(entropy=2.0, least_side=32, temperature=0.5, cap=cap))
    rows = []
    for path in sorted(Path("scores").rglob("*.parquet")):
        each = read_sidecar(path)
        for number, status in enumerate(each.status):
            passes = status == OK and each.entropy[number] > 2 and min(each.width[number], each.height[number]) >= 32
            weight = min(1.0, float(each.loss[number]) ** 2) if passes else 0.0
            rows.append((path.parent.name, status, float(each.entropy[number]), int(each.width[number]), weight))
    sums = {source: sum(row[-1] for row in rows if row[0] == source) for source in "ab"}
    factor = {source: 1.0 if cap is None else min(1.0, cap / total) for source, total in sums.items()}
    weights = np.array([row[-1] * factor[row[0]] for row in rows])
    positive = weights[weights > 0]
    numbers = result["numbers"]
    assert numbers["images"] == len(rows) == 46 and numbers["unreadable or without a finite loss"] == 1
    assert numbers["left out for few colours"] == sum(row[1] == OK and row[2] <= 2 for row in rows) >= 3
    assert numbers["left out for a short side"] == sum(row[1] == OK and row[2] > 2 and row[3] < 32 for row in rows) == 1
    assert numbers["drawable"] == len(positive)
    assert numbers["expected images an epoch"] == pytest.approx(weights.sum())
    assert numbers["kept share"] == pytest.approx(weights.sum() / len(rows))
    assert numbers["effective sample size"] == pytest.approx(weights.sum() ** 2 / (weights**2).sum())
    shares = positive / positive.sum()
    assert numbers["entropy of the weights [bits]"] == pytest.approx(-(shares * np.log2(shares)).sum())
    file = WeightFile(out / "weights.parquet")
    written = np.concatenate([each.weight for shard in file.shards if (each := file.read(shard))])
    assert np.sort(written) == pytest.approx(np.sort(weights), rel=1e-6)
    table = {row["source"]: row for row in result["tables"]["Sources"]}
    assert {name: row["expected an epoch"] for name, row in table.items()} == pytest.approx(
        {name: total * factor[name] for name, total in sums.items()}
    )
    if cap is not None:
        assert all(row["expected an epoch"] <= cap * 1.0001 for row in table.values())


# What else users do.


@needs_arrow
def test_curation_is_repeatable_and_shows_examples(shards: Path, model_file: Path) -> None:
    compute_scores(score(model_file))
    out, _ = compute_weights(curate(images="data", temperature=0.3, entropy=6.0))
    before = files("curated")
    assert {"images/seldom.png", "images/often.png", "images/few-colours.png"} <= set(before)
    page = (out / "report.html").read_text()
    assert "Sources" in page and page.count("data:image/png") >= 4 and "Reconstructions" not in page
    compute_weights(curate(images="data", temperature=0.3, entropy=6.0))
    assert files("curated") == before
    with pytest.raises(DataError, match=r"temperature 0\.3 instead of 1\.0"):
        compute_weights(curate(images="data", entropy=6.0))


@needs_arrow
def test_almost_equal_weights_are_reported(shards: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, count in (("a/000", 8), ("a/001", 12)):
        records = {
            f"{number:04d}.png": {"mae_loss": 0.8 + 0.01 * number, "histogram_score": 7, "height": 400, "width": 400}
            for number in range(count)
        }
        path = Path(f"json/{name}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(records))
    _, result = compute_weights(Curate(official="json", images="data/a", out="curated"))
    assert result["numbers"]["contrast of the weights"] < 0.1 and "almost equal" in caplog.text


@needs_arrow
def test_mask_noise_is_no_contrast() -> None:
    from pixio_robot.pretrain.curation.totals import Totals

    generator = np.random.default_rng(0)
    truth = np.full(5000, 0.7)
    masked = truth[:, None] + 0.1 * generator.standard_normal((5000, 2))
    each = statistics(masked.mean(1).tolist(), spread=masked.std(1, ddof=1), hash=np.arange(5000, dtype=np.uint64))
    totals = Totals()
    totals.add(each, weigh(each, WeightRule()))
    assert totals.contrast < 0.03 < masked.mean(1).std() / 0.7


@needs_arrow
def test_weighted_run_trains_on_drawn_images_and_resumes(
    shards: Path, model_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    compute_scores(score(model_file, images="data/a"))
    compute_weights(curate(temperature=0.5))
    settings = replace(SMALL, images="data", weights="curated/weights.parquet")
    out, whole = pretrain(replace(settings, out="whole"))
    assert "training images have no weight and are never drawn" in caplog.text
    pretrain(replace(settings, out="longer", steps=None, epochs=2.0))
    images = open_images("data", Path("cache"))
    order, _ = pretrain_order(images, settings)
    expected = math.ceil(2 * order.epoch_length / 8)
    assert json.loads(Path("longer/result.json").read_text())["train_state"]["step"] == expected
    Path("moved").mkdir()
    Path("curated/weights.parquet").rename("moved/w.parquet")
    again, reused = pretrain(replace(settings, out="whole", weights="moved/w.parquet"))
    assert again == out and reused.state == whole.state
    compute_weights(curate(cap=4.0, out="other"))
    with pytest.raises(DataError, match="other inputs"):
        pretrain(replace(settings, out="whole", weights="other/weights.parquet"))
    with pytest.raises(DataError, match="other inputs"):
        pretrain(replace(settings, out="whole", weights=None))


def pretrain_order(images: Any, settings: Pretrain) -> Any:
    split = split_images(images, settings.val_images, settings.seed)
    return order_of(images, split, pretrain_values(settings).data, settings.batch, settings.seed)


@needs_arrow
def test_scores_of_other_settings_are_refused_by_name(shards: Path, model_file: Path) -> None:
    compute_scores(score(model_file))
    with pytest.raises(DataError, match="masks 2 instead of 3"):
        compute_scores(score(model_file, masks=3))
    other = Path("other.safetensors")
    save_autoencoder(other, network(seed=1), {"mask_ratio": 0.75, "mask_block": 2})
    with pytest.raises(DataError, match=r"model '\w+' instead of '\w+'"):
        compute_scores(score(other))
    pack("data/a/000.tar", frames(9))
    with pytest.raises(DataError, match=r"a shard of \d+ bytes instead of"):
        compute_scores(score(model_file))
    compute_scores(score(model_file, images="data/b", masks=3, out="scores/more"))
    with pytest.raises(DataError, match="different models or settings"):
        compute_weights(curate())
    head = read_head(Path("scores/a/001.parquet"))
    assert head.scoring == scoring_of(model_file, ScoreConfig(batch=5), "fp32") and not head.cut


@needs_arrow
def test_weights_without_matching_images_are_refused(shards: Path, model_file: Path) -> None:
    compute_scores(score(model_file))
    compute_weights(curate())
    weights = Path("curated/weights.parquet")

    def join(source: Any, file: Path = weights) -> None:
        images = open_images(source, Path("cache"))
        join_weights(images, hold_out(images, 0, seed=0), file, Path("cache"))

    pack("elsewhere/c/000.tar", frames(3))
    pack("elsewhere/a/000.tar", [("longer.txt", b"0" * 900), *frames(8, seed=5)])
    pack("twice/x/a/000.tar", frames(3))
    with pytest.raises(DataError, match=r"has weights for a/000, .* the images are in c/000"):
        join("elsewhere/c")
    with pytest.raises(DataError, match="the images are in no tar shards"):
        join("procedural:9")
    with pytest.raises(DataError, match="packed again"):
        join("elsewhere/a")
    with pytest.raises(DataError, match="both called a/000"):
        join(["data/a", "twice"])
    with pytest.raises(DataError, match="holds no weights"):
        join("data", Path("scores/a/000.parquet"))
    with pytest.raises(DataError, match="no weights at nowhere"):
        join("data", Path("nowhere"))


@needs_arrow
def test_wrong_inputs_are_refused_with_reasons(
    shards: Path, model_file: Path, tiny_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("photos").mkdir()
    Path("photos/one.png").write_bytes(frames(1)[0][1])
    Path("bare.safetensors").write_bytes(b"")
    save_autoencoder(Path("unsaid.safetensors"), network(), {})
    for command, error, words in (
        (score(Path("nowhere")), CheckpointError, "no file nowhere"),
        (score(tiny_file), CheckpointError, "kind 'encoder'; a 'autoencoder' is needed"),
        (score(Path("unsaid.safetensors")), BadInput, "give them, e.g. mask_ratio"),
        (score(model_file, images="photos"), DataError, "no tar shard; pack them"),
        (score(model_file, images="procedural:8"), DataError, "is computed, not stored in tar shards"),
        (score(model_file, images="nowhere"), DataError, "no images at nowhere"),
        (score(model_file, mask_block=3), BadInput, "do not tile a grid"),
        (score(model_file, engine="dask"), UnknownName, "there are: auto, local"),
        (score(model_file, engine="torchrun"), BadInput, "torchrun did not start this"),
    ):
        with pytest.raises(error, match=words):
            compute_scores(command)
    assert not Path("scores").exists()
    compute_scores(score(model_file))
    for wrong, words in (
        (curate(scores="nowhere"), "no scores in nowhere"),
        (curate(scores=None), "give either scores="),
        (curate(official="json"), "give either scores="),
        (curate(scores=None, official="json"), "give the shards too"),
        (curate(scores=None, official="json", images="data"), "no folder json"),
        (curate(temperature=0.0), "temperature=0.0 must be positive"),
        (curate(cap=-1.0), "cap=-1.0 must be a positive"),
        (curate(least_side=320), r"no image would be drawn of 36 \(36 too small\)"),
    ):
        with pytest.raises(PixioError, match=words):
            compute_weights(wrong)
    Path("scores/a/000.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="damaged or no Parquet file"):
        compute_weights(curate())


@needs_arrow
def test_unreadable_shard_does_not_stop_the_others(
    shards: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = score_run.score_shard

    def failing(shard: Path, *arguments: Any) -> ShardStatistics:
        if shard.name == "001.tar":
            raise OSError(5, "Input/output error", str(shard))
        return original(shard, *arguments)

    monkeypatch.setattr(score_run, "score_shard", failing)
    with pytest.raises(DataError, match=r"1 of 4 shards could not be scored, e\.g\. data/a/001\.tar"):
        compute_scores(score(model_file))
    assert len(files("scores")) == 3


@needs_arrow
def test_commands_print_where_files_are(shards: Path, model_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["score", "images=data", f"model={model_file}", "out=scores", "workers=1", "device=cpu"]) == 0
    assert "scores: scores of 4 shards; 36 images scored" in capsys.readouterr().out
    assert run(["curate", "scores=scores", "images=data", "least_side=0", "entropy=null", "out=curated"]) == 0
    said = capsys.readouterr().out
    assert "effective sample size" in said and "[bits]" in said and "curated/weights.parquet" in said


GUIDE = Path(pixio_robot.__file__).resolve().parent.parent / "docs/curation.md"


@pytest.mark.skipif(not GUIDE.is_file(), reason="runs in a checkout")
def test_guide_names_existing_keys_and_columns() -> None:
    text = GUIDE.read_text()
    lines = [line for line in text.splitlines() if line.startswith("pixio-robot ")]
    for line in lines:
        _, command, *overrides = line.split()
        compose(command, overrides)
    assert {line.split()[1] for line in lines} == {"score", "curate", "pretrain"}
    known = {each.name for schema in (Score, Curate, Pretrain) for each in fields(schema)} | {"recipe"}
    named = set(re.findall(r"`([a-z_]+)=[^`]*`", text)) | set(
        re.findall(r"^\| `(\w+)`", text.partition("| key |")[2].partition("| number |")[0], re.MULTILINE)
    )
    assert named <= known and {"entropy", "least_side", "temperature", "cap"} <= named
    columns = set(re.findall(r"`(\w+)`", text.partition("| column |")[2].partition("The file")[0]))
    assert columns >= {*ShardStatistics._fields} - {"shard", "masks", "cut"}
    assert all(f"`{engine}`" in text for engine in SHARD_ENGINES)


def test_missing_extra_is_named(shards: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for work in (lambda: compute_scores(score(model_file)), lambda: compute_weights(curate())):
        with pytest.raises(MissingExtra, match=r"pixio-robot\[curation\]"):
            work()
