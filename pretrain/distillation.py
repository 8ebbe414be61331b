"""The objective of distillation: one pass of a frozen teacher serves several students (arXiv 2512.15715)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..encoders.load import Backbone, save_encoder
from ..encoders.pixio import PixioEncoder, Tokens
from ..encoders.preprocessing import Preprocessing, preprocess
from ..training.distributed import unwrapped
from .feature_maps import draw_feature_maps
from .loader import Batch
from .masking import MaskShape, PatchMask
from .monitor import Matrix, Monitor
from .objective import Objective
from .plan import BACKWARD, encoder_flops
from .students import Student, Students, on_grid


@dataclass(frozen=True)
class StudentPlan:
    """What one student is."""

    arguments: dict[str, Any]  # of its `PixioEncoder`
    shape: MaskShape | None  # how much of an image is hidden from it; None hides nothing
    start: str | None = None  # weights it begins with, as `take_encoder` takes them; None draws

    @property
    def size(self) -> int:
        """Side of its images [px]."""
        return int(self.arguments["image_size"])

    @property
    def grid(self) -> tuple[int, int]:
        """Its rows and columns of patches."""
        side = self.size // int(self.arguments["patch"])
        return side, side


class Distillation(Objective):
    """Students learn a teacher's tokens.

    Args:
        teacher: frozen; it is no part of the model, its checkpoints or its gradients.
        plans: the students, by name.
        model: freshly initialised, the same in every process.
        projection: as `Student` takes it.
        normed: whether the targets are the teacher's normed tokens instead of the raw ones.
    """

    name = "distill"

    def __init__(
        self, teacher: Backbone, plans: dict[str, StudentPlan], model: Students, projection: str, normed: bool
    ) -> None:
        self.teacher, self.plans, self.model = teacher, plans, model
        self._projection, self._normed = projection, normed
        self._teacher_numbers: dict[str, float] = {}
        self.wrapped_modules = [student.encoder for student in model.students.values()]
        blocks = [block for tower in self.wrapped_modules for block in tower.blocks]
        self.activation_checkpointed = {"none": [], "all": blocks}
        self.arguments = {name: plan.arguments for name, plan in plans.items()}
        self._view = teacher.preprocessing._replace(resize="squash", shorter=None)  # so that patches face each other
        self.size = max(*teacher.preprocessing.size, *(plan.size for plan in plans.values()))
        self.blocks = max((plan.shape.blocks for plan in plans.values() if plan.shape), default=1)
        self.flops = _forward_flops(teacher) + BACKWARD * sum(
            encoder_flops(tower, plan.shape.visible if plan.shape else plan.grid[0] * plan.grid[1])
            for tower, plan in zip(self.wrapped_modules, plans.values(), strict=True)
        )

    def losses(self, trained: nn.Module, batch: Batch, device: torch.device) -> dict[str, Tensor]:
        images = batch.images.to(device, non_blocking=True)
        per_image = self._per_image(trained, images, batch.mask_noise.to(device, non_blocking=True))
        return {name: loss.mean() for name, loss in per_image.items()}

    def _per_image(self, trained: nn.Module, images: Tensor, noise: Tensor) -> dict[str, Tensor]:
        targets = self._targets(images)
        visible = {
            name: PatchMask.from_noise(noise[:, : plan.shape.blocks], plan.shape).visible
            for name, plan in self.plans.items()
            if plan.shape
        }
        return trained({name: self._pixels(images, plan) for name, plan in self.plans.items()}, visible, targets)

    @torch.no_grad()
    def _targets(self, images: Tensor) -> dict[str, Tokens]:
        """Return the teacher's tokens on each student's grid."""
        tokens, grid = self._teach(images, self._normed), self.teacher.token_shape.grid
        return {name: on_grid(tokens, grid, plan.grid) for name, plan in self.plans.items()}

    def _teach(self, images: Tensor, normed: bool) -> Tokens:
        return self.teacher.to(images.device)(preprocess(images, self._view), normed=normed)

    def _pixels(self, images: Tensor, plan: StudentPlan) -> Tensor:
        return preprocess(images, Preprocessing(size=(plan.size, plan.size)))

    def parts(self, trained: nn.Module) -> list[nn.Module]:
        return list(unwrapped(trained).students.values())

    def measure(self, trained: nn.Module, monitor: Monitor) -> tuple[dict[str, float], Matrix]:
        losses = monitor.mean(lambda images, noise: self._per_image(trained, images, noise))
        numbers = {"valid/loss": sum(losses.values()) / len(losses)}
        if len(losses) > 1:
            numbers |= {f"valid/{name}_loss": loss for name, loss in losses.items()}
        cosine: Matrix = []
        for name, plan in self.plans.items():
            encoder = unwrapped(trained).students[name].encoder

            def encode(images: Tensor, encoder: Any = encoder, plan: StudentPlan = plan) -> Tokens:
                return encoder(self._pixels(images, plan))

            found, matrix = monitor.features(encode, name)
            numbers |= found
            cosine = cosine or matrix
        if not self._teacher_numbers:  # they never change
            self._teacher_numbers, _ = monitor.features(lambda images: self._teach(images, normed=True), "teacher")
        return numbers | self._teacher_numbers, cosine

    def image(self, trained: nn.Module, monitor: Monitor, path: Path, first: bool) -> None:
        images, _ = monitor.shown
        students = unwrapped(trained).students
        targets = self._targets(images)
        rows: dict[str, tuple[Tensor, tuple[int, int]]] = {}
        for name, plan in self.plans.items():
            if len(rows) == 0 or plan.grid != self.teacher.token_shape.grid:
                rows["teacher" if not rows else f"teacher on\n{name}'s grid"] = targets[name].patches, plan.grid
            rows[name] = students[name](self._pixels(images, plan), None).patches, plan.grid
        if first:
            shown = {name: (tokens.float().cpu(), grid) for name, (tokens, grid) in rows.items()}
            draw_feature_maps(path, images.cpu(), shown)

    def save(self, whole: nn.Module, out: Path, settings: dict[str, Any], step: int) -> None:
        assert isinstance(whole, Students)
        for name, student in whole.students.items():
            assert isinstance(student, Student)
            save_encoder(student.encoder, out / f"{name}.safetensors", settings | {"student": name}, step)

    def blank(self) -> nn.Module:
        with torch.device("meta"):
            return new_students(self.plans, self.teacher.token_shape.dim, self._projection)


def new_students(
    plans: dict[str, StudentPlan], teacher_dim: int, projection: str, loss: str = "cosine", weighting: str = "equal"
) -> Students:
    """Return students of these plans."""
    students = {name: Student(PixioEncoder(**plan.arguments), teacher_dim, projection) for name, plan in plans.items()}
    return Students(students, loss, weighting)


def _forward_flops(teacher: Backbone) -> float:
    """Return the FLOPs of one image's forward pass, counted by PyTorch."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        teacher(torch.zeros(1, 3, *teacher.preprocessing.size))
    return float(counter.get_total_flops())
