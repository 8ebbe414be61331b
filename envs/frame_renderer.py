"""Images of one simulated scene: random appearance, viewpoint, clutter and robot state."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .randomisation import Appearance, add_clutter, random_viewpoint
from .rendering import new_renderer, rendered_depth, set_quality
from .scenes import Scene, open_scene

_IMAGES_PER_APPEARANCE = 10
_BLANK = 4.0  # standard deviation of grey levels below which an image is blank
_ATTEMPTS = 5  # to render an image that is not blank


@dataclass(frozen=True)
class FrameSettings:
    """Everything that determines the bytes of the shards."""

    scenes: tuple[str, ...]
    frames: int
    image_size: int  # side [px]
    render: tuple[str, ...]  # qualities; one is drawn each time a scene is opened
    keep_appearance_prob: float  # probability of the scene's original appearance
    scene_camera_prob: float  # probability of a camera of the scene, displaced slightly
    closeup_prob: float  # probability that any other camera is near a moving body
    clutter: int  # largest number of bodies added to an image
    frames_per_scene: int  # images rendered before the next scene is opened
    shard: int  # images in a shard
    quality: int  # JPEG quality
    seed: int
    depth: bool = False  # write depth too


class RenderedFrame(NamedTuple):
    """An image with its metadata."""

    rgb: np.ndarray  # (H, W, 3) uint8
    depth: np.ndarray | None  # (H, W) float32 along the optical axis [m], 0 where nothing is hit
    about: dict[str, Any]


class FrameRenderer:
    """Renders images of one scene, one after the other. Use it as a context manager.

    Args:
        settings: how to render.
        name: of the scene.
        rng: source of all randomness.
    """

    def __init__(self, settings: FrameSettings, name: str, rng: np.random.Generator) -> None:
        self.settings, self.name, self.rng = settings, name, rng
        self.scene: Scene = open_scene(name)
        import mujoco  # after open_scene, which chooses the GL backend

        self.render = settings.render[int(rng.integers(len(settings.render)))]
        model, size = self.scene.model, settings.image_size
        chosen = set_quality(model, size, self.render)
        self.appearance, self.keeps_appearance, self.count = Appearance(model), True, 0
        self.scene.reset(rng)
        self.renderer = new_renderer(model, size, chosen)
        self.options = mujoco.MjvOption()
        self.options.flags[mujoco.mjtVisFlag.mjVIS_RANGEFINDER] = False  # its rays are not part of the scene

    def __enter__(self) -> "FrameRenderer":
        return self

    def __exit__(self, *_: object) -> None:
        self.renderer.close()

    def next_frame(self) -> RenderedFrame:
        """Advance the scene, choose appearance and viewpoint, and render; a blank image is rendered again."""
        if self.count % _IMAGES_PER_APPEARANCE == 0:
            self._change_appearance()
        for _ in range(_ATTEMPTS):
            self.scene.advance(self.rng)
            fixed = bool(self.scene.cameras) and self.rng.random() < self.settings.scene_camera_prob
            frame = self._from_scene_camera() if fixed else self._from_free_camera()
            if frame.rgb.std() > _BLANK:
                break
        self.count += 1
        about = {
            "scene": self.name,
            "initial_state_hash": self.scene.initial_state_hash,
            "render": self.render,
            "keeps_appearance": self.keeps_appearance,
        }
        return frame._replace(about=about | frame.about)

    def _change_appearance(self) -> None:
        import mujoco

        self.keeps_appearance = self.rng.random() < self.settings.keep_appearance_prob
        for texture in self.appearance.restore() if self.keeps_appearance else self.appearance.draw(self.rng):
            mujoco.mjr_uploadTexture(self.scene.model, self.renderer._mjr_context, texture)
        if self.count:
            self.scene.reset(self.rng)

    def _from_scene_camera(self) -> RenderedFrame:
        import mujoco

        model, data = self.scene.model, self.scene.data
        name = self.scene.cameras[int(self.rng.integers(len(self.scene.cameras)))]
        index = model.camera(name).id
        original = model.cam_pos[index].copy()
        model.cam_pos[index] += self.rng.normal(0, 0.03, 3) * max(float(np.linalg.norm(original)), 0.1)
        mujoco.mj_camlight(model, data)
        try:
            return self._rendered(name, name)
        finally:
            model.cam_pos[index] = original

    def _from_free_camera(self) -> RenderedFrame:
        import mujoco

        model, data = self.scene.model, self.scene.data
        closeup = self.rng.random() < self.settings.closeup_prob
        viewpoint = random_viewpoint(model, data, closeup, self.rng)
        camera = mujoco.MjvCamera()
        camera.lookat[:], camera.distance = viewpoint.lookat, viewpoint.distance
        camera.azimuth, camera.elevation = viewpoint.azimuth, viewpoint.elevation
        mujoco.mj_camlight(model, data)
        return self._rendered(camera, "closeup" if closeup else "free")

    def _rendered(self, camera: Any, name: str) -> RenderedFrame:
        self.renderer.update_scene(self.scene.data, camera=camera, scene_option=self.options)
        if self.settings.clutter and not self.keeps_appearance:
            add_clutter(self.renderer.scene, self.scene.model, self.scene.data, self.settings.clutter, self.rng)
        rgb, depth = self.renderer.render(), None
        if self.settings.depth:
            depth = rendered_depth(self.renderer, self.scene.model)
            self.renderer.disable_depth_rendering()
        return RenderedFrame(rgb, depth, {"camera": name})
