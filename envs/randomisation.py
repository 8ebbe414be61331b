"""Domain randomisation of a MuJoCo scene (Tobin et al. 2017, arXiv 1703.06907): appearance, clutter and viewpoints.

Colours, textures and lights of a model are changed in place. Clutter is added to the rendered scene only, so it
does not affect the physics.
"""

from typing import Any, NamedTuple

import cv2
import numpy as np

_ATTEMPTS = 20  # to find a viewpoint with a free line of sight


class Appearance:
    """Colours, textures and lights of a model: its original ones, and random ones.

    Args:
        model: the `mujoco.MjModel`; changed in place by `draw` and `restore`.
    """

    _FIELDS = (
        "geom_rgba", "mat_rgba", "mat_specular", "mat_shininess", "mat_reflectance",
        "light_pos", "light_dir", "light_diffuse", "light_ambient", "light_specular", "tex_data",
    )  # fmt: skip

    def __init__(self, model: Any) -> None:
        self.model = model
        self._own = {name: getattr(model, name).copy() for name in self._FIELDS}
        self._headlight = {name: getattr(model.vis.headlight, name).copy() for name in ("ambient", "diffuse")}

    def restore(self) -> list[int]:
        """Restore the original appearance; return the textures that changed."""
        for name, values in self._own.items():
            getattr(self.model, name)[:] = values
        for name, values in self._headlight.items():
            getattr(self.model.vis.headlight, name)[:] = values
        return list(range(self.model.ntex))

    def draw(self, rng: np.random.Generator) -> list[int]:
        """Draw a random appearance; return the textures that changed."""
        self.restore()
        share = rng.uniform(0.1, 0.9)
        model = self.model
        opaque = model.geom_rgba[:, 3] > 0
        for colours, chosen in ((model.geom_rgba, opaque), (model.mat_rgba, np.ones(model.nmat, bool))):
            picked = chosen & (rng.random(len(colours)) < share)
            colours[picked, :3] = rng.uniform(0.1, 1.0, (int(picked.sum()), 3))
        for values in (model.mat_specular, model.mat_shininess):
            values[:] = np.clip(values + share * rng.uniform(-0.5, 0.5, len(values)), 0, 1)
        self._draw_lights(rng)
        return [index for index in range(model.ntex) if rng.random() < share and self._paint(index, rng)]

    def _draw_lights(self, rng: np.random.Generator) -> None:
        model, own = self.model, self._own
        height = np.maximum(np.abs(own["light_pos"]).max(axis=1, initial=0, keepdims=True), 0.1)
        model.light_pos[:] = own["light_pos"] + rng.uniform(-0.5, 0.5, own["light_pos"].shape) * height
        tilted = own["light_dir"] + rng.uniform(-0.4, 0.4, own["light_dir"].shape)
        model.light_dir[:] = tilted / np.maximum(np.linalg.norm(tilted, axis=1, keepdims=True), 1e-6)
        tint = rng.uniform(0.8, 1.2, 3)
        for name in ("light_diffuse", "light_ambient"):
            getattr(model, name)[:] = np.clip(own[name] * rng.uniform(0.4, 1.4) * tint, 0, 1)
        for name, values in self._headlight.items():
            getattr(model.vis.headlight, name)[:] = np.clip(values * rng.uniform(0.4, 1.5), 0, 1)

    def _paint(self, index: int, rng: np.random.Generator) -> bool:
        model = self.model
        height, width, channels = (int(each[index]) for each in (model.tex_height, model.tex_width, model.tex_nchannel))
        if channels != 3:
            return False
        begin = int(model.tex_adr[index])
        painted = random_texture((height, width), rng)
        model.tex_data[begin : begin + painted.size] = painted.ravel()
        return True


def random_texture(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return checks, stripes, clouds or speckles in two random colours, (height, width, 3) uint8."""
    height, width = size
    kind = rng.integers(4)
    cells = int(rng.integers(2, 24))
    if kind == 0:
        shade = np.indices((cells, cells)).sum(0) % 2
    elif kind == 1:
        shade = np.tile(np.arange(cells) % 2, (2, 1))
        shade = shade if rng.random() < 0.5 else shade.T
    else:
        shade = rng.random((cells, cells)) if kind == 2 else rng.random((128, 128))
    how = cv2.INTER_CUBIC if kind == 2 else cv2.INTER_NEAREST
    shade = np.clip(cv2.resize(shade.astype(np.float32), (width, height), interpolation=how), 0, 1)[..., None]
    first, second = rng.uniform(0, 255, (2, 3))
    return (first + shade * (second - first)).astype(np.uint8)


class MovingRegion(NamedTuple):
    """The region in which the bodies move."""

    positions: np.ndarray  # (M, 3) of the bodies that can move [m]
    centre: np.ndarray  # (3,) their median [m]
    radius: float  # of the sphere around the centre that contains 80 % of them [m]


def moving_region(model: Any, data: Any) -> MovingRegion:
    """Return the region of the bodies that can move; of a static scene, that of all geoms."""
    roots = np.zeros(model.nbody, bool)
    roots[model.jnt_bodyid] = True
    for body in range(1, model.nbody):  # children of a moving body move too
        roots[body] |= roots[model.body_parentid[body]] or model.body_mocapid[body] >= 0
    drawn = np.isin(np.arange(model.nbody), model.geom_bodyid[model.geom_rgba[:, 3] > 0])
    moving = data.xpos[roots & drawn]
    if not len(moving):
        moving = data.geom_xpos
    centre = np.median(moving, axis=0)
    distances = np.linalg.norm(moving - centre, axis=1)
    radius = float(np.quantile(distances, 0.8)) if len(moving) > 1 else 0.0
    return MovingRegion(moving, centre, max(radius, 0.1))


class Viewpoint(NamedTuple):
    """The pose of a free camera."""

    lookat: np.ndarray  # (3,) [m]
    distance: float  # [m]
    azimuth: float  # [deg]
    elevation: float  # [deg], negative looks down


def random_viewpoint(model: Any, data: Any, closeup: bool, rng: np.random.Generator) -> Viewpoint:
    """Draw a viewpoint with a free line of sight to its target; after 20 attempts the last one is returned.

    Args:
        closeup: near one of the moving bodies instead of around all of them.
    """
    region = moving_region(model, data)
    viewpoint = Viewpoint(region.centre, 2 * region.radius, 90.0, -30.0)
    for _ in range(_ATTEMPTS):
        target = (
            region.positions[rng.integers(len(region.positions))] if closeup or rng.random() < 0.5 else region.centre
        )
        reach = rng.uniform(0.3, 0.9) if closeup else rng.uniform(1.0, 3.0)
        viewpoint = Viewpoint(
            lookat=target + rng.normal(0, 0.1 * reach * region.radius, 3),
            distance=reach * region.radius,
            azimuth=float(rng.uniform(-180, 180)),
            elevation=float(rng.uniform(-75, -5)),
        )
        if _in_sight(model, data, viewpoint):
            return viewpoint
    return viewpoint


def _in_sight(model: Any, data: Any, viewpoint: Viewpoint) -> bool:
    """Return whether most of the line from the viewpoint to its target is free."""
    import mujoco

    azimuth, elevation = np.radians([viewpoint.azimuth, viewpoint.elevation])
    forward = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
    start = viewpoint.lookat - viewpoint.distance * forward
    free = mujoco.mj_ray(model, data, start, forward, None, 1, -1, np.zeros(1, np.int32))
    return free < 0 or free > 0.6 * viewpoint.distance


def add_clutter(scene: Any, model: Any, data: Any, most: int, rng: np.random.Generator) -> None:
    """Add up to `most` simple bodies to a `mujoco.MjvScene`, each standing on what is below it."""
    import mujoco

    region = moving_region(model, data)
    kinds = (mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_SPHERE, mujoco.mjtGeom.mjGEOM_CYLINDER,
             mujoco.mjtGeom.mjGEOM_CAPSULE, mujoco.mjtGeom.mjGEOM_ELLIPSOID)  # fmt: skip
    for _ in range(int(rng.integers(0, most + 1))):
        position = region.centre + rng.uniform(-1.5, 1.5, 3) * region.radius
        position[2] = region.positions[:, 2].max() + region.radius
        below = mujoco.mj_ray(model, data, position, np.array([0.0, 0, -1]), None, 1, -1, np.zeros(1, np.int32))
        if below < 0 or scene.ngeom >= scene.maxgeom:
            continue
        size = rng.uniform(0.03, 0.2, 3) * min(region.radius, 0.4)
        turn = np.zeros(9)
        mujoco.mju_quat2Mat(turn, _random_quaternion(rng))
        position[2] += size[2] - below
        colour = np.append(rng.uniform(0, 1, 3), 1).astype(np.float32)
        geom = scene.geoms[scene.ngeom]
        mujoco.mjv_initGeom(geom, kinds[rng.integers(len(kinds))], size, position, turn, colour)
        geom.specular, geom.shininess = rng.uniform(0, 1, 2)
        scene.ngeom += 1


def _random_quaternion(rng: np.random.Generator) -> np.ndarray:
    """Return a uniformly random rotation, or one about the vertical axis, with equal probability."""
    if rng.random() < 0.5:
        angle = rng.uniform(0, np.pi)
        return np.array([np.cos(angle), 0, 0, np.sin(angle)])
    values = rng.standard_normal(4)
    return values / np.linalg.norm(values)
