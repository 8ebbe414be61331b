"""Images of simulated scenes with random looks, viewpoints, clutter and robot states, as tar shards to pre-train on.

A shard is a function of the settings, the seed and its number, whatever the number of workers; a finished one is not
made again. Beside each ``KEY.jpg`` lies ``KEY.json``: scene, start, render quality, camera ("free", "close" or the
model's name of its own), and whether the look is the scene's own; with ``depth=true`` also ``KEY.depth.png``,
uint16 [mm] along the optical axis, 0 where nothing is or it is farther than 65 m.
"""

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from ..errors import BadInput, DataError
from ..files import replacing
from ..progress import stage
from ..run_folder import settings_digest
from .commands import RenderFrames
from .frame_renderer import FrameRenderer, FrameSettings, Photograph
from .registry import tasks
from .rendering import QUALITIES, check_rendering, quality
from .rollout import default_width, in_workers
from .scenes import open_scene, scene_names


def run_render_frames(command: RenderFrames) -> "FramesReport":
    """Do what ``pixio-robot render_frames`` says."""
    scenes = [command.scenes] if isinstance(command.scenes, str) else command.scenes
    if not isinstance(scenes, list) or not all(isinstance(each, str) for each in scenes):
        raise BadInput(f"scenes={command.scenes} must name a scene, or several: scenes=[metaworld,arm.xml]")
    names = {each.name for each in fields(FrameSettings)} - {"scenes", "render"}
    settings = FrameSettings(
        scenes=tuple(scenes), render=tuple(command.render), **{name: getattr(command, name) for name in names}
    )
    out = Path(command.out or f"runs/frames/{settings_digest(command)}")
    return render_frames(settings, out, command.workers)


@dataclass
class FramesReport:
    """What rendering came to."""

    folder: Path
    shards: int
    reused: int


def render_frames(settings: FrameSettings, out: Path, workers: int | None = None) -> FramesReport:
    """Write the shards ``out/frames-00000.tar`` and so on that are not there yet, and ``frames.json``.

    Raises:
        BadInput, UnknownName, MissingExtra: for settings or scenes that cannot be.
        DataError: if `out` holds images made with other settings.
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
    with stage("render frames", settings.frames) as bar:
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
    for what in ("keep_appearance_prob", "scene_camera_prob", "close"):
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
        raise DataError(f"{out} holds images made with other settings; delete it or choose another out=")
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
        for index, photograph in enumerate(_photographs(settings, names, number)):
            for suffix, content in _files(photograph, settings.quality).items():
                member = tarfile.TarInfo(f"{number:05d}-{index:05d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def _files(photograph: Photograph, jpeg_quality: int) -> dict[str, bytes]:
    """Return what is written of an image, by suffix."""
    jpeg = cv2.imencode(".jpg", photograph.rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality])[1]
    files = {"jpg": jpeg.tobytes(), "json": json.dumps(photograph.about).encode()}
    if photograph.depth is not None:
        millimetres = np.rint(photograph.depth * 1000)
        unknown = millimetres > np.iinfo(np.uint16).max
        files["depth.png"] = cv2.imencode(".png", np.where(unknown, 0, millimetres).astype(np.uint16))[1].tobytes()
    return files


def _photographs(settings: FrameSettings, names: list[str], number: int) -> Iterator[Photograph]:
    """Yield the images of a shard."""
    left = _in_shard(settings, number)
    visits = -(
        -settings.shard // settings.frames_per_scene
    )  # of a whole shard, so that the last one continues the order
    for visit in range(number * visits, (number + 1) * visits):
        if left <= 0:
            return
        rng = np.random.default_rng([settings.seed, visit])
        name = _visited(names, visit, settings.seed)
        count = min(settings.frames_per_scene, left)
        with FrameRenderer(settings, name, rng) as photographer:
            for _ in range(count):
                yield photographer.take()
        left -= count


def _visited(names: list[str], visit: int, seed: int) -> str:
    """Return the scene of a visit: every scene once in random order, then every scene again in another."""
    turn, place = divmod(visit, len(names))
    return names[int(np.random.default_rng([seed, 1, turn]).permutation(len(names))[place])]
