"""The objective of distillation: one forward pass of a frozen teacher trains several students (arXiv 2512.15715)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..encoders.load import Backbone, save_encoder
from ..encoders.pixio import Tokens
from ..encoders.preprocessing import Preprocessing, preprocess
from ..training.distributed import unwrapped
from .cost import BACKWARD, encoder_flops
from .feature_maps import draw_feature_maps
from .loader import Batch
from .masking import PatchMask
from .monitor import Matrix, Monitor
from .objective import Objective
from .student_specs import StudentSpec, blank_students
from .students import Student, Students, on_grid


class Distillation(Objective):
    """Students learn to predict a teacher's tokens.

    Args:
        teacher: frozen; not part of the model, its checkpoints or its gradients.
        specs: the students, by name.
        model: their networks, freshly initialised, the same in every process.
        normed: whether the targets are the teacher's normed tokens instead of the raw ones.
    """

    name = "distill"

    def __init__(self, teacher: Backbone, specs: Mapping[str, StudentSpec], model: Students, normed: bool) -> None:
        self.teacher, self.specs, self.model = teacher, specs, model
        self._normed, self._projection = normed, model.projection
        self._teacher_numbers: dict[str, float] = {}
        self.wrapped_modules = [student.encoder for student in model.students.values()]
        blocks = [block for module in self.wrapped_modules for block in module.blocks]
        self.checkpointable_blocks = {"none": [], "all": blocks}
        self.arguments = {name: spec.arguments for name, spec in specs.items()}
        self._view = teacher.preprocessing._replace(
            resize="squash", shorter=None
        )  # so that the patches of teacher and student correspond
        self.size = max(*teacher.preprocessing.size, *(spec.size for spec in specs.values()))
        self.mask_blocks = max((spec.shape.blocks for spec in specs.values() if spec.shape), default=1)
        self.flops = _forward_flops(teacher) + BACKWARD * sum(
            encoder_flops(module, spec.shape.visible if spec.shape else spec.grid[0] * spec.grid[1])
            for module, spec in zip(self.wrapped_modules, specs.values(), strict=True)
        )

    def losses(self, trained: nn.Module, batch: Batch, device: torch.device) -> dict[str, Tensor]:
        images = batch.images.to(device, non_blocking=True)
        per_image = self._per_image(trained, images, batch.mask_noise.to(device, non_blocking=True))
        return {name: loss.mean() for name, loss in per_image.items()}

    def _per_image(self, trained: nn.Module, images: Tensor, noise: Tensor) -> dict[str, Tensor]:
        targets = self._targets(images)
        visible = {
            name: PatchMask.from_noise(noise[:, : spec.shape.blocks], spec.shape).visible
            for name, spec in self.specs.items()
            if spec.shape
        }
        return trained({name: self._pixels(images, spec) for name, spec in self.specs.items()}, visible, targets)

    @torch.no_grad()
    def _targets(self, images: Tensor) -> dict[str, Tokens]:
        """Return the teacher's tokens on each student's grid."""
        tokens, grid = self._teach(images, self._normed), self.teacher.token_shape.grid
        return {name: on_grid(tokens, grid, spec.grid) for name, spec in self.specs.items()}

    def _teach(self, images: Tensor, normed: bool) -> Tokens:
        return self.teacher.to(images.device)(preprocess(images, self._view), normed=normed)

    def _pixels(self, images: Tensor, spec: StudentSpec) -> Tensor:
        return preprocess(images, Preprocessing(size=(spec.size, spec.size)))

    def parts(self, trained: nn.Module) -> list[nn.Module]:
        return list(unwrapped(trained).students.values())

    def measure(self, trained: nn.Module, monitor: Monitor) -> tuple[dict[str, float], Matrix]:
        losses = monitor.mean(lambda images, noise: self._per_image(trained, images, noise))
        numbers = {"valid/loss": sum(losses.values()) / len(losses)}
        if len(losses) > 1:
            numbers |= {f"valid/{name}_loss": loss for name, loss in losses.items()}
        cosine: Matrix = []
        for name, spec in self.specs.items():
            encoder = unwrapped(trained).students[name].encoder

            def encode(images: Tensor, encoder: Any = encoder, spec: StudentSpec = spec) -> Tokens:
                return encoder(self._pixels(images, spec))

            found, matrix = monitor.features(encode, name)
            numbers |= found
            cosine = cosine or matrix
        if not self._teacher_numbers:  # they never change
            self._teacher_numbers, _ = monitor.features(lambda images: self._teach(images, normed=True), "teacher")
        return numbers | self._teacher_numbers, cosine

    def visualize(self, trained: nn.Module, monitor: Monitor, path: Path, first: bool) -> None:
        images, _ = monitor.shown
        students = unwrapped(trained).students
        targets = self._targets(images)
        rows: dict[str, tuple[Tensor, tuple[int, int]]] = {}
        for name, spec in self.specs.items():
            if len(rows) == 0 or spec.grid != self.teacher.token_shape.grid:
                rows["teacher" if not rows else f"teacher on\n{name}'s grid"] = targets[name].patches, spec.grid
            rows[name] = students[name](self._pixels(images, spec), None).patches, spec.grid
        if first:
            shown = {name: (tokens.float().cpu(), grid) for name, (tokens, grid) in rows.items()}
            draw_feature_maps(path, images.cpu(), shown)

    def save(self, whole: nn.Module, out: Path, settings: dict[str, Any], step: int) -> None:
        for name, student in cast(Students, whole).students.items():
            save_encoder(
                cast(Student, student).encoder, out / f"{name}.safetensors", settings | {"student": name}, step
            )

    def blank(self) -> nn.Module:
        return blank_students(self.specs, self.teacher.token_shape.dim, self._projection)


def _forward_flops(teacher: Backbone) -> float:
    """Return the FLOPs of one image's forward pass, counted by PyTorch."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        teacher(torch.zeros(1, 3, *teacher.preprocessing.size))
    return float(counter.get_total_flops())
