"""Depth as network input: codes in [0, 1], and images for encoders of colour images.

A code is 1 at the nearest distance and 0 at the farthest. Inverse depth is the default, because the resolution and
noise of a stereo camera are uniform in it. Invalid pixels have code 0 and, where possible, a separate validity channel.

Shapes: B batch, H height, W width.
"""

import cv2
import numpy as np

from ..errors import BadInput, UnknownName, closest

CODES = ("inverse", "log", "metres", "colours")


def check_code(code: str, near: float, far: float) -> None:
    """Refuse an unknown code or an impossible range.

    Raises:
        UnknownName: for a code that does not exist.
        BadInput: unless 0 < near < far.
    """
    if code not in CODES:
        raise UnknownName(f"no depth code {code!r}{closest(code, CODES)}; there are: {', '.join(CODES)}")
    if not 0 < near < far:
        raise BadInput(f"depth_range [{near}, {far}] m: two positive distances are needed, the nearer one first")


def depth_code(depth: np.ndarray, code: str = "inverse", near: float = 0.25, far: float = 4.0) -> np.ndarray:
    """Return codes of depth, float32 in [0, 1] of the same shape; 0 where depth is invalid.

    Args:
        depth: of any shape [m], 0 where invalid.
        code: "inverse", "log" or "metres".
        near, far: distances of the codes 1 and 0; distances beyond them have the same codes [m].

    Raises:
        UnknownName: for another code.
    """
    check_code(code, near, far)
    valid = depth > 0
    held = np.clip(depth, near, far)
    if code == "inverse":
        values = (1 / held - 1 / far) / (1 / near - 1 / far)
    elif code == "log":
        values = np.log(far / held) / np.log(far / near)
    elif code == "metres":
        values = (far - held) / (far - near)
    else:
        raise UnknownName(f"{code!r} is for images; here use one of: {', '.join(CODES[:-1])}")
    return np.where(valid, values, 0).astype(np.float32)


def depth_images(depth: np.ndarray, code: str = "inverse", near: float = 0.25, far: float = 4.0) -> np.ndarray:
    """Return depth as images, (B, H, W, 3) uint8, for an encoder of colour images.

    Codes are repeated three times, from 1 to 255, and 0 is invalid; "colours" is a colour map over inverse depth, and
    black is invalid.

    Args:
        depth: (B, H, W) or (B, H, W, 1) [m], 0 where invalid.
    """
    depth = depth[..., 0] if depth.ndim == 4 else depth
    check_code(code, near, far)
    values = depth_code(depth, "inverse" if code == "colours" else code, near, far)
    grey = np.where(depth > 0, 1 + np.rint(254 * values), 0).astype(np.uint8)
    if code != "colours":
        return np.repeat(grey[..., None], 3, axis=-1)
    images = np.stack([cv2.cvtColor(cv2.applyColorMap(each, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB) for each in grey])
    images[depth <= 0] = 0
    return images


def small_depth(
    depth: np.ndarray, size: tuple[int, int], code: str = "inverse", near: float = 0.25, far: float = 4.0
) -> np.ndarray:
    """Return code and validity of depth at a smaller size, (B, *size, 2) uint8.

    The code of a pixel is the mean over the valid pixels that it covers; its validity is their share.

    Args:
        depth: (B, H, W) or (B, H, W, 1) [m], 0 where invalid.
        size: rows and columns [px].
    """
    depth = depth[..., 0] if depth.ndim == 4 else depth
    values, small = depth_code(depth, code, near, far), np.zeros((len(depth), *size, 2), np.uint8)
    for number, (codes, valid) in enumerate(zip(values, (depth > 0).astype(np.float32), strict=True)):
        share, total = (cv2.resize(each, size[::-1], interpolation=cv2.INTER_AREA) for each in (valid, codes))
        mean = np.divide(total, share, out=np.zeros_like(total), where=share >= 0.5)
        small[number] = np.rint(255 * np.stack([mean, share], axis=-1)).astype(np.uint8)
    return small
