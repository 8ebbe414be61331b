"""Images from MuJoCo: headless GL, named render qualities, depth in metres and camera calibration.

Rendering is 95 to 99 % of the cost of simulation here, and most of that is the shadow map and multisampling, not
the resolution. Both change pixels, so the quality is recorded with data and results.
"""

import os
import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..calibration import Calibration
from ..errors import BadInput, RenderingUnavailable, UnknownName, closest

EGL_PACKAGES = "libegl1 libegl-mesa0 libgl1-mesa-dri"


class Quality(NamedTuple):
    """The visual settings of a render quality; None keeps the model's own value."""

    shadow_map: int | None  # side of the shadow map [px], 0 for no shadows
    samples: int | None  # multisampling
    reflections: bool


QUALITIES = {
    "benchmark": Quality(shadow_map=None, samples=None, reflections=True),  # as the simulator's authors set it
    "balanced": Quality(shadow_map=1024, samples=0, reflections=True),
    "fast": Quality(shadow_map=0, samples=0, reflections=False),
}


class CameraView(Protocol):
    """One camera of a task; `View` is that of a MuJoCo model, `DrawnView` that of a task that draws its images.

    `depth` and `calibration` are called only if the task declares them in its `Capabilities`.
    """

    def rgb(self) -> np.ndarray:
        """Return the image, (size, size, 3) uint8, upright."""

    def depth(self) -> np.ndarray:
        """Return depth along the optical axis, (size, size) float32 [m]; 0 where nothing is hit."""

    def calibration(self) -> Calibration:
        """Return intrinsics and the camera's present pose."""

    def close(self) -> None:
        """Release what rendering needs."""


class DrawnView:
    """The camera of a task that draws its own images; it has no depth and no calibration.

    Args:
        draw: returns the image, (size, size, 3) uint8.
    """

    def __init__(self, draw: Callable[[], np.ndarray]) -> None:
        self._draw = draw

    def rgb(self) -> np.ndarray:
        return self._draw()

    def depth(self) -> np.ndarray:
        raise BadInput("this task has no depth; observe rgb")

    def calibration(self) -> Calibration:
        raise BadInput("this task has no calibration")

    def close(self) -> None:
        return


def use_headless_gl() -> None:
    """Choose EGL on Linux if MUJOCO_GL is not set. Call it before MuJoCo is first imported."""
    if sys.platform == "linux" and "MUJOCO_GL" not in os.environ:
        os.environ["MUJOCO_GL"] = "egl"


def quality(name: str) -> Quality:
    """Return a render quality by name.

    Raises:
        UnknownName: for a quality that does not exist.
    """
    if name not in QUALITIES:
        known = ", ".join(QUALITIES)
        raise UnknownName(f"no render quality {name!r}; there are: {known}{closest(name, QUALITIES)}")
    return QUALITIES[name]


def rendered_depth(renderer: Any, model: Any) -> np.ndarray:
    """Return depth of a renderer's scene, (size, size) float32 [m], 0 in the background; depth rendering stays on."""
    renderer.enable_depth_rendering()
    depth = renderer.render()
    return np.where(depth < 0.99 * model.vis.map.zfar * model.stat.extent, depth, 0).astype(np.float32)


class View:
    """One camera of a MuJoCo model at one size and quality. The GL context is made with the first image.

    Args:
        model: the `mujoco.MjModel`; its visual settings are written.
        data: the `mujoco.MjData` that is rendered.
        camera: name, or index where a model names none.
        size: side of the square image [px].
        quality_name: a name in `QUALITIES`.
    """

    def __init__(self, model: Any, data: Any, camera: str | int, size: int, quality_name: str) -> None:
        self.model, self.data, self.camera, self.size = model, data, camera, size
        self._quality = set_quality(model, size, quality_name)
        self._renderer: Any = None

    def rgb(self) -> np.ndarray:
        """Return the image, (size, size, 3) uint8, upright."""
        renderer = self._ready()
        renderer.disable_depth_rendering()
        return renderer.render()

    def depth(self) -> np.ndarray:
        """Return depth along the optical axis, (size, size) float32 [m]; 0 where nothing is hit."""
        return rendered_depth(self._ready(), self.model)

    def calibration(self) -> Calibration:
        """Return intrinsics and the camera's present pose."""
        index = self.model.camera(self.camera).id
        focal = self.size / 2 / np.tan(np.radians(self.model.cam_fovy[index]) / 2)
        centre = (self.size - 1) / 2
        pose = np.eye(4)
        pose[:3, :3] = self.data.cam_xmat[index].reshape(3, 3) @ np.diag([1.0, -1.0, -1.0])  # OpenGL axes to OpenCV's
        pose[:3, 3] = self.data.cam_xpos[index]
        return Calibration(np.array([[focal, 0, centre], [0, focal, centre], [0, 0, 1.0]]), pose)

    def close(self) -> None:
        """Release the GL context."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _ready(self) -> Any:
        if self._renderer is None:
            self._renderer = new_renderer(self.model, self.size, self._quality)
        self._renderer.update_scene(self.data, camera=self.camera)
        return self._renderer


def set_quality(model: Any, size: int, name: str) -> Quality:
    """Write a render quality into a model's visual settings, with room for square images of `size` px; return it."""
    chosen = quality(name)
    if chosen.shadow_map is not None:
        model.vis.quality.shadowsize = chosen.shadow_map
    if chosen.samples is not None:
        model.vis.quality.offsamples = chosen.samples
    model.vis.global_.offwidth = max(model.vis.global_.offwidth, size)
    model.vis.global_.offheight = max(model.vis.global_.offheight, size)
    return chosen


def new_renderer(model: Any, size: int, chosen: Quality) -> Any:
    """Return a `mujoco.Renderer` for a model that `set_quality` prepared.

    Raises:
        RenderingUnavailable: if no GL context can be made, with what to install.
    """
    try:
        import mujoco

        mujoco.Renderer._gl_context = mujoco.Renderer._mjr_context = None  # else a failed one complains when deleted
        with warnings.catch_warnings():  # the error below says it
            warnings.simplefilter("ignore")
            renderer = mujoco.Renderer(model, size, size)
        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = chosen.reflections
        return renderer
    except Exception as error:  # MuJoCo raises whatever its GL backend raised
        raise RenderingUnavailable(
            f"no OpenGL context with MUJOCO_GL={os.environ.get('MUJOCO_GL', '(unset)')} "
            f"({type(error).__name__}: {error}); on Debian or Ubuntu: apt-get install -y {EGL_PACKAGES}, "
            "then MUJOCO_GL=egl"
        ) from error


def check_rendering() -> None:
    """Render one small image, so that a missing OpenGL fails early.

    Raises:
        RenderingUnavailable: if no GL context can be made.
    """
    use_headless_gl()
    try:
        import mujoco
    except Exception as error:  # an unknown MUJOCO_GL or a missing library fails at import
        raise RenderingUnavailable(
            f"mujoco does not import with MUJOCO_GL={os.environ.get('MUJOCO_GL', '(unset)')} ({error}); "
            f"use MUJOCO_GL=egl after: apt-get install -y {EGL_PACKAGES}"
        ) from error
    model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='.1'/></worldbody></mujoco>")
    renderer = new_renderer(model, 16, QUALITIES["fast"])
    renderer.update_scene(mujoco.MjData(model))
    renderer.render()
    renderer.close()
