"""Laws of the probes: what they must find, must not find, and must not be moved by."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pixio_robot.depth.heads import DPTHead, LinearHead, dpt_blocks, metric_depth, token_map
from pixio_robot.encoders.load import Backbone, save_encoder
from pixio_robot.encoders.pixio import PixioEncoder
from pixio_robot.encoders.preprocessing import Preprocessing
from pixio_robot.errors import BadInput, DataError, UnknownName
from pixio_robot.metrics import mcnemar, success_rate
from pixio_robot.pretrain.images.image_set import Sequences
from pixio_robot.pretrain.probes import labelled as labelled_module
from pixio_robot.pretrain.probes.classification import PROBES, Subject, knn_rows, linear_rows
from pixio_robot.pretrain.probes.commands import Probe, probe_encoders
from pixio_robot.pretrain.probes.dense import depth_errors, silog
from pixio_robot.pretrain.probes.features import Compute, Features, encode
from pixio_robot.pretrain.probes.labelled import Part, ProbeImages, open_labelled
from pixio_robot.pretrain.probes.linear import linear_probe
from pixio_robot.pretrain.probes.rows import read_rows

COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}


def _paint(folder: Path, classes: tuple[str, ...] = tuple(COLOURS), count: int = 12, seed: int = 0) -> Path:
    """Write noisy images of one colour a class."""
    generator = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            image = generator.normal(COLOURS[name], 60, (32, 40, 3)).clip(0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / name / f"{number:02d}.png"), image[..., ::-1])
    return folder


def _backbone(seed: int = 0) -> Backbone:
    network = PixioEncoder(dim=32, depth=3, heads=2, patch=8, image_size=32, cls_tokens=4)
    network.initialise(torch.Generator().manual_seed(seed))
    backbone = Backbone(network, "tiny", Preprocessing(size=(32, 32)), weights="random")
    return backbone.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("encoders")
    for seed in (0, 1):
        save_encoder(_backbone(seed), folder / f"{seed}.safetensors")
    return [str(folder / f"{seed}.safetensors") for seed in (0, 1)]


def _features(cls: torch.Tensor, labels: torch.Tensor) -> Features:
    count = len(cls)
    raw = cls.mean(1)
    return Features(torch.ones(count, dtype=torch.bool), labels, raw, cls, raw[:, :0], cls[:, :0])


def test_probe_finds_the_token_that_encodes_the_label() -> None:
    cls = torch.randn(600, 8, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(600) % 4
    cls[torch.arange(600), 5, labels] += 8
    training, test = _features(cls[:400], labels[:400]), _features(cls[400:], labels[400:])
    rows = {row.token: row for row in linear_rows(Subject("made", "none", 3), training, test, seed=0).rows}
    assert list(rows) == ["mean", *map(str, range(8)), "concat"]
    assert rows["5"].value > 0.97 and rows["concat"].value > 0.9
    assert all(row.low < 0.4 for token, row in rows.items() if token in "01234678")
    assert all(row.low <= row.value <= row.high and row.count == 200 for row in rows.values())


def test_knn_is_right_on_separate_classes_and_at_chance_on_noise() -> None:
    noise = torch.randn(400, 1, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(400) % 4
    signal = noise.clone()
    signal[torch.arange(400), 0, labels] += 20
    for features, low, high in ((signal, 1.0, 1.0), (noise, 0.1, 0.4)):
        measured = knn_rows(
            Subject("made", "none", -1),
            _features(features[:150], labels[:150]),
            _features(features[150:], labels[150:]),
            seed=0,
        )
        assert [row.metric for row in measured.rows] == ["accuracy@10", "accuracy@20", "accuracy@100"]
        assert all(low <= row.value <= high for row in measured.rows)
        assert measured.rows[0].value == pytest.approx(float(measured.right.float().mean()))


def test_paired_tests_and_intervals_match_known_values() -> None:
    first = [True] * 40 + [False] * 5 + [True] * 15
    second = [True] * 40 + [True] * 5 + [False] * 15
    test = mcnemar(first, second)
    assert (test.only_first, test.only_second) == (15, 5)
    assert test.p == pytest.approx(2 * sum((1, 20, 190, 1140, 4845, 15504)) / 2**20)  # two binomial tails
    assert mcnemar(first, first).p == 1.0
    rate = success_rate([True] * 90 + [False] * 10)
    assert (rate.low, rate.high) == (pytest.approx(0.8256, abs=1e-4), pytest.approx(0.9448, abs=1e-4))


def test_features_match_the_encoder_and_skip_damaged_images(tmp_path: Path) -> None:
    folder = _paint(tmp_path / "data", count=3)
    (folder / "red" / "01.png").write_bytes(b"no image")
    part = open_labelled(ProbeImages(str(folder), test=str(folder))).training
    backbone = _backbone()
    features = encode(backbone, part, layers=True, compute=Compute())
    names = ["/".join(Path(part.images.name(index)).parts[-2:]) for index in part.indices.tolist()]
    assert [name for name, kept in zip(names, features.kept.tolist(), strict=True) if not kept] == ["red/01.png"]
    assert features.cls.shape == (8, 4, 32) and features.layers.shape == (8, 3, 32) and len(features.labels) == 8
    assert torch.allclose(features.layers[:, -1], features.cls.mean(1), atol=1e-5)
    green = cv2.imread(str(folder / "green" / "00.png"))[:, 4:36, ::-1].copy()
    pixels = backbone.preprocess(torch.from_numpy(green)[None])
    at = [name for name, kept in zip(names, features.kept.tolist(), strict=True) if kept].index("green/00.png")
    assert torch.allclose(backbone(pixels).cls[0], features.cls[at], atol=1e-5)
    assert torch.allclose(backbone(pixels, normed=False).cls[0].mean(0), features.raw[at], atol=1e-5)


def test_probe_run_separates_colours_is_repeatable_and_reuses_results(
    tmp_path: Path, encoders: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _paint(tmp_path / "data")
    command = Probe(encoder=encoders, images=str(folder), val_images=0.25, layers="all")
    out, result = probe_encoders(command)
    rows = read_rows(out / "probe.jsonl")
    assert {(row.encoder, row.probe) for row in rows} == {
        (name, probe) for name in [*encoders, "pixels"] for probe in ("knn", "linear")
    }
    best = max(row.value for row in rows if row.encoder == encoders[0] and row.probe == "linear")
    assert best == 1.0 and all(row.count == 9 for row in rows)
    assert len(result["tables"]["Paired comparisons"]) == 6 and result["tables"]["Headlines"][0]["weights"] == "random"
    assert (out / "figure.png").stat().st_size > 10_000 and "Paired comparisons" in (out / "report.html").read_text()

    again, _ = probe_encoders(Probe(**(vars(command) | {"out": "elsewhere"})))
    assert (again / "probe.jsonl").read_bytes() == (out / "probe.jsonl").read_bytes()

    lines = (out / "probe.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line, row in zip(lines, rows, strict=True) if (row.encoder, row.probe) != (encoders[1], "linear")]
    (out / "probe.jsonl").write_text("".join(kept))
    measured: list[tuple[str, str]] = []
    for probe, function in dict(PROBES).items():

        def counted(subject, *more, probe=probe, function=function):  # type: ignore[no-untyped-def]
            measured.append((subject.encoder, probe))
            return function(subject, *more)

        monkeypatch.setitem(PROBES, probe, counted)
    probe_encoders(command)
    assert measured == [(encoders[1], "linear")] and read_rows(out / "probe.jsonl") == rows


def test_test_images_share_no_sequence_with_training(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clips(Sequences):
        fingerprint = "clips"
        classes = ("a", "b")

        def read(self, index: int) -> np.ndarray:
            return np.zeros((8, 8, 3), np.uint8)

        def name(self, index: int) -> str:
            return str(index)

    clips = Clips([7] * 20)
    clips.labels = (np.arange(140) % 2).astype(np.int32)
    monkeypatch.setattr(labelled_module, "open_images", lambda *_: clips)
    split = open_labelled(ProbeImages("clips", val_images=30))

    def sequences(part: Part) -> set[int]:
        return {clips.locate(index)[0] for index in part.indices.tolist()}

    assert len(split.test.indices) == 30 and not sequences(split.training) & sequences(split.test)
    other = open_labelled(ProbeImages("clips", val_images=30, seed=1))
    assert sequences(other.test) != sequences(split.test)


def test_labels_are_matched_by_class_name(tmp_path: Path) -> None:
    training = _paint(tmp_path / "training", count=2)
    split = open_labelled(ProbeImages(str(training), test=str(_paint(tmp_path / "t", ("green", "red")))))
    for part in (split.training, split.test):
        names = [Path(part.images.name(index)).parent.name for index in part.indices.tolist()]
        assert [split.classes[label] for label in part.labels.tolist()] == names


def test_impossible_probes_are_refused_with_one_message(tmp_path: Path, encoders: list[str]) -> None:
    training = str(_paint(tmp_path / "training", ("red", "green"), count=2))
    test = str(_paint(tmp_path / "test", ("red", "blue"), count=2))
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in Path(training, "red").iterdir():
        (flat / file.name).write_bytes(file.read_bytes())
    good = dict(encoder=encoders[0], images=training, test=training)
    for wrong, error, message in (
        (dict(images=str(flat)), DataError, "2 images of images=.*have no labels.*labelled sources are"),
        (dict(test=str(flat)), DataError, "of test=.*have no labels"),
        (dict(test=test), DataError, "1 class.* that no training image has: blue.*red, *green|green, *red"),
        (
            dict(probes=["liner"]),
            UnknownName,
            "no probe 'liner'; there are: auto, knn, linear, depth_.*did you mean 'linear'",
        ),
        (dict(probes=[]), BadInput, "there are: auto, knn, linear"),
        (dict(encoder="rondom:ti"), UnknownName, "no encoder 'rondom:ti'"),
        (dict(encoder=[]), BadInput, "must name an encoder"),
        (dict(layers="first"), UnknownName, "last, all"),
        (dict(test=None, val_images=0.9), BadInput, "share up to 0.5 or a whole number up to 2"),
    ):
        with pytest.raises(error, match=message):
            probe_encoders(Probe(**(good | wrong)))


def test_linear_probe_separates_classes_and_is_at_chance_on_noise() -> None:
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
    with pytest.raises(BadInput, match="use the linear head"):
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


def test_silog_is_scale_invariant_with_variance_1_and_ignores_unknown_pixels() -> None:
    truth = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0)) + 0.5
    assert float(silog(truth, truth)) < 1e-5
    assert float(silog(3 * truth, truth, variance=1.0)) < 1e-3 < float(silog(3 * truth, truth))
    truth[:, 0] = 0
    other = truth.clone()
    other[:, 0] = 5
    assert torch.equal(silog(truth + 1, truth), silog(torch.where(truth > 0, truth + 1, other), truth))
