"""Pictures of simulated scenes with random looks, viewpoints, clutter and robot states, as tar shards to pre-train on.

A shard is a function of the settings, the seed and its number, whatever the number of workers; a finished one is not
made again. Beside each ``KEY.jpg`` lies ``KEY.json``: scene, start, render quality, camera ("free", "close" or the
model's name of its own), and whether the look is the scene's own.
"""

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..errors import BadInput, DataError
from ..files import replacing
from ..progress import Progress
from ..run_folder import settings_digest
from ..schemas import RenderFrames
from .randomisation import Look, add_clutter, random_eye
from .registry import tasks
from .rendering import QUALITIES, check_rendering, new_renderer, quality, set_quality
from .rollout import default_width, in_workers
from .scenes import Scene, open_scene, scene_names

_LOOKS = 10  # pictures between changes of the look
_BLANK = 4.0  # deviation of grey levels below which a picture shows nothing
_TRIES = 5  # for a picture that shows something


@dataclass(frozen=True)
class FrameSettings:
    """What decides every byte of the shards."""

    scenes: tuple[str, ...]
    frames: int
    image_size: int  # side [px]
    render: tuple[str, ...]  # qualities, one drawn for each visit to a scene
    own_look: float  # share of pictures in the scene's own look
    own_camera: float  # share taken with the scene's own cameras, shaken a little
    close: float  # share of the others taken close to something that moves
    clutter: int  # most bodies added to a picture
    visit: int  # pictures taken before the next scene
    shard: int  # pictures in a shard
    quality: int  # JPEG quality
    seed: int


def run_render_frames(command: RenderFrames, progress: Progress) -> "FramesReport":
    """Do what ``pixio-robot render_frames`` says."""
    scenes = [command.scenes] if isinstance(command.scenes, str) else command.scenes
    if not isinstance(scenes, list) or not all(isinstance(each, str) for each in scenes):
        raise BadInput(f"scenes={command.scenes} must name a scene, or several: scenes=[metaworld,arm.xml]")
    names = {each.name for each in fields(FrameSettings)} - {"scenes", "render"}
    settings = FrameSettings(
        scenes=tuple(scenes), render=tuple(command.render), **{name: getattr(command, name) for name in names}
    )
    out = Path(command.out or f"runs/frames/{settings_digest(command)}")
    return render_frames(settings, out, command.workers, progress)


@dataclass
class FramesReport:
    """What rendering came to."""

    folder: Path
    shards: int
    reused: int


def render_frames(
    settings: FrameSettings, out: Path, workers: int | None = None, progress: Progress | None = None
) -> FramesReport:
    """Write the shards ``out/frames-00000.tar`` and so on that are not there yet, and ``frames.json``.

    Raises:
        BadInput, UnknownName, MissingExtra: for settings or scenes that cannot be.
        DataError: if `out` holds pictures made with other settings.
    """
    names = scene_names(list(settings.scenes))
    _check(settings)
    check_rendering()
    numbers = range(-(-settings.frames // settings.shard))
    waiting = [number for number in numbers if not _shard(out, number).is_file()]
    if waiting:
        for name in {name.split("/")[0] if name in tasks() else name: name for name in names}.values():
            open_scene(name)  # what does not open, a file or a suite, is said before anything is written
    _claim(settings, names, out)
    with (progress or Progress()).stage("render frames", settings.frames) as bar:
        bar.advance(settings.frames - sum(_in_shard(settings, number) for number in waiting))
        write = partial(_write_shard, settings, names, out)
        for number, _ in in_workers(write, waiting, workers or default_width()) if waiting else ():
            bar.advance(_in_shard(settings, number))
    return FramesReport(out, len(numbers), len(numbers) - len(waiting))


def _check(settings: FrameSettings) -> None:
    for name in settings.render:
        quality(name)
    if not settings.render:
        raise BadInput(f"render is empty; name at least one of {', '.join(QUALITIES)}")
    for what in ("own_look", "own_camera", "close"):
        if not 0 <= getattr(settings, what) <= 1:
            raise BadInput(f"{what}={getattr(settings, what)} is a share; it must lie from 0 to 1")
    if not 16 <= settings.image_size <= 4096:
        raise BadInput(f"image_size={settings.image_size} is out of range; 16 to 4096 pixels can be drawn")
    if not 1 <= settings.quality <= 100:
        raise BadInput(f"quality={settings.quality} is out of range; JPEG has 1 to 100")


def _claim(settings: FrameSettings, names: list[str], out: Path) -> None:
    """Make the folder, or accept one that was made with the same settings."""
    if out.is_file():
        raise BadInput(f"out={out} is a file; give the name of a folder")
    about = out / "frames.json"
    text = json.dumps({**asdict(settings), "names": names}, indent=1)
    if about.is_file() and about.read_text() != text:
        raise DataError(f"{out} holds pictures made with other settings; delete it or choose another out=")
    for left in out.glob(".frames-*.tmp"):  # by a worker that was killed while it wrote
        left.unlink()
    with replacing(about) as temporary:
        temporary.write_text(text)


def _shard(out: Path, number: int) -> Path:
    return out / f"frames-{number:05d}.tar"


def _in_shard(settings: FrameSettings, number: int) -> int:
    return min(settings.shard, settings.frames - number * settings.shard)


def _write_shard(settings: FrameSettings, names: list[str], out: Path, number: int) -> None:
    with replacing(_shard(out, number)) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
        for index, (picture, about) in enumerate(_pictures(settings, names, number)):
            key = f"{number:05d}-{index:05d}"
            jpeg = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, settings.quality])[1].tobytes()
            for suffix, content in (("jpg", jpeg), ("json", json.dumps(about).encode())):
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def _pictures(settings: FrameSettings, names: list[str], number: int) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """Yield the pictures of a shard and what is known of each."""
    left = _in_shard(settings, number)
    visits = -(-settings.shard // settings.visit)  # of a whole shard, so that the last one continues the order
    for visit in range(number * visits, (number + 1) * visits):
        if left <= 0:
            return
        rng = np.random.default_rng([settings.seed, visit])
        name = _visited(names, visit, settings.seed)
        count = min(settings.visit, left)
        with _Photographer(settings, name, rng) as photographer:
            for _ in range(count):
                yield photographer.picture()
        left -= count


def _visited(names: list[str], visit: int, seed: int) -> str:
    """Return the scene of a visit: every scene once in random order, then every scene again in another."""
    turn, place = divmod(visit, len(names))
    return names[int(np.random.default_rng([seed, 1, turn]).permutation(len(names))[place])]


class _Photographer:
    """Takes pictures of one scene, one after the other."""

    def __init__(self, settings: FrameSettings, name: str, rng: np.random.Generator) -> None:
        self.settings, self.name, self.rng = settings, name, rng
        self.scene: Scene = open_scene(name)
        import mujoco  # not before open_scene, which chooses the GL backend

        self.render = settings.render[int(rng.integers(len(settings.render)))]
        model, size = self.scene.model, settings.image_size
        chosen = set_quality(model, size, self.render)
        self.look, self.own_look, self.taken = Look(model), True, 0
        self.scene.reset(rng)
        self.renderer = new_renderer(model, size, chosen)
        self.shown = mujoco.MjvOption()
        self.shown.flags[mujoco.mjtVisFlag.mjVIS_RANGEFINDER] = False  # its rays are no part of the world

    def __enter__(self) -> "_Photographer":
        return self

    def __exit__(self, *_: object) -> None:
        self.renderer.close()

    def picture(self) -> tuple[np.ndarray, dict[str, Any]]:
        """Let time pass, choose look and viewpoint, and take a picture; again, if it shows nothing."""
        if self.taken % _LOOKS == 0:
            self._new_look()
        for _ in range(_TRIES):
            self.scene.advance(self.rng)
            own = bool(self.scene.cameras) and self.rng.random() < self.settings.own_camera
            picture, about = self._through_own_camera() if own else self._from_anywhere()
            if picture.std() > _BLANK:
                break
        self.taken += 1
        return picture, {
            "scene": self.name,
            "start": self.scene.start,
            "render": self.render,
            "own_look": self.own_look,
            **about,
        }

    def _new_look(self) -> None:
        import mujoco

        self.own_look = self.rng.random() < self.settings.own_look
        for texture in self.look.restore() if self.own_look else self.look.draw(self.rng):
            mujoco.mjr_uploadTexture(self.scene.model, self.renderer._mjr_context, texture)
        if self.taken:
            self.scene.reset(self.rng)

    def _through_own_camera(self) -> tuple[np.ndarray, dict[str, Any]]:
        import mujoco

        model, data = self.scene.model, self.scene.data
        name = self.scene.cameras[int(self.rng.integers(len(self.scene.cameras)))]
        index = model.camera(name).id
        own = model.cam_pos[index].copy()
        model.cam_pos[index] += self.rng.normal(0, 0.03, 3) * max(float(np.linalg.norm(own)), 0.1)
        mujoco.mj_camlight(model, data)
        try:
            return self._taken(name), {"camera": name}
        finally:
            model.cam_pos[index] = own

    def _from_anywhere(self) -> tuple[np.ndarray, dict[str, Any]]:
        import mujoco

        model, data = self.scene.model, self.scene.data
        close = self.rng.random() < self.settings.close
        eye = random_eye(model, data, close, self.rng)
        camera = mujoco.MjvCamera()
        camera.lookat[:], camera.distance = eye.lookat, eye.distance
        camera.azimuth, camera.elevation = eye.azimuth, eye.elevation
        mujoco.mj_camlight(model, data)
        return self._taken(camera), {"camera": "close" if close else "free"}

    def _taken(self, camera: Any) -> np.ndarray:
        self.renderer.update_scene(self.scene.data, camera=camera, scene_option=self.shown)
        if self.settings.clutter and not self.own_look:
            add_clutter(self.renderer.scene, self.scene.model, self.scene.data, self.settings.clutter, self.rng)
        return self.renderer.render()
