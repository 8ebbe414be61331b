"""Distillation: a frozen teacher, several students, one loop with pre-training."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pixio_robot.encoders.load import Backbone, load_encoder, save_encoder
from pixio_robot.encoders.pixio import PixioEncoder, Tokens
from pixio_robot.errors import BadInput, CheckpointError, PixioError, Stopped, UnknownName
from pixio_robot.pretrain import train
from pixio_robot.pretrain.commands import Distill, Pretrain, distill, distill_values, pretrain
from pixio_robot.pretrain.distillation import Distillation
from pixio_robot.pretrain.loader import Batch
from pixio_robot.pretrain.student_specs import StudentSpec, blank_students, initialise_students, matches, student_specs
from pixio_robot.pretrain.students import Students, matching_loss, on_grid
from pixio_robot.training.guard import Guard


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    """A small encoder with class tokens that differ, and its file."""
    encoder = PixioEncoder(dim=48, depth=2, heads=2, patch=8, image_size=32)
    encoder.initialise(torch.Generator().manual_seed(7))
    with torch.no_grad():
        encoder.cls_token.normal_(generator=torch.Generator().manual_seed(8))
    save_encoder(encoder, tmp_path / "teacher.safetensors")
    return str(tmp_path / "teacher.safetensors")


def small(teacher: str, **changes: Any) -> Distill:
    base = Distill(
        images="procedural:48",
        teacher=teacher,
        students={"a": {"size": "32x2x2"}},
        val_images=8,
        batch=8,
        steps=8,
        lr=1e-3,
        workers=0,
        log_every=2,
        valid_every=4,
        save_every=4,
        visualize_every=8,
        device="cpu",
        drop_path=0.0,
        out="run",
    )
    return replace(base, **changes)


def weights(path: str) -> dict[str, Tensor]:
    return load_file(path)


def difference(one: str, two: str) -> float:
    first, second = weights(one), weights(two)
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def random_batch(size: int, blocks: int = 16) -> Batch:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (4, size, size, 3), generator=generator, dtype=torch.uint8)
    return Batch(images, torch.rand(4, blocks, generator=generator), torch.arange(4), [])


def objective_of(command: Distill) -> Distillation:
    backbone = load_encoder(command.teacher)
    specs = specs_of(command, backbone)
    return Distillation(backbone, specs, students_of(command, specs, 48), normed=command.target == "normed")


def specs_of(command: Distill, backbone: Backbone) -> dict[str, StudentSpec]:
    return student_specs(command.students, distill_values(command)[0], backbone)


def students_of(command: Distill, specs: dict[str, StudentSpec], teacher_dim: int) -> Students:
    model = blank_students(specs, teacher_dim, command.projection, command.loss, command.weighting)
    return initialise_students(model, specs, command.seed)


@pytest.mark.parametrize("loss", ["cosine", "l1", "mse"])
@pytest.mark.parametrize("hidden", [0.0, 0.5])
def test_student_with_the_teachers_weights_has_zero_loss(teacher: str, loss: str, hidden: float) -> None:
    """Without projection, on the same normed tokens; hidden patches change what the student sees, so it has some."""
    command = small(
        teacher,
        students={"twin": {"size": "48x2x2", "mask_ratio": hidden, "mask_block": 2, "init_from": teacher}},
        projection="none",
        target="normed",
        loss=loss,
    )
    objective = objective_of(command)
    value = float(objective.losses(objective.model, random_batch(32), torch.device("cpu"))["twin"].detach())
    assert (value < 1e-6) if hidden == 0 else (value > 1e-3)


def test_losses_equal_values_computed_by_hand() -> None:
    ours = Tokens(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]]))
    theirs = Tokens(torch.tensor([[[0.0, 3.0]]]), torch.tensor([[[2.0, 0.0], [0.0, 1.0], [1.0, -1.0]]]))
    # class token at right angles: 1; patches: 0, 0, 1
    assert matching_loss(ours, theirs).item() == pytest.approx((1 + 1 / 3) / 2)
    assert matching_loss(ours, theirs, weighting="count").item() == pytest.approx(2 / 4)
    assert matching_loss(ours, theirs, "l1").item() == pytest.approx((2 + (0.5 + 0.5 + 1) / 3) / 2)
    assert matching_loss(ours, theirs, "mse").item() == pytest.approx((5 + (0.5 + 0.5 + 2) / 3) / 2)


def test_cosine_loss_ignores_scale_and_weights_class_and_patch_tokens_equally() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (
        Tokens(torch.randn(2, 8, 16, generator=generator), torch.randn(2, 64, 16, generator=generator))
        for _ in range(2)
    )
    scaled = Tokens(ours.cls * 5, ours.patches * 0.1)
    assert torch.allclose(matching_loss(ours, theirs), matching_loss(scaled, theirs), atol=1e-6)
    perfect = Tokens(theirs.cls, -theirs.patches)
    assert torch.allclose(matching_loss(perfect, theirs), torch.ones(2), atol=1e-6)  # (0 + 2) / 2


def test_masked_students_are_compared_at_visible_patches(teacher: str) -> None:
    """A loss between a masked student and the teacher uses the teacher's tokens of the visible places."""
    command = small(teacher, students={"a": {"size": "48x2x2", "mask_ratio": 0.5, "mask_block": 1}}, projection="none")
    objective = objective_of(command)
    batch = random_batch(32)
    spec = objective.specs["a"]
    assert spec.shape is not None and spec.shape.visible == 8
    whole = objective._targets(batch.images)["a"]
    visible = batch.mask_noise.argsort(dim=1, stable=True)[:, :8]
    chosen = whole.patches.gather(1, visible.unsqueeze(-1).expand(-1, -1, 48))
    tokens = objective.model.students["a"](objective._pixels(batch.images, spec), visible)
    expected = matching_loss(tokens, Tokens(whole.cls, chosen)).mean()
    found = objective.losses(objective.model, batch, torch.device("cpu"))["a"]
    assert torch.allclose(found, expected, atol=1e-6)


def test_a_grid_is_resampled_in_place() -> None:
    """A plane stays a plane where it is interpolated, and a coarser grid keeps the mean."""
    rows = torch.arange(8.0).view(8, 1).expand(8, 8)
    tokens = Tokens(torch.zeros(1, 1, 1), rows.reshape(1, 64, 1))
    coarse = on_grid(tokens, (8, 8), (4, 4)).patches.view(4, 4)
    assert coarse.mean().item() == pytest.approx(3.5, abs=1e-5) and (coarse.diff(dim=0) > 0).all()
    assert on_grid(tokens, (8, 8), (8, 8)) is tokens
    fine = on_grid(tokens, (8, 8), (16, 16)).patches.view(16, 16)
    assert torch.allclose(fine[2:14].diff(dim=0), torch.full((11, 16), 0.5), atol=1e-5)


def test_students_of_different_widths_depths_and_grids_train_together(teacher: str) -> None:
    students = {"a": {"size": "32x2x2"}, "b": {"size": "16x1x2", "patch": 16, "image_size": 64}}
    out, _, result = distill(small(teacher, students=students))
    for name in students:
        encoder = load_encoder(out / f"{name}.safetensors")
        assert encoder.weights == "trained" and encoder.token_shape.cls == 8
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    logged = {name for row in rows for name in row}
    assert {"train/a_loss", "train/b_loss", "valid/a_loss", "features/a_effective_rank"} <= logged
    assert {"class_tokens/teacher_knn_accuracy", "pixels/knn_accuracy"} <= logged
    assert result.numbers["valid/loss"] < rows[0]["valid/loss"]
    page = (out / "report.html").read_text()
    assert "teacher" in page and "4x4" in page and "data:image/png;base64," in page


def test_student_trained_with_others_equals_one_trained_alone(teacher: str) -> None:
    """The same crops, its own gradients, its own clipping."""
    changes: dict[str, Any] = {"clip": 0.01, "steps": 4}
    distill(small(teacher, students={"a": {"size": "32x2x2"}, "b": {"size": "16x1x2"}}, **changes))
    distill(small(teacher, students={"a": {"size": "32x2x2"}}, out="alone", **changes))
    assert difference("run/a.safetensors", "alone/a.safetensors") < 1e-6


def test_teacher_is_unchanged(teacher: str) -> None:
    before = load_encoder(teacher).fingerprint()
    objective = objective_of(small(teacher))
    losses = objective.losses(objective.model, random_batch(32), torch.device("cpu"))
    losses["a"].backward()
    assert objective.teacher.fingerprint() == before
    assert all(each.grad is None for each in objective.teacher.parameters())
    assert all(each.grad is not None for each in objective.model.parameters())


def test_distillation_lowers_the_loss(teacher: str) -> None:
    _, _, result = distill(small(teacher, steps=60, lr=3e-3, valid_every=60, save_every=60, log_every=20))
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert rows[0]["valid/loss"] > 0.5 and result.numbers["valid/loss"] < 0.4


def test_resumed_distillation_equals_uninterrupted(teacher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    students = {"a": {"size": "32x2x2", "drop_path": 0.3}, "b": {"size": "16x1x2", "mask_ratio": 0.5, "mask_block": 2}}
    distill(small(teacher, students=students, micro_batch=4))
    original = Guard.step

    def stopping_step(self: Guard, norm: Tensor, step: int) -> Tensor:
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, norm, step)

    monkeypatch.setattr(train.Guard, "step", stopping_step)
    with pytest.raises(Stopped):
        distill(small(teacher, students=students, micro_batch=4, out="stopped"))
    monkeypatch.setattr(train.Guard, "step", original)
    distill(small(teacher, students=students, micro_batch=4, out="stopped"))
    for name in students:
        assert difference(f"run/{name}.safetensors", f"stopped/{name}.safetensors") == 0


def test_crashed_distillation_resumes_from_its_checkpoint(teacher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    distill(small(teacher))
    original = Guard.step

    def dying_step(self: Guard, norm: Tensor, step: int) -> Tensor:
        if step == 6:
            raise RuntimeError("power cut")
        return original(self, norm, step)

    monkeypatch.setattr(train.Guard, "step", dying_step)
    with pytest.raises(RuntimeError, match="power cut"):
        distill(small(teacher, out="died", save_every=2))
    monkeypatch.setattr(train.Guard, "step", original)
    assert list(Path("died/checkpoints").glob("step-*")) and not Path("died/result.json").exists()
    distill(small(teacher, out="died", save_every=2))
    assert difference("run/a.safetensors", "died/a.safetensors") == 0


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_match_one(teacher: str, parallel: str) -> None:
    words = [
        *(
            "images=procedural:48",
            f"teacher={teacher}",
            "val_images=7",
            "batch=8",
            "steps=6",
            "lr=0.001",
            "drop_path=0",
        ),
        "students={a:{size:32x2x2},b:{size:16x1x2,mask_ratio:0.5,mask_block:2}}",
        *("workers=0", "valid_every=3", "save_every=3", "visualize_every=6", "log_every=1", "device=cpu"),
    ]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RDZV_BACKEND": "c10d"}
    done = subprocess.run(
        [*torchrun, "--standalone", "-m", "pixio_robot", "distill", *words, f"parallel={parallel}", "out=two"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    subprocess.run(
        [sys.executable, "-m", "pixio_robot", "distill", *words, "out=one"], env=environment, check=True, timeout=200
    )
    for name in ("a", "b"):
        assert difference(f"one/{name}.safetensors", f"two/{name}.safetensors") < 5e-5
    one, two = (
        [json.loads(line) for line in Path(out, "metrics.jsonl").read_text().splitlines()] for out in ("one", "two")
    )
    for first, second in zip(one, two, strict=True):
        for name in ("train/loss", "valid/loss", "train/b_loss"):
            if name in first:
                assert first[name] == pytest.approx(second[name], abs=1e-5)


def test_large_students_are_masked_by_default(teacher: str) -> None:
    command = small(teacher, students=["h", "ti"], image_size=64, drop_path=None, mask_block=2)
    specs = specs_of(command, load_encoder(teacher))
    assert specs["h"].shape is not None and specs["h"].shape.ratio == 0.5 and specs["ti"].shape is None
    assert specs["h"].arguments["drop_path"] == 0.4 and specs["ti"].arguments["drop_path"] == 0.1


def test_log_says_how_tokens_correspond(teacher: str) -> None:
    command = small(teacher, students={"a": {"size": "32x2x2", "cls_tokens": 1, "patch": 16}}, image_size=64)
    backbone = load_encoder(teacher)
    (line,) = matches(backbone, specs_of(command, backbone))
    assert "one to one on 4x4" in line and "mean of 1 class tokens to the mean of the teacher's 8" in line
    other = small(teacher, students={"a": {"size": "32x2x2", "patch": 8, "image_size": 64}})
    (line,) = matches(backbone, specs_of(other, backbone))
    assert "4x4 patches resampled to 8x8" in line


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"students": {"a": {"sise": "s"}}}, "sise"),
        ({"students": []}, "students"),
        ({"students": {"small": "s"}}, "must have settings, as in small:{size:s}"),
        ({"students": ["tiny"]}, "no student 'tiny'"),
        ({"students": {"a/b": {"size": "s"}}}, "cannot name"),
        ({"students": {"a": {"size": "32x2x2", "patch": 7, "image_size": 32}}}, "not a multiple"),
        ({"students": {"a": {"size": "32x2x2", "mask_ratio": 0.5}}, "mask_block": 3}, "nearest that do"),
        ({"projection": "mpl"}, "no projection 'mpl'"),
        ({"loss": "kl"}, "no loss 'kl'"),
        ({"target": "norm"}, "no target"),
        ({"activation_checkpointing": "decoder"}, "no activation_checkpointing"),
        ({"lr": None}, "set exactly one"),
    ],
)
def test_impossible_settings_are_refused_before_any_work(teacher: str, changes: dict[str, Any], words: str) -> None:
    command = small(teacher, **changes)
    with pytest.raises((BadInput, UnknownName), match=words):
        distill_values(command)
        specs_of(command, load_encoder(teacher))


def test_student_is_initialised_from_a_pretrain_run(teacher: str) -> None:
    """Of smaller patches: they and the position table are resized."""
    settings = Pretrain(
        images="procedural:24",
        val_images=8,
        batch=8,
        steps=1,
        lr=1e-3,
        workers=0,
        device="cpu",
        encoder="48x2x2",
        decoder="32x1x2",
        image_size=32,
        patch=8,
        mask_block=2,
        out="first",
    )
    pretrain(settings)
    command = small(teacher, students={"a": {"size": "48x2x2", "init_from": "first", "patch": 16, "image_size": 32}})
    specs = specs_of(command, load_encoder(teacher))
    student = students_of(command, specs, 48).students["a"].encoder.state_dict()  # type: ignore[union-attr]
    given = weights("first/encoder.safetensors")
    for name in ("blocks.1.mlp.fc1.weight", "cls_token"):
        assert torch.equal(student[name], given[name]), name
    assert student["patch_embed.proj.weight"].shape[-1] == 16 and student["pos_embed"].shape[1] == 8 + 4
    assert "initial weights of first" in matches(load_encoder(teacher), specs)[0]


def test_initial_weights_of_another_network_are_refused(teacher: str) -> None:
    with pytest.raises(CheckpointError, match="depth 2, not 1"):
        distill(small(teacher, students={"a": {"size": "48x1x2", "init_from": teacher}}))


def test_resuming_with_other_initial_weights_is_refused(teacher: str, tmp_path: Path) -> None:
    start = tmp_path / "start.safetensors"
    shutil.copy(teacher, start)
    command = small(teacher, students={"a": {"size": "48x2x2", "init_from": str(start)}}, steps=4)
    distill(command)
    save_encoder(PixioEncoder(dim=48, depth=2, heads=2, patch=8, image_size=32), start)
    with pytest.raises(PixioError, match="run"):
        distill(command)


def test_widths_must_be_equal_without_projection(teacher: str) -> None:
    with pytest.raises(BadInput, match="equal widths"):
        distill(small(teacher, projection="none"))


def test_another_teacher_is_refused(teacher: str, tmp_path: Path) -> None:
    distill(small(teacher, steps=4))
    encoder = PixioEncoder(dim=48, depth=2, heads=2, patch=8, image_size=32)
    save_encoder(encoder, tmp_path / "other.safetensors")
    with pytest.raises(PixioError, match="run"):
        distill(small(str(tmp_path / "other.safetensors"), steps=4))


def test_baseline_can_be_the_teacher(tmp_path: Path) -> None:
    """One class token against eight, another width and another grid; the student's pixels are not the teacher's."""
    from pixio_robot.encoders.torchvision_guard import declare_missing_operators

    declare_missing_operators()
    transformers = pytest.importorskip("transformers")
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.Dinov2Model(transformers.Dinov2Config(**sizes))
    model.eval().save_pretrained(tmp_path / "dino")
    command = small(
        f"hf:{tmp_path / 'dino'}", students={"a": {"size": "16x1x2", "patch": 16, "image_size": 64}}, steps=12, lr=3e-3
    )
    out, _, result = distill(command)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert result.numbers["valid/loss"] < rows[0]["valid/loss"]
    assert load_encoder(out / "a.safetensors").token_shape.grid == (4, 4)
