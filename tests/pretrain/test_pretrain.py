"""Pre-training: learning, reproducibility, exact resume, and failures of users and machines."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pixio_robot.cli import run
from pixio_robot.encoders.load import load_encoder
from pixio_robot.encoders.token_statistics import class_token_cosine, effective_rank, mean_off_diagonal
from pixio_robot.errors import BadInput, CheckpointError, DataError, Stopped, UnknownName
from pixio_robot.pretrain import train
from pixio_robot.pretrain.commands import Pretrain, pretrain, pretrain_cost, pretrain_values
from pixio_robot.pretrain.mae import MaskedAutoencoder
from pixio_robot.pretrain.masking import PatchMask
from pixio_robot.pretrain.networks import load_autoencoder, new_autoencoder
from pixio_robot.pretrain.probes.knn import knn_accuracy
from pixio_robot.training.guard import Guard
from pixio_robot.training.optim import weight_decay_groups

WORDS = (
    *("encoder=32x2x2", "decoder=32x2x2", "batch=8", "steps=8", "val_images=8", "save_every=4", "log_every=2"),
    *("valid_every=8", "visualize_every=8", "workers=0", "cache=cache", "device=cpu"),
)


def small(**changes: object) -> Pretrain:
    """Return settings of a run of a second."""
    settings = Pretrain(
        images="procedural:64",
        val_images=8,
        encoder="32x2x2",
        decoder="32x2x2",
        patch=8,
        image_size=64,
        mask_block=2,
        batch=8,
        steps=8,
        lr=1e-3,
        save_every=4,
        log_every=2,
        valid_every=8,
        visualize_every=8,
        workers=0,
        cache="cache",
        device="cpu",
    )
    return replace(settings, **changes)  # type: ignore[arg-type]


def new_network(**changes: object) -> MaskedAutoencoder:
    return new_autoencoder(pretrain_values(small(**changes)).network, seed=0)


def weights(out: Path | str) -> dict[str, Tensor]:
    return load_file(Path(out) / "encoder.safetensors")


def difference(one: Path | str, two: Path | str) -> float:
    a, b = weights(one), weights(two)
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def rows(out: Path | str) -> list[dict[str, float]]:
    return [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]


def test_run_folder_is_complete() -> None:
    out, _ = pretrain(small(out="run"))
    encoder = load_encoder(out / "encoder.safetensors")
    assert encoder.token_shape.cls == 8 and encoder.weights == "trained" and encoder.preprocessing.size == (64, 64)
    whole = load_autoencoder(out)
    assert all(torch.equal(value, weights(out)[name]) for name, value in whole.encoder.state_dict().items())
    logged = {name for row in rows(out) for name in row}
    assert {"train/loss", "valid/loss", "train/lr", "train/gradient_norm", "time/images_per_s"} <= logged
    assert {"time/waiting_for_data", "time/tflops_per_device", "time/share_of_peak", "time/memory_gb"} <= logged
    assert {"features/class_token_cosine", "features/effective_rank", "pixels/knn_accuracy"} <= logged
    assert all(np.isfinite(value) for row in rows(out) for value in row.values() if not isinstance(value, str))
    page = (out / "report.html").read_text()
    assert "data:image/png;base64," in page and "leaks" not in page and "validation loss" in page.lower()
    assert {path.name for path in (out / "checkpoints").iterdir()} == {"step-00000004", "step-00000008"}
    assert not (out / "unreadable.jsonl").exists() and list((out / "tensorboard").rglob("events*"))


def test_same_seed_gives_the_same_weights() -> None:
    for name, changes in (("one", {}), ("two", {}), ("other", {"seed": 1})):
        pretrain(small(out=name, drop_path=0.3, **changes))
    assert difference("one", "two") == 0 < difference("one", "other")


@pytest.mark.parametrize("workers", [0, 1])
def test_resumed_training_equals_uninterrupted(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropped paths, accumulation, workers and an epoch's end among them."""
    settings = small(drop_path=0.3, micro_batch=4, workers=workers, steps=10)
    pretrain(replace(settings, out="whole"))
    original = train.Guard.step
    calls = []

    def stopping_step(self: Guard, norm: Tensor, step: int) -> Tensor:
        calls.append(step)
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, norm, step)

    monkeypatch.setattr(train.Guard, "step", stopping_step)
    with pytest.raises(Stopped, match="SIGTERM after step 6 of 10"):
        pretrain(replace(settings, out="parts"))
    monkeypatch.setattr(train.Guard, "step", original)
    assert "step-00000006" in {path.name for path in Path("parts/checkpoints").iterdir()}
    pretrain(replace(settings, out="parts"))
    assert difference("whole", "parts") == 0
    assert [row["step"] for row in rows("parts")] == [row["step"] for row in rows("whole")]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_speed_settings_do_not_change_weights() -> None:
    pretrain(small(out="one"))
    pretrain(small(out="two", activation_checkpointing="all", workers=2, log_every=3, keep_last=1))
    assert difference("one", "two") == 0
    pretrain(small(out="three", micro_batch=2))
    assert difference("one", "three") < 5e-5


def test_init_from_resizes_to_another_image_size() -> None:
    first, _ = pretrain(small(steps=40, out="first"))
    started = new_network(init_from=str(first), image_size=128, patch=8)
    source = load_autoencoder(first)
    kept = {name for name in source.state_dict() if not name.endswith("pos_embed")}
    assert all(torch.equal(started.state_dict()[name], source.state_dict()[name]) for name in kept)
    assert started.encoder.pos_embed.shape[1] == 8 + 16 * 16
    again = started.encoder.positions(8, 8)  # sixteen rows and columns thinned to eight
    assert torch.nn.functional.cosine_similarity(again, source.encoder.pos_embed, dim=-1).mean() > 0.9


def test_init_from_resizes_to_another_patch() -> None:
    first, _ = pretrain(small(steps=40, out="first"))
    source, started = (
        load_autoencoder(first),
        new_network(init_from=str(first), image_size=128, patch=16),
    )
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    larger = torch.nn.functional.interpolate(pixels, scale_factor=2, mode="bilinear")
    # patch by patch enlarging is exact; across patches' borders bilinear resizing mixes neighbours a little
    apart = pixels.reshape(2, 3, 8, 8, 8, 8).transpose(3, 4).reshape(-1, 3, 8, 8)
    enlarged = torch.nn.functional.interpolate(apart, scale_factor=2, mode="bilinear").reshape(2, 3, 8, 8, 16, 16)
    exact = enlarged.transpose(3, 4).reshape(2, 3, 128, 128)
    with torch.inference_mode():
        before, after, near = source.encoder(pixels), started.encoder(exact), started.encoder(larger)
        assert torch.allclose(before.cls, after.cls, atol=1e-4) and torch.allclose(
            before.patches, after.patches, atol=1e-4
        )
        assert torch.nn.functional.cosine_similarity(before.patches, near.patches, dim=-1).mean() > 0.9
        mask = PatchMask.random((8, 8), 0.75, 2, [torch.Generator().manual_seed(seed) for seed in (0, 1)])
        small_patch = source.decoder(source.encoder(pixels, visible=mask.visible), mask).reshape(-1, 8, 8, 3)
        large_patch = started.decoder(started.encoder(exact, visible=mask.visible), mask).reshape(-1, 16, 16, 3)
    wanted = torch.nn.functional.interpolate(small_patch.permute(0, 3, 1, 2), scale_factor=2, mode="bilinear")
    assert torch.allclose(large_patch, wanted.permute(0, 2, 3, 1), atol=1e-4)


def test_init_from_lowers_the_initial_loss() -> None:
    first, _ = pretrain(small(steps=120, lr=3e-3, out="first"))
    losses = {}
    for name, start in (("fresh", None), ("whole", str(first)), ("encoder", f"{first}/encoder.safetensors")):
        out, _ = pretrain(small(init_from=start, out=name))
        losses[name] = next(row["valid/loss"] for row in rows(out) if row["step"] == 0)
    assert losses["whole"] < 0.95 * losses["fresh"] and losses["whole"] < losses["encoder"]


def test_initial_weights_that_do_not_match_are_refused() -> None:
    first, _ = pretrain(small(steps=2, out="first"))
    with pytest.raises(CheckpointError, match="dim 32, not 64"):
        pretrain(small(init_from=str(first), encoder="64x2x2"))
    with pytest.raises(CheckpointError, match="no file"):
        pretrain(small(init_from="nowhere/autoencoder.safetensors"))
    pretrain(small(init_from=str(first), out="second"))
    pretrain(small(steps=3, seed=1, out="other"))
    with pytest.raises(DataError, match="other"):
        pretrain(small(init_from="other", out="second"))


def test_a_finished_run_is_reused() -> None:
    _, first = pretrain(small(out="run"))
    before = Path("run", "encoder.safetensors").stat().st_mtime_ns
    _, again = pretrain(small(out="run"))
    assert Path("run", "encoder.safetensors").stat().st_mtime_ns == before
    assert again.numbers["valid/loss"] == first.numbers["valid/loss"]


def test_a_run_killed_before_its_report_gets_one() -> None:
    pretrain(small(out="run"))
    for name in ("report.html", "result.json"):
        (Path("run") / name).unlink()
    pretrain(small(out="run"))
    assert "Validation loss" in Path("run/report.html").read_text()


def test_checkpoint_that_cannot_be_renamed_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    original = os.replace

    def refuse(old: Path, new: Path) -> None:
        if Path(old).is_dir():
            raise OSError(5, "input/output error")
        original(old, new)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(CheckpointError, match=r"could not be renamed.*input/output error"):
        pretrain(small(out="run"))


def test_checkpoints_are_thinned() -> None:
    pretrain(small(out="run", save_every=1, keep_last=2, keep_every=3))
    kept = sorted(int(path.name[5:]) for path in Path("run/checkpoints").iterdir())
    assert kept == [3, 6, 7, 8]


def test_other_settings_are_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    pretrain(small(out="run"))
    with pytest.raises(DataError, match="encoder '32x2x2' instead of '64x2x2'"):
        pretrain(small(out="run", encoder="64x2x2"))
    words = ["pretrain", "images=procedural:64", "lr=0.001", "out=run", *WORDS, "mask_ratio=0.5"]
    assert run(words) == 1
    assert "mask_ratio 0.75 instead of 0.5" in capsys.readouterr().err


def test_other_images_are_refused(tmp_path: Path) -> None:
    import cv2

    def write(name: str) -> None:
        (tmp_path / "photos").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "photos" / name), np.random.default_rng(0).integers(0, 255, (80, 80, 3), np.uint8))

    for number in range(20):
        write(f"{number}.png")
    pretrain(small(out="run", images="photos", val_images=4))
    write("more.png")
    with pytest.raises(DataError, match="files that it reads have changed"):
        pretrain(small(out="run", images="photos", val_images=4))


def test_a_damaged_checkpoint_is_named() -> None:
    pretrain(small(out="run", steps=6))
    last = Path("run/checkpoints/step-00000006")
    for file in last.glob("*.distcp"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="step-00000006 cannot be read"):
        pretrain(small(out="run", steps=6))


def test_remains_of_a_killed_write_are_removed() -> None:
    left = Path("run/checkpoints/.step-00000004")
    left.mkdir(parents=True)
    pretrain(small(out="run"))
    assert not left.exists() and Path("run/checkpoints/step-00000004/state.json").is_file()


def test_unreadable_images_are_counted_and_listed(tmp_path: Path) -> None:
    import cv2

    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(24):
        cv2.imwrite(str(folder / f"{number:02d}.png"), np.full((80, 80, 3), 10 * number, np.uint8))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no image")
    _, result = pretrain(small(out="run", images=str(folder), steps=12, val_images=2))
    listed = [json.loads(line) for line in Path("run/unreadable.jsonl").read_text().splitlines()]
    assert [Path(each["name"]).name for each in listed] == ["broken.jpg"]
    assert result.numbers["data/unreadable_images"] == 1


class Poisoned(train.Guard):
    """Spoils the gradients of some steps."""

    bad: tuple[int, ...] = ()

    def step(self, norm: Tensor, step: int) -> Tensor:
        return super().step(torch.where(torch.tensor(step in self.bad), torch.nan, norm), step)


def test_non_finite_step_is_skipped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "Guard", Poisoned)
    monkeypatch.setattr(Poisoned, "bad", (2, 5))
    out, result = pretrain(small(out="run"))
    assert result.state.skipped == 2 and rows(out)[-2]["data/skipped_steps"] == 2
    assert all(bool(torch.isfinite(each).all()) for each in weights(out).values())


def test_several_non_finite_steps_end_the_run_and_save_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "Guard", Poisoned)
    monkeypatch.setattr(Poisoned, "bad", (4, 5, 6, 7))
    with pytest.raises(DataError, match=r"4 steps in a row were not finite, from step 4;.*clip"):
        pretrain(small(out="run"))
    kept = load_file("run/nonfinite-step-00000004-rank-0.safetensors")
    assert kept["images"].shape == (8, 64, 64, 3)
    assert list(Path("run/checkpoints").iterdir()) == [Path("run/checkpoints/step-00000004")]


# settings


def test_vectors_do_not_decay_and_tables_do() -> None:
    model = new_network()
    decayed, others = (group["params"] for group in weight_decay_groups(model, 0.05))
    names = {id(each): name for name, each in model.named_parameters()}
    assert {names[id(each)].rpartition(".")[2] for each in others} == {"bias", "weight"}
    assert all("norm" in names[id(each)] or names[id(each)].endswith("bias") for each in others)
    assert {"encoder.cls_token", "encoder.pos_embed", "decoder.mask_token"} <= {names[id(each)] for each in decayed}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mask_ratio": 0.0}, "between 0 and 1"),
        ({"mask_ratio": 1.0}, "between 0 and 1"),
        ({"mask_block": 3}, "nearest that do: 2 or 4"),
        ({"image_size": 60}, "use 56 or 64"),
        ({"steps": None}, "set exactly one"),
        ({"epochs": 2.0}, "set exactly one"),
        ({"decoder": "33x2x2"}, "multiple of 4"),
        ({"crop_scale": [0.5]}, "two shares"),
        ({"warmup": 1.5}, "from 0 to 1"),
        ({"clip": 0.0}, "positive"),
        ({"encoder": "tu"}, "no encoder 'tu'"),
        ({"parallel": "dpp"}, "did you mean 'ddp'"),
        ({"activation_checkpointing": "some"}, "none, decoder, all"),
        ({"positions": "learned"}, "sincos, normal"),
        ({"weight_decay": -1.0}, "0 or positive"),
        ({"steps": None, "epochs": float("inf")}, "finite"),
        ({"images": 5}, "must name a source"),
    ],
)
def test_impossible_settings_are_refused_before_any_work(changes: dict[str, object], words: str) -> None:
    with pytest.raises((BadInput, UnknownName), match=words):
        pretrain_values(small(**changes))


@pytest.mark.parametrize("recipe", ["laptop", "ti", "s", "b", "h-in21k", "5b-web"])
def test_every_recipe_is_valid(recipe: str) -> None:
    from pixio_robot.cli import compose

    settings = compose("pretrain", ["images=procedural", f"recipe={recipe}", "plan=true"])
    assert pretrain_values(settings).shape.ratio == 0.75
    rows_, assumptions = pretrain_cost(replace(settings, plan_device="h100")).rows, pretrain_cost(settings).assumptions
    said = dict(rows_)
    assert {"training", "memory in total", "speed", "time"} <= said.keys() and len(assumptions) >= 4
    assert float(said["memory in total"].split()[0]) > 0


def test_cost_of_the_published_settings_matches_the_reference() -> None:
    from pixio_robot.cli import compose

    said = dict(pretrain_cost(compose("pretrain", ["images=x", "recipe=h-in21k", "plan_device=h100"])).rows)
    assert "631.0 M" in said["encoder"] and "5,259,264,000 images" in said["length"] and "2.36e+21" in said["training"]
    for devices in (8, 256):  # inside nodes of 8
        sharded = ["images=x", "recipe=5b-web", "plan_device=h100", f"plan_devices={devices}"]
        assert "11.1 GB" in dict(pretrain_cost(compose("pretrain", sharded)).rows)["memory: weights and optimiser"]


# what is measured


def test_knn_accuracy_is_right_on_clusters_and_at_chance_on_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 16, generator=generator) * 5
    labels = torch.arange(200) % 4
    points = centres[labels] + torch.randn(200, 16, generator=generator)
    assert knn_accuracy(points[:120], labels[:120], points[120:], labels[120:]) == 1.0
    noise = torch.randn(200, 16, generator=generator)
    assert knn_accuracy(noise[:120], labels[:120], noise[120:], labels[120:]) < 0.5


def test_statistics_of_tokens() -> None:
    rng = np.random.default_rng(0)
    same = np.repeat(rng.normal(size=(5, 1, 8)), 3, axis=1)
    assert mean_off_diagonal(class_token_cosine(same)) == pytest.approx(1.0)
    corners = np.broadcast_to(np.eye(3, 8), (5, 3, 8))
    assert mean_off_diagonal(class_token_cosine(corners)) == pytest.approx(0.0)
    line = rng.normal(size=(50, 1)) * rng.normal(size=(1, 8))
    assert effective_rank(line) == pytest.approx(1.0, abs=1e-6)
    assert 7.5 < effective_rank(rng.normal(size=(5000, 8))) <= 8.0


# learning


@pytest.mark.slow
def test_loss_falls_on_256_samples() -> None:
    """Within 150 steps the loss falls below 0.75; guessing each patch's mean would leave it at 1."""
    settings = small(
        images="procedural:256",
        encoder="128x6x4",
        decoder="128x4x4",
        batch=64,
        steps=150,
        val_images=1,
        lr=2e-3,
        clip=1.0,
        crop_scale=[1.0, 1.0],
        log_every=30,
        valid_every=150,
        visualize_every=150,
        save_every=150,
        out="run",
    )
    _, result = pretrain(settings)
    assert result.numbers["train/loss"] < 0.75


# several processes


def launch(out: str, *words: str, restarts: int = 0, wait: bool = True) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", str(restarts), "-m", "pixio_robot", "pretrain"]
    command += ["images=procedural:64", "lr=0.001", "clip=null", f"out={out}", *WORDS, *words]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    if wait:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
    return process


@pytest.mark.parametrize("parallel", ["ddp", "fsdp", pytest.param("hsdp", marks=pytest.mark.slow)])
def test_two_processes_match_one(parallel: str) -> None:
    """With two passes per gradient exchange, an odd number of validation images, and `cls_only`."""
    out, _ = pretrain(small(out="one", val_images=7, cls_only=0.5))
    launch("two", f"parallel={parallel}", "micro_batch=2", "val_images=7", "cls_only=0.5")
    assert difference("one", "two") < 5e-5
    ours, theirs = ([row["train/loss"] for row in rows(each) if "train/loss" in row] for each in (out, "two"))
    assert ours == pytest.approx(theirs, abs=1e-5) and len(ours) == 4
    # one process resumes the run of two
    import shutil

    shutil.rmtree("two/checkpoints/step-00000008")
    pretrain(small(out="two", parallel=parallel, val_images=7, cls_only=0.5))
    assert difference("one", "two") < 5e-5


@pytest.mark.slow
def test_run_survives_the_death_of_a_process() -> None:
    pretrain(small(out="one", steps=40))
    process = launch("two", "steps=40", restarts=2, wait=False)
    deadline = time.monotonic() + 60
    while not Path("two/checkpoints/step-00000008").is_dir() and time.monotonic() < deadline:
        time.sleep(0.05)
    for child in psutil.Process(process.pid).children(recursive=True):
        if child.environ().get("RANK") == "1":
            child.kill()
            break
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0 and "resuming from" in errors, errors
    assert difference("one", "two") < 1e-3  # rounding, grown over 40 steps


def test_processes_agree_on_partly_labelled_images(tmp_path: Path) -> None:
    """Some processes may hold only images without labels; none may measure what the others do not."""
    import cv2

    (tmp_path / "plain").mkdir()
    for number in range(40):
        cv2.imwrite(str(tmp_path / "plain" / f"{number}.png"), np.full((64, 64, 3), number, np.uint8))
    for seed in range(2):
        launch(f"run{seed}", "images=[procedural:64,plain]", "val_images=4", f"seed={seed}", "steps=2")
