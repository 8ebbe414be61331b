"""Verification: passes programs that equal the eager policy, and detects those that do not."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pixio_robot import cli
from pixio_robot.datasets.dataset import open_dataset
from pixio_robot.deploy.eager import eager_policies
from pixio_robot.deploy.manifest import Manifest
from pixio_robot.deploy.recorded import read_recorded
from pixio_robot.deploy.verify import (
    TOLERANCES,
    Verification,
    check_episodes,
    compare_actions,
    compare_episodes,
    compare_tokens,
)
from pixio_robot.encoders.load import save_encoder
from pixio_robot.encoders.pixio import PixioEncoder
from pixio_robot.errors import BadInput
from pixio_robot.metrics import EpisodeRecord


def _rows(outcomes: list[bool], scores: list[float] | None = None) -> list[EpisodeRecord]:
    scores = scores or [100.0 * each for each in outcomes]
    words = dict(task="toy/reach", policy="x", encoder="e", weights="trained", fusion="mean", render="fast")
    return [
        EpisodeRecord(
            **words,
            index=index,
            seed=index,
            start=f"s{index}",
            episode_return=0.0,
            success_any=outcome,
            success_last=outcome,
            success_count=int(outcome),
            score=score,
            length=1,
            wall_s=0.0,
        )
        for index, (outcome, score) in enumerate(zip(outcomes, scores, strict=True))
    ]


@pytest.mark.parametrize(
    ("lost", "gained", "passes"),
    [(0, 0, True), (5, 1, True), (5, 5, True), (6, 0, False), (8, 1, False), (0, 9, True), (30, 24, False)],
)
def test_a_significant_drop_fails(lost: int, gained: int, passes: bool) -> None:
    """Of 100 episodes; more than 5 points fewer, or McNemar's p below 0.05."""
    eager = [True] * 50 + [False] * 50
    ours = [False] * lost + [True] * (50 - lost) + [True] * gained + [False] * (50 - gained)
    verification = Verification("fp32")
    compare_episodes(verification, _rows(ours), _rows(eager))
    assert verification.passed == passes and verification.as_json()["closed_loop_shown"]
    words = " ".join(verification.words)
    assert f"{lost} lost and {gained} gained" in words and "100 episodes show a drop from 6 points on" in words


def test_scores_are_compared_if_there_is_no_success() -> None:
    rng = np.random.default_rng(0)
    eager = rng.uniform(40, 60, 60)
    for change, passes in ((0.0, True), (-1.0, False), (-9.0, False)):
        verification = Verification("fp32")
        ours = eager + change + rng.normal(0, 0.5, 60)
        compare_episodes(verification, _rows([False] * 60, ours.tolist()), _rows([False] * 60, eager.tolist()))
        assert verification.passed == passes


def test_int8_needs_episodes_that_can_show_something() -> None:
    for precision, passes in (("fp32", True), ("int8", False)):
        verification = Verification(precision)
        compare_actions(verification, np.eye(3)[:, None], np.eye(3)[:, None])
        check_episodes(verification, 10)
        assert verification.passed == passes
        hopeless = Verification(precision)
        compare_episodes(hopeless, _rows([False] * 60), _rows([False] * 60))
        assert hopeless.passed == passes and "too rarely" in hopeless.words[-1]
        assert not verification.as_json()["closed_loop_shown"] and not hopeless.as_json()["closed_loop_shown"]


@pytest.mark.parametrize("precision", list(TOLERANCES))
def test_measured_errors_are_correct(precision: str) -> None:
    rng = np.random.default_rng(0)
    tokens, noise = rng.normal(size=(2, 20, 8, 32))
    noise *= np.linalg.norm(tokens) / np.linalg.norm(noise)
    limit = TOLERANCES[precision].token_error
    for share, passes in ((0.9, True), (1.1, False)):
        verification = Verification(precision)
        compare_tokens(verification, "tokens", tokens + share * limit * noise, tokens)
        assert verification.checks[0].value == pytest.approx(share * limit) and verification.checks[0].passed == passes
    turned = tokens.copy()
    turned[7, 3] *= -1
    verification = Verification(precision)
    compare_tokens(verification, "tokens", turned, tokens)
    assert verification.checks[1].value == pytest.approx(-1) and not verification.passed
    verification = Verification(precision)
    compare_actions(verification, np.full((4, 1, 3), np.nan), rng.normal(size=(4, 1, 3)))
    assert not verification.passed


def test_comparison_frames_come_from_demonstrations_and_recordings(
    toy_file: Path, toy_checkpoint: Path, tmp_path: Path
) -> None:
    """Each clip is part of one demonstration."""
    manifest, _, _ = eager_policies(str(toy_checkpoint), torch.device("cpu"))
    assert [(each.name, each.shape) for each in manifest.observation] == [("rgb", (256, 256, 3)), ("proprio", (3,))]
    demos = open_dataset(toy_file)
    comparison, calibration = (read_recorded(str(toy_file), manifest, 32, shift) for shift in (0.5, 0.0))
    assert comparison.frames == calibration.frames == 32 and comparison.actions is not None
    proprio = demos.column("proprio")
    ends = set(np.cumsum(demos.lengths).tolist())
    for recorded in (comparison, calibration):
        for clip in recorded.clips:
            wanted = np.stack([each["proprio"] for each in clip])
            first_rows = [row for row in range(len(proprio) - 7) if np.array_equal(proprio[row : row + 8], wanted)]
            assert any(not ends & set(range(row + 1, row + 8)) for row in first_rows)
    rows = np.flatnonzero((proprio == comparison.clips[1][3]["proprio"]).all(1))
    assert any(np.array_equal(comparison.actions[8 + 3], demos.column("action")[row]) for row in rows)
    firsts = [[each[0]["proprio"].tolist() for each in recorded.clips] for recorded in (comparison, calibration)]
    assert firsts[0] != firsts[1], "int8 is not judged on what it was calibrated on"

    folder = tmp_path / "recording"
    words = ["camera=task:toy/reach", "width=64", "frames=9", "render=fast", "depth=false", f"out={folder}"]
    assert cli.run(["record", *words]) == 0
    recorded = read_recorded(str(folder), manifest, 8, 0.0)
    assert recorded.frames == 8 and recorded.actions is None
    assert recorded.clips[0][0]["rgb"].shape == (256, 256, 3) and recorded.clips[0][0]["rgb"].std() > 1
    assert all(each["proprio"].any() for each in recorded.clips[0]), "recorded from a task, which knows it"
    with pytest.raises(BadInput, match="which an encoder alone is compared on"):
        read_recorded(str(folder), replace(manifest, kind="encoder"), 8, 0.0)


def test_an_empty_comparison_does_not_pass() -> None:
    assert not Verification("fp32").passed


def _encoder(path: Path, outliers: bool) -> Path:
    """Two blocks; with outliers, six channels of every norm inside them come out forty times as large."""
    encoder = PixioEncoder(dim=96, depth=2, heads=3, image_size=64)
    encoder.initialise(torch.Generator().manual_seed(0))
    if outliers:
        for block in encoder.blocks:
            for norm in (block.norm1, block.norm2):
                norm.weight.data[5::16] *= 40
    save_encoder(encoder, path)
    return path


@pytest.mark.parametrize("target", ["onnx", pytest.param("openvino", marks=pytest.mark.slow)])
def test_verification_refuses_int8_that_outliers_break(
    target: str, toy_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same network, precision and calibration; large channels leave the others few of the 256 levels."""
    for package in {"onnx": ("onnxscript", "onnxruntime"), "openvino": ("onnxscript", "nncf")}[target]:
        pytest.importorskip(package)
    errors = {}
    for outliers in (False, True):
        name = _encoder(Path(f"encoder-{outliers}.safetensors"), outliers)
        words = [f"encoder={name}", "image_size=256", f"demos={toy_file}", "frames=16", "calibration_frames=24"]
        words.append(f"target={target}")
        status = cli.run(["export", *words, "precision=int8", f"out={outliers}", "threads=1"])
        assert status == int(outliers), capsys.readouterr()
        where = Path("True-refused.json") if outliers else Path("False/verification.json")
        verification = json.loads(where.read_text())
        errors[outliers] = verification["checks"][0]["value"]
    assert not Path("True").exists() and errors[True] > 2 * errors[False]
    assert "refused" in capsys.readouterr().out
    assert Manifest.read("False").precision == "int8"


def test_verify_detects_a_changed_program(
    toy_bundle: Path, toy_checkpoint: Path, toy_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bundle whose hashes are right and whose weights are not."""
    import onnx
    from onnx import numpy_helper

    bundle = tmp_path / "bundle"
    shutil.copytree(toy_bundle, bundle)
    words = [f"bundle={bundle}", f"checkpoint={toy_checkpoint}", f"demos={toy_file}", "frames=16", "threads=1"]
    assert cli.run(["verify", *words, "episodes=2", "envs=1"]) == 0, capsys.readouterr().err
    assert "2 episodes are too few to show a drop" in " ".join(
        json.loads((bundle / "verification.json").read_text())["words"]
    )
    assert len((bundle / "episodes.jsonl").read_text().splitlines()) == 2

    model = onnx.load(str(bundle / "program.onnx"))
    weights = next(each for each in model.graph.initializer if each.name.endswith("fc1.bias"))
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) + np.float32(0.1), weights.name))
    onnx.save(model, str(bundle / "program.onnx"))
    manifest = Manifest.read(bundle, check=False)
    manifest.write(bundle, ["program.onnx"])
    assert cli.run(["verify", *words, "episodes=2"]) == 1
    found = json.loads((bundle / "verification.json").read_text())
    assert not found["passed"] and "no episodes were run" in found["words"][-1]
    assert not (bundle / "episodes.jsonl").exists()

    (tmp_path / "other.safetensors").write_bytes(toy_checkpoint.read_bytes() + b"x")
    words[1] = f"checkpoint={tmp_path / 'other.safetensors'}"
    assert cli.run(["verify", *words]) == 1 and "another checkpoint" in capsys.readouterr().err
