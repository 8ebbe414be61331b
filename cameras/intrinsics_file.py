"""``camera.json``: intrinsics for a camera without its own, written by `pixio-robot calibrate`."""

import json
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..files import replacing
from .frame import Intrinsics

NAME = "camera.json"


def write_intrinsics(path: Path, intrinsics: Intrinsics, **details: Any) -> None:
    """Write intrinsics and further details, completely or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({**intrinsics._asdict(), **details}, indent=1))


def read_intrinsics(path: Path, size: tuple[int, int] | None = None) -> Intrinsics:
    """Return the intrinsics in a file.

    Args:
        size: height and width of the images; a calibration at another size with the same aspect ratio is scaled.

    Raises:
        DataError: if the file is missing or has other contents, or its images have another aspect ratio.
    """
    try:
        values = json.loads(path.read_text())
        fx, fy, cx, cy = (float(values[name]) for name in ("fx", "fy", "cx", "cy"))
        model, coefficients = values.get("model", "none"), tuple(map(float, values.get("coefficients", ())))
        known = Intrinsics(int(values["width"]), int(values["height"]), fx, fy, cx, cy, model, coefficients)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} has no intrinsics ({error}); create them with: pixio-robot calibrate") from error
    if size is None or size == (known.height, known.width):
        return known
    height, width = size
    scale = width / known.width
    if abs(height / known.height - scale) > 0.01 * scale:
        raise DataError(
            f"{path} is for images of {known.width}x{known.height}, these are {width}x{height}: another aspect ratio, "
            "so another part of the sensor; calibrate at this size"
        )
    return known._replace(
        width=width,
        height=height,
        fx=known.fx * scale,
        fy=known.fy * height / known.height,
        cx=(known.cx + 0.5) * scale - 0.5,
        cy=(known.cy + 0.5) * height / known.height - 0.5,
    )


def intrinsics_for(
    path: str | None, size: tuple[int, int], folder: Path | None = None, fallback: Intrinsics | None = None
) -> Intrinsics | None:
    """Return intrinsics for a source without its own: from `path`, or ``camera.json`` in its folder, or `fallback`."""
    if path is not None:
        return read_intrinsics(Path(path), size)
    if folder is not None and (folder / NAME).is_file():
        return read_intrinsics(folder / NAME, size)
    return fallback
