"""One simulated scene photographed again and again, in random looks, from random places, robots in random states."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .randomisation import Look, add_clutter, random_eye
from .rendering import new_renderer, rendered_depth, set_quality
from .scenes import Scene, open_scene

_LOOKS = 10  # images between changes of the look
_BLANK = 4.0  # deviation of grey levels below which an image shows nothing
_TRIES = 5  # for an image that shows something


@dataclass(frozen=True)
class FrameSettings:
    """What decides every byte of the shards."""

    scenes: tuple[str, ...]
    frames: int
    image_size: int  # side [px]
    render: tuple[str, ...]  # qualities, one drawn for each visit to a scene
    keep_appearance_prob: float  # share of images in the scene's own look
    scene_camera_prob: float  # share taken with the scene's own cameras, shaken a little
    close: float  # share of the others taken close to something that moves
    clutter: int  # most bodies added to an image
    frames_per_scene: int  # images taken before the next scene
    shard: int  # images in a shard
    quality: int  # JPEG quality
    seed: int
    depth: bool = False  # write depth too


class Photograph(NamedTuple):
    """An image and what is known of it."""

    rgb: np.ndarray  # (H, W, 3) uint8
    depth: np.ndarray | None  # (H, W) float32 along the optical axis [m], 0 where nothing is hit
    about: dict[str, Any]


class FrameRenderer:
    """Takes images of one scene, one after the other; a context manager.

    Args:
        settings: how.
        name: of the scene.
        rng: of everything random.
    """

    def __init__(self, settings: FrameSettings, name: str, rng: np.random.Generator) -> None:
        self.settings, self.name, self.rng = settings, name, rng
        self.scene: Scene = open_scene(name)
        import mujoco  # not before open_scene, which chooses the GL backend

        self.render = settings.render[int(rng.integers(len(settings.render)))]
        model, size = self.scene.model, settings.image_size
        chosen = set_quality(model, size, self.render)
        self.look, self.keep_appearance_prob, self.taken = Look(model), True, 0
        self.scene.reset(rng)
        self.renderer = new_renderer(model, size, chosen)
        self.shown = mujoco.MjvOption()
        self.shown.flags[mujoco.mjtVisFlag.mjVIS_RANGEFINDER] = False  # its rays are no part of the world

    def __enter__(self) -> "FrameRenderer":
        return self

    def __exit__(self, *_: object) -> None:
        self.renderer.close()

    def take(self) -> Photograph:
        """Let time pass, choose look and viewpoint, and take an image; again, if it shows nothing."""
        if self.taken % _LOOKS == 0:
            self._new_look()
        for _ in range(_TRIES):
            self.scene.advance(self.rng)
            own = bool(self.scene.cameras) and self.rng.random() < self.settings.scene_camera_prob
            photograph = self._through_own_camera() if own else self._from_anywhere()
            if photograph.rgb.std() > _BLANK:
                break
        self.taken += 1
        about = {
            "scene": self.name,
            "start": self.scene.start,
            "render": self.render,
            "keep_appearance_prob": self.keep_appearance_prob,
        }
        return photograph._replace(about=about | photograph.about)

    def _new_look(self) -> None:
        import mujoco

        self.keep_appearance_prob = self.rng.random() < self.settings.keep_appearance_prob
        for texture in self.look.restore() if self.keep_appearance_prob else self.look.draw(self.rng):
            mujoco.mjr_uploadTexture(self.scene.model, self.renderer._mjr_context, texture)
        if self.taken:
            self.scene.reset(self.rng)

    def _through_own_camera(self) -> Photograph:
        import mujoco

        model, data = self.scene.model, self.scene.data
        name = self.scene.cameras[int(self.rng.integers(len(self.scene.cameras)))]
        index = model.camera(name).id
        own = model.cam_pos[index].copy()
        model.cam_pos[index] += self.rng.normal(0, 0.03, 3) * max(float(np.linalg.norm(own)), 0.1)
        mujoco.mj_camlight(model, data)
        try:
            return self._taken(name, name)
        finally:
            model.cam_pos[index] = own

    def _from_anywhere(self) -> Photograph:
        import mujoco

        model, data = self.scene.model, self.scene.data
        close = self.rng.random() < self.settings.close
        eye = random_eye(model, data, close, self.rng)
        camera = mujoco.MjvCamera()
        camera.lookat[:], camera.distance = eye.lookat, eye.distance
        camera.azimuth, camera.elevation = eye.azimuth, eye.elevation
        mujoco.mj_camlight(model, data)
        return self._taken(camera, "close" if close else "free")

    def _taken(self, camera: Any, called: str) -> Photograph:
        self.renderer.update_scene(self.scene.data, camera=camera, scene_option=self.shown)
        if self.settings.clutter and not self.keep_appearance_prob:
            add_clutter(self.renderer.scene, self.scene.model, self.scene.data, self.settings.clutter, self.rng)
        rgb, depth = self.renderer.render(), None
        if self.settings.depth:
            depth = rendered_depth(self.renderer, self.scene.model)
            self.renderer.disable_depth_rendering()
        return Photograph(rgb, depth, {"camera": called})
