"""Students of a distillation: from settings to networks, and how their tokens correspond to the teacher's."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..encoders.load import Backbone
from ..encoders.pixio import PRESETS, PixioEncoder
from ..errors import BadInput
from ..hardware import combine
from .masking import MaskShape, mask_shape
from .networks import check_drop_path, load_encoder_weights, network_size
from .students import Student, Students

MASK_FROM = 1280  # default: students of this width and above are masked, as published for 1B and H
KEYS = ("size", "patch", "image_size", "cls_tokens", "mask_ratio", "mask_block", "drop_path", "init_from")


@dataclass(frozen=True)
class StudentDefaults:
    """Settings of every student that does not have its own.

    Raises:
        BadInput: for an impossible stochastic depth rate.
    """

    patch: int | None = None  # side of a patch [px]; None is the teacher's, or 16
    image_size: int | None = None  # side of the images [px]; None is the teacher's
    cls_tokens: int = 8
    mask_ratio: float | None = None  # None is 0.5 from width `MASK_FROM`, else 0
    mask_block: int = 4  # side of the mask blocks [patches]
    drop_path: float | None = None  # stochastic depth rate; None is 0.4 with a mask, else 0.1

    def __post_init__(self) -> None:
        check_drop_path(self.drop_path or 0.0)


@dataclass(frozen=True)
class StudentSpec:
    """One student."""

    arguments: dict[str, Any]  # of its `PixioEncoder`
    shape: MaskShape | None  # how many patches are hidden from it; None hides none
    init_from: str | None = None  # initial weights, as for `load_encoder_weights`; None draws them

    @property
    def size(self) -> int:
        """Side of its images [px]."""
        return int(self.arguments["image_size"])

    @property
    def grid(self) -> tuple[int, int]:
        """Its rows and columns of patches."""
        side = self.size // int(self.arguments["patch"])
        return side, side


def student_specs(students: Any, defaults: StudentDefaults, teacher: Backbone) -> dict[str, StudentSpec]:
    """Return the students by name.

    Args:
        students: a size, a list of sizes, or name to settings of `KEYS`.

    Raises:
        BadInput, UnknownName: naming the student and the setting that is impossible.
    """
    if isinstance(students, str):
        students = [students]
    if isinstance(students, list):
        students = {str(size): {"size": str(size)} for size in students}
    if not isinstance(students, dict) or not students:
        raise BadInput(f"students={students} must be sizes, students=[s,ti], or {{NAME:{{size:s}}}}")
    return {str(name): _spec(str(name), values, defaults, teacher) for name, values in students.items()}


def _spec(name: str, values: Any, defaults: StudentDefaults, teacher: Backbone) -> StudentSpec:
    if not isinstance(values, dict):
        raise BadInput(f"student {name!r} has {values}; it must have settings, as in {name}:{{size:s}}")
    if unknown := [key for key in values if key not in KEYS]:
        raise BadInput(f"student {name!r} has {', '.join(unknown)}; it may have: {', '.join(KEYS)}")
    if not name.replace("-", "").replace("_", "").isalnum() or name in ("encoder", "autoencoder", "teacher"):
        raise BadInput(f"{name!r} cannot name a student: letters, digits, - and _, and not 'teacher'")
    chosen: dict[str, Any] = {key: values.get(key, getattr(defaults, key, None)) for key in KEYS}
    width, depth, heads = network_size("student", str(chosen["size"] or name), PRESETS)
    known = teacher.network if isinstance(teacher.network, PixioEncoder) else None
    patch = int(chosen["patch"] or (known.patch if known else 16))
    size = int(chosen["image_size"] or max(teacher.preprocessing.size) // patch * patch)
    if size % patch:
        raise BadInput(f"student {name!r}: image_size {size} is not a multiple of patch {patch}")
    ratio = chosen["mask_ratio"] if chosen["mask_ratio"] is not None else (0.5 if width >= MASK_FROM else 0.0)
    side = size // patch
    shape = mask_shape((side, side), ratio, chosen["mask_block"]) if ratio else None
    drop = chosen["drop_path"] if chosen["drop_path"] is not None else (0.4 if shape else 0.1)
    arguments: dict[str, Any] = dict(dim=width, depth=depth, heads=heads, patch=patch, image_size=size)
    arguments |= dict(cls_tokens=int(chosen["cls_tokens"]), drop_path=float(drop))
    return StudentSpec(arguments, shape, chosen["init_from"] and str(chosen["init_from"]))


def matches(teacher: Backbone, specs: Mapping[str, StudentSpec]) -> list[str]:
    """Return for each student how its tokens correspond to the teacher's, one line each."""
    lines = []
    shape = teacher.token_shape
    for name, spec in specs.items():
        grid = f"{spec.grid[0]}x{spec.grid[1]}"
        patches = f"patches one to one on {grid}"
        if spec.grid != shape.grid:
            patches = f"the teacher's {shape.grid[0]}x{shape.grid[1]} patches resampled to {grid}"
        cls = f"{shape.cls} class tokens one to one"
        if spec.arguments["cls_tokens"] != shape.cls:
            cls = f"the mean of {spec.arguments['cls_tokens']} class tokens to the mean of the teacher's {shape.cls}"
        hidden = f"{spec.shape.ratio:.0%} of the patches hidden" if spec.shape else "no patches hidden"
        initial = f", initial weights of {spec.init_from}" if spec.init_from else ""
        lines.append(
            f"student {name}: width {spec.arguments['dim']} to {shape.dim}, {patches}, {cls}, {hidden}{initial}"
        )
    return lines


def blank_students(
    specs: Mapping[str, StudentSpec],
    teacher_dim: int,
    projection: str,
    loss: str = "cosine",
    weighting: str = "equal",
) -> Students:
    """Return students without weights, on the meta device.

    Args:
        teacher_dim: width of the teacher.
        projection: as for `Student`.
        loss, weighting: as for `matching_loss`.
    """
    with torch.device("meta"):
        networks = {
            name: Student(PixioEncoder(**spec.arguments), teacher_dim, projection) for name, spec in specs.items()
        }
        return Students(networks, loss, weighting)


def initialise_students(model: Students, specs: Mapping[str, StudentSpec], seed: int) -> Students:
    """Give blank students their initial weights; a student's drawn weights do not depend on the other students.

    Raises:
        CheckpointError: if a student's initial weights are of another network.
    """
    model.to_empty(device="cpu")
    for name, spec in specs.items():
        student = model.students[name]
        student.initialise(torch.Generator().manual_seed(combine(seed, 0)))  # type: ignore[operator]
        if spec.init_from is not None:
            load_encoder_weights(student.encoder, spec.init_from)  # type: ignore[arg-type]
    return model
