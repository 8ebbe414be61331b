"""Students of a frozen teacher: their networks, and the loss between their tokens and the teacher's.

Shapes: B batch, K class tokens, N patches, V visible patches, D the teacher's width, E a student's.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..encoders.pixio import PixioEncoder, Tokens, initialise_layers
from ..errors import BadInput
from .decoder import sincos_positions_

PROJECTIONS = ("mlp", "linear", "none")
LOSSES = ("cosine", "l1", "mse")
WEIGHTINGS = ("equal", "count")


class Student(nn.Module):
    """An encoder and the projection of its normed tokens, class and patch alike, to the teacher's width.

    Args:
        encoder: the student itself.
        teacher_dim: D.
        projection: "mlp" (Linear, LayerNorm, GELU, Linear, with the teacher's width inside), "linear" or "none".

    Raises:
        BadInput: for "none" between different widths.
    """

    def __init__(self, encoder: PixioEncoder, teacher_dim: int, projection: str) -> None:
        super().__init__()
        self.encoder, self.projection = encoder, projection
        if projection == "none" and encoder.dim != teacher_dim:
            raise BadInput(
                f"projection=none needs equal widths; the student's is {encoder.dim}, the teacher's {teacher_dim}"
            )
        layers: dict[str, list[nn.Module]] = {
            "none": [],
            "linear": [nn.Linear(encoder.dim, teacher_dim)],
            "mlp": [
                nn.Linear(encoder.dim, teacher_dim),
                nn.LayerNorm(teacher_dim, eps=1e-6),
                nn.GELU(),
                nn.Linear(teacher_dim, teacher_dim),
            ],
        }
        self.project = nn.Sequential(*layers[projection])

    def initialise(self, generator: torch.Generator) -> None:
        """Draw new weights; position tables are initialised with 2-D sines and cosines."""
        self.encoder.initialise(generator)
        sincos_positions_(self.encoder.pos_embed, self.encoder.cls_tokens)
        initialise_layers(self.project, generator)

    def forward(self, pixels: Tensor, visible: Tensor | None) -> Tokens:
        """Return projected tokens: cls (B, K, D), patches (B, N or V, D)."""
        tokens = self.encoder(pixels, visible)
        return Tokens(self.project(tokens.cls), self.project(tokens.patches))


class Students(nn.Module):
    """Several independent students.

    Args:
        students: by name; at least one.
        loss, weighting: as for `matching_loss`.
    """

    def __init__(self, students: dict[str, Student], loss: str, weighting: str) -> None:
        super().__init__()
        self.students = nn.ModuleDict(students)
        self.loss, self.weighting = loss, weighting
        self.projection = next(iter(students.values())).projection

    def forward(self, pixels: dict[str, Tensor], visible: dict[str, Tensor], targets: dict[str, Tokens]) -> Any:
        """Return each student's loss for each image, (B,) fp32 by name.

        Args:
            pixels: (B, 3, H, W) at each student's own size.
            visible: (B, V) visible patches of each student; a student without an entry sees all.
            targets: all of the teacher's tokens, on each student's own grid.
        """
        losses = {}
        for name, student in self.students.items():
            tokens, target = student(pixels[name], visible.get(name)), targets[name]
            if name in visible:
                places = visible[name].unsqueeze(-1).expand(-1, -1, target.patches.shape[2])
                target = Tokens(target.cls, target.patches.gather(1, places))
            losses[name] = matching_loss(tokens, target, self.loss, self.weighting)
        return losses


def matching_loss(tokens: Tokens, target: Tokens, loss: str = "cosine", weighting: str = "equal") -> Tensor:
    """Return the loss between tokens and their targets, one to one, (B,) fp32.

    Class tokens and patches have equal weight, or weights by their numbers (arXiv 2512.15715, section on distillation:
    cosine, equal). Where the numbers of class tokens differ, their means are compared.

    Args:
        loss: "cosine" is 1 - cosine similarity; "l1" and "mse" are means over the width.
        weighting: "equal" or "count".
    """
    cls, cls_target = tokens.cls, target.cls
    if cls.shape[1] != cls_target.shape[1]:
        cls, cls_target = cls.mean(dim=1, keepdim=True), cls_target.mean(dim=1, keepdim=True)
    first, second = _distance(cls, cls_target, loss), _distance(tokens.patches, target.patches, loss)
    if weighting == "equal":
        return (first.mean(dim=1) + second.mean(dim=1)) / 2
    return torch.cat([first, second], dim=1).mean(dim=1)


def _distance(tokens: Tensor, target: Tensor, loss: str) -> Tensor:
    with torch.autocast(tokens.device.type, enabled=False):
        tokens, target = tokens.float(), target.float()
        if loss == "cosine":
            return 1 - F.cosine_similarity(tokens, target, dim=-1)
        difference = tokens - target
        return (difference.abs() if loss == "l1" else difference.square()).mean(dim=-1)


def on_grid(tokens: Tokens, grid: tuple[int, int], target_grid: tuple[int, int]) -> Tokens:
    """Return tokens with patches resampled to another grid, bilinearly (antialiased for a coarser one)."""
    if grid == target_grid:
        return tokens
    square = tokens.patches.transpose(1, 2).unflatten(2, grid).float()
    resized = F.interpolate(square, size=target_grid, mode="bilinear", antialias=True, align_corners=False)
    return Tokens(tokens.cls, resized.flatten(2).transpose(1, 2))
