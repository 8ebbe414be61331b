"""Laws of dense probes: one truth in three layouts, disjoint splits, measures by hand, heads that learn, head files."""

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import torch

import pixio_robot
from pixio_robot.depth.estimator import load_depth
from pixio_robot.encoders.load import Backbone, load_encoder, save_encoder
from pixio_robot.encoders.pixio import PixioEncoder
from pixio_robot.encoders.preprocessing import Preprocessing
from pixio_robot.errors import BadInput, CheckpointError, DataError, UnknownName
from pixio_robot.pretrain.probes import measure
from pixio_robot.pretrain.probes.commands import DenseSettings, Probe, probe_encoders
from pixio_robot.pretrain.probes.dense_data import DenseSet, Pair, open_dense, split_dense, thinned
from pixio_robot.pretrain.probes.dense_runs import baseline_rows, class_ious, confusion, dense_rows, interval, unit
from pixio_robot.pretrain.probes.dense_training import HeadTraining
from pixio_robot.pretrain.probes.rows import read_rows
from pixio_robot.video import VideoWriter

FAST = HeadTraining(train_images=64, test_images=16, epochs=12, batch=8, dpt_rate=1e-3)
EXAMPLE = Path(pixio_robot.__file__).resolve().parent.parent / "examples" / "depth_from_video.py"


class Shades(DenseSet):
    """Images of grey squares whose depth is a function of their brightness; nothing else tells it."""

    def __init__(self, length: int = 80, kind: str = "depth", hole: float = 0.0) -> None:
        generator = np.random.default_rng(0)
        self.kind, self.groups = kind, np.arange(0, length + 1, 10)
        coarse = generator.integers(20, 236, (length, 4, 4))
        self.grey = coarse.repeat(8, 1).repeat(8, 2).astype(np.uint8)
        self.unknown = generator.random(self.grey.shape) < hole

    def __len__(self) -> int:
        return len(self.grey)

    def read(self, index: int) -> Pair:
        grey = self.grey[index]
        if self.kind == "depth":
            target = np.where(self.unknown[index], 0, 0.5 + grey / 255).astype(np.float32)
        else:
            target = np.where(self.unknown[index], 255, grey > 128).astype(np.uint8)
        return Pair(np.repeat(grey[:, :, None], 3, 2), target)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    path = tmp_path_factory.mktemp("encoder") / "narrow.safetensors"
    network = PixioEncoder(dim=32, depth=4, heads=2, patch=8, image_size=32)
    network.initialise(torch.Generator().manual_seed(0))
    save_encoder(network, path)
    assert load_encoder(path).preprocessing == Preprocessing((32, 32))
    return load_encoder(path)


def _png(values: np.ndarray) -> bytes:
    return cv2.imencode(".png", values)[1].tobytes()


@pytest.mark.parametrize("kind", ["depth", "segmentation"])
def test_three_layouts_hold_the_same_pairs(kind: str, tmp_path: Path) -> None:
    shades = Shades(20, kind, hole=0.1)
    pairs = [shades.read(index) for index in range(20)]
    if kind == "depth":
        pairs = [Pair(image, (np.round(target * 1000) / 1000).astype(np.float32)) for image, target in pairs]
    stored = [(p.target * 1000).round().astype(np.uint16) if kind == "depth" else p.target for p in pairs]
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        for demo in range(2):
            part = pairs[10 * demo : 10 * demo + 10]
            file[f"data/demo_{demo}/obs/top_image"] = np.stack([p.image for p in part])
            file[f"data/demo_{demo}/obs/top_{kind}"] = np.stack([p.target for p in part])[..., None]
    folder, target_name = tmp_path / "folder", "depth" if kind == "depth" else "labels"
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for index, (pair, values) in enumerate(zip(pairs, stored, strict=True)):
            key = f"{index // 10}/{index:02d}"
            ending = "depth.png" if kind == "depth" else "seg.png"
            for name, data in ((f"{key}.png", _png(pair.image)), (f"{key}.{ending}", _png(values))):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            for name, data in ((f"images/{key}.png", _png(pair.image)), (f"{target_name}/{key}.png", _png(values))):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(data)
    for source in (tmp_path / "a.hdf5", folder, tmp_path / "a.tar"):
        images = open_dense(source, kind)
        assert len(images) == 20 and images.groups is not None and images.groups.tolist() == [0, 10, 20]
        for index, pair in enumerate(pairs):
            read = images.read(index)
            assert np.array_equal(read.image, pair.image) and read.target.dtype == pair.target.dtype
            np.testing.assert_allclose(read.target, pair.target, atol=1e-6)


def test_test_images_share_no_sequence_with_training() -> None:
    train, test = split_dense(Shades(80), 0.25, seed=3)
    sequences = [{int(index) // 10 for index in part.indices} for part in (train, test)]  # type: ignore[attr-defined]
    assert not sequences[0] & sequences[1] and len(train) == 60 and len(test) == 20
    few = thinned(test, 7)
    assert len(few) == 7 and unit(few) == "sequences" and few.groups is not None and few.groups[-1] == 7


def test_ious_are_those_computed_by_hand_and_ignored_pixels_do_not_count() -> None:
    truth, prediction = np.array([[0, 0, 1], [1, 255, 255]], np.uint8), np.array([[0, 1, 1], [1, 0, 2]])
    matrix = confusion(prediction, truth, 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 2, 0], [0, 0, 0]]
    ious = class_ious(matrix)
    assert ious[:2].tolist() == pytest.approx([1 / 2, 2 / 3]) and np.isnan(ious[2])
    same = np.ones((5, 1))
    assert interval(same, lambda sums: sums[:, 0] / 5, seed=0) == (1.0, 1.0)


@pytest.mark.parametrize("probe", ["depth_linear", "depth_dpt"])
def test_heads_learn_depth_from_brightness_better_than_the_median_of_each_pixel(
    probe: str, backbone: Backbone, tmp_path: Path
) -> None:
    train, test = split_dense(Shades(hole=0.1), 0.2, seed=0)
    rows = {row.metric: row for row in dense_rows(backbone, probe, train, test, FAST, tmp_path)}
    baseline = {row.metric: row for row in baseline_rows("depth", train, test, FAST) if "pixel" in row.encoder}
    assert rows["rmse [m]"].high < 0.7 * baseline["rmse [m]"].low
    assert rows["rmse [m]"].low <= rows["rmse [m]"].value <= rows["rmse [m]"].high
    assert next((tmp_path / "images").glob(f"{probe}-*.png")).stat().st_size > 1000
    estimator = load_depth(next((tmp_path / "heads").glob(f"{probe}-*")))
    images = np.stack([test.read(index).image for index in range(4)])
    depth = estimator.estimate(images)
    assert depth.shape == (4, 32, 32) and depth.dtype == np.float32
    assert np.array_equal(depth, load_depth(next((tmp_path / "heads").glob("*")), backbone).estimate(images))
    np.testing.assert_allclose(np.stack(list(estimator.stream(images))), depth, atol=1e-5)
    assert estimator.estimate(np.zeros((1, 50, 70, 3), np.uint8)).shape == (1, 50, 70)
    assert estimator.metrics["rmse [m]"] == rows["rmse [m]"].value


def test_a_linear_head_segments_brightness(backbone: Backbone) -> None:
    train, test = split_dense(Shades(kind="segmentation", hole=0.1), 0.2, seed=0)
    rows = dense_rows(backbone, "segmentation_linear", train, test, FAST)
    baseline = baseline_rows("segmentation", train, test, FAST)
    assert rows[0].metric == "mIoU" and rows[0].value > 0.15 + max(r.value for r in baseline if r.metric == "mIoU")


def test_the_same_seed_gives_the_same_numbers(backbone: Backbone) -> None:
    train, test = split_dense(Shades(), 0.2, seed=0)
    brief = HeadTraining(epochs=2, train_images=32, test_images=8)
    first, second = (dense_rows(backbone, "depth_linear", train, test, brief) for _ in range(2))
    assert first == second


def test_unknown_pixels_do_not_matter(backbone: Backbone) -> None:
    class Wild(Shades):
        def read(self, index: int) -> Pair:
            image, target = super().read(index)
            return Pair(image, np.where(target == 0, 90, target).astype(np.float32))

    bounded = HeadTraining(epochs=2, train_images=32, test_images=8, max_depth=2.0)
    clean, wild = (
        dense_rows(backbone, "depth_linear", *split_dense(images, 0.2, seed=0), bounded)
        for images in (Shades(hole=0.3), Wild(hole=0.3))
    )
    assert clean == wild


def test_wrong_inputs_are_refused_with_reasons(backbone: Backbone, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"(?s)1 other files \(notes.txt\).*FILE.hdf5.*images/.*FILE.tar"):
        open_dense(tmp_path, "depth")
    with pytest.raises(UnknownName, match="did you mean 'depth'"):
        open_dense(tmp_path, "dept")
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["data/demo_0/obs/top_image"] = np.zeros((2, 8, 8, 3), np.uint8)
    with pytest.raises(DataError, match="but only top_image"):
        open_dense(tmp_path, "depth")
    with pytest.raises(UnknownName, match="did you mean 'depth_dpt'"):
        dense_rows(backbone, "depth_dtp", Shades(), Shades(), FAST)
    with pytest.raises(BadInput, match="needs images with segmentation"):
        dense_rows(backbone, "segmentation_linear", Shades(), Shades(), FAST)
    with pytest.raises(DataError, match="target is known"):
        dense_rows(backbone, "depth_linear", Shades(20, hole=2), Shades(20), FAST)


def test_a_head_refuses_another_encoder_and_the_example_reads_a_video(backbone: Backbone, tmp_path: Path) -> None:
    train, test = split_dense(Shades(40), 0.25, seed=0)
    dense_rows(backbone, "depth_linear", train, test, HeadTraining(epochs=1), tmp_path)
    head = next((tmp_path / "heads").glob("*"))
    other = PixioEncoder(dim=32, depth=4, heads=2, patch=8, image_size=32)
    with pytest.raises(CheckpointError, match="has the weights"):
        load_depth(head, Backbone(other, "other", Preprocessing((32, 32))))
    with pytest.raises(CheckpointError, match=r"pass it: load_depth\(path, encoder=...\)"):
        load_depth(head, tmp_path / "gone.safetensors")
    with pytest.raises(BadInput, match="uint8"):
        load_depth(head).estimate(np.zeros((2, 8, 8, 3)))
    if not EXAMPLE.is_file():
        return
    with VideoWriter(tmp_path / "in.mp4", 10) as writer:
        for index in range(3):
            writer.add(test.read(index).image)
    words = [head, tmp_path / "in.mp4", tmp_path / "depth.npz", "--device", "cpu"]
    subprocess.run([sys.executable, str(EXAMPLE), *map(str, words)], check=True, capture_output=True)
    with np.load(tmp_path / "depth.npz") as stored:
        assert stored["depth"].shape == (3, 32, 32)


def _demonstrations(path: Path) -> Path:
    shades = Shades(60)
    with h5py.File(path, "w") as file:
        for demo in range(6):
            pairs = [shades.read(index) for index in range(10 * demo, 10 * demo + 10)]
            file[f"data/demo_{demo}/obs/top_image"] = np.stack([pair.image for pair in pairs])
            file[f"data/demo_{demo}/obs/top_depth"] = np.stack([pair.target for pair in pairs])[..., None]
    return path


def test_dense_run_compares_encoders_is_repeatable_and_reuses_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [str(tmp_path / f"{seed}.safetensors") for seed in (0, 1)]
    for seed, name in enumerate(names):
        network = PixioEncoder(dim=32, depth=4, heads=2, patch=8, image_size=32)
        network.initialise(torch.Generator().manual_seed(seed))
        save_encoder(network, name)
    command = Probe(
        encoder=names,
        images=str(_demonstrations(tmp_path / "demos.hdf5")),
        probes=["depth_linear", "depth_dpt"],
        val_images=0.5,
        dense=DenseSettings(train_images=20, test_images=12, epochs=1),
        out=str(tmp_path / "run"),
    )
    out, result = probe_encoders(command)
    rows = read_rows(out / "probe.jsonl")
    measured = {(row.encoder, row.probe) for row in rows}
    assert measured == {(name, probe) for name in names for probe in command.probes} | {
        (name, "depth_baseline") for name in ("training median", "median of each pixel")
    }
    assert all(row.count == 12 and row.low <= row.value <= row.high for row in rows)
    assert [row["probe"] for row in result["tables"]["Headlines"]] == [
        *(probe for probe in command.probes for _ in names),
        *("depth_baseline", "depth_baseline"),
    ]
    assert len(result["images"]) == 5 and all((out / each["file"]).is_file() for each in result["images"])
    heads = result["facts"]["depth heads for pixio_robot.load_depth"].split(", ")
    assert len(heads) == 4
    for head in heads:
        assert load_depth(out / head).estimate(np.zeros((1, 32, 32, 3), np.uint8)).shape == (1, 32, 32)
    assert "3 sequences" in result["facts"]["depth tested on"]
    report = (out / "report.html").read_text()
    assert "depth_linear" in report and "depth_dpt" in report and "median of each pixel" in report

    lines = (out / "probe.jsonl").read_text().splitlines(keepends=True)
    lost = (names[1], "depth_dpt")
    kept = [line for line, row in zip(lines, rows, strict=True) if (row.encoder, row.probe) != lost]
    (out / "probe.jsonl").write_text("".join(kept))
    trained: list[tuple[str, str]] = []

    def counted(backbone, probe, *more):  # type: ignore[no-untyped-def]
        trained.append((backbone.name, probe))
        return dense_rows(backbone, probe, *more)

    monkeypatch.setattr(measure, "dense_rows", counted)
    _, again = probe_encoders(command)
    assert trained == [lost] and again == result


def test_images_without_depth_are_refused_before_any_output(tmp_path: Path) -> None:
    demonstrations = str(_demonstrations(tmp_path / "demos.hdf5"))
    with h5py.File(tmp_path / "flat.hdf5", "w") as file:
        file["data/demo_0/obs/top_image"] = np.zeros((4, 32, 32, 3), np.uint8)
    good = dict(encoder="random:ti", images=demonstrations, probes=["depth_linear"], out=str(tmp_path / "run"))
    for wrong, error, message in (
        (dict(images=str(tmp_path / "flat.hdf5")), DataError, r"no observation \*_image beside \*_depth"),
        (dict(probes=["segmentation_linear"]), DataError, r"no observation \*_image beside \*_segmentation"),
        (dict(probes=["depth_dtp"]), UnknownName, "did you mean 'depth_dpt'"),
        (dict(probes=["auto"]), DataError, r"have no labels.*probes=\[depth_linear,depth_dpt\]"),
        (dict(images=[demonstrations]), BadInput, "one source, a file or a folder, not a list"),
        (dict(dense=DenseSettings(widths="smal")), UnknownName, "small, base, published"),
        (dict(val_images=0.7), BadInput, "share up to 0.5 or a whole number up to 30"),
    ):
        with pytest.raises(error, match=message):
            probe_encoders(Probe(**(good | wrong)))
    assert not (tmp_path / "run").exists()
