"""Images of simulated scenes with random appearance, viewpoint, clutter and robot state, as tar shards.

A shard depends on the settings, the seed and its number only, not on the number of workers; a finished shard is kept.
Each ``KEY.jpg`` has a ``KEY.json``: scene, initial state hash, render quality, camera ("free", "closeup" or the
model's name of it), and whether the scene keeps its original appearance. With depth there is also ``KEY.depth.png``,
uint16 [mm] along the optical axis, 0 in the background and beyond 65 m.
"""

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from ..errors import BadInput, DataError
from ..files import replacing
from ..progress import stage
from .frame_renderer import FrameRenderer, FrameSettings, RenderedFrame
from .registry import tasks
from .rendering import QUALITIES, check_rendering, quality
from .rollout import default_width, in_workers
from .scenes import open_scene, scene_names


@dataclass(frozen=True)
class FramesReport:
    """The result of rendering."""

    folder: Path
    shards: int
    reused: int  # shards that were there already


def render_frames(settings: FrameSettings, out: Path, workers: int | None = None) -> FramesReport:
    """Write the missing shards ``out/frames-00000.tar``, ``out/frames-00001.tar``, ... and ``frames.json``.

    Raises:
        BadInput, UnknownName, MissingExtra: for impossible settings or scenes.
        DataError: if `out` holds images made with other settings.
    """
    names = scene_names(list(settings.scenes))
    _check(settings)
    check_rendering()
    numbers = range(-(-settings.frames // settings.shard))
    missing = [number for number in numbers if not _shard(out, number).is_file()]
    if missing:
        for name in {name.split("/")[0] if name in tasks() else name: name for name in names}.values():
            open_scene(name)  # a file or suite that cannot be opened is reported before anything is written
    _check_folder(settings, names, out)
    with stage("render frames", settings.frames) as bar:
        bar.advance(settings.frames - sum(_in_shard(settings, number) for number in missing))
        write = partial(_write_shard, settings, names, out)
        for number, _ in in_workers(write, missing, workers or default_width()) if missing else ():
            bar.advance(_in_shard(settings, number))
    return FramesReport(out, len(numbers), len(numbers) - len(missing))


def _check(settings: FrameSettings) -> None:
    for name in settings.render:
        quality(name)
    if not settings.render:
        raise BadInput(f"render is empty; name at least one of {', '.join(QUALITIES)}")
    for what in ("keep_appearance_prob", "scene_camera_prob", "closeup_prob"):
        if not 0 <= getattr(settings, what) <= 1:
            raise BadInput(f"{what}={getattr(settings, what)} is a probability; it must lie between 0 and 1")
    if not 16 <= settings.image_size <= 4096:
        raise BadInput(f"image_size={settings.image_size} is out of range; 16 to 4096 pixels can be drawn")
    if not 1 <= settings.quality <= 100:
        raise BadInput(f"quality={settings.quality} is out of range; JPEG has 1 to 100")


def _check_folder(settings: FrameSettings, names: list[str], out: Path) -> None:
    """Create the folder, or accept one that was made with the same settings."""
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
        for index, frame in enumerate(_frames(settings, names, number)):
            for suffix, content in _files(frame, settings.quality).items():
                member = tarfile.TarInfo(f"{number:05d}-{index:05d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def _files(frame: RenderedFrame, jpeg_quality: int) -> dict[str, bytes]:
    """Return the files of an image by suffix."""
    jpeg = cv2.imencode(".jpg", frame.rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality])[1]
    files = {"jpg": jpeg.tobytes(), "json": json.dumps(frame.about).encode()}
    if frame.depth is not None:
        millimetres = np.rint(frame.depth * 1000)
        too_far = millimetres > np.iinfo(np.uint16).max
        files["depth.png"] = cv2.imencode(".png", np.where(too_far, 0, millimetres).astype(np.uint16))[1].tobytes()
    return files


def _frames(settings: FrameSettings, names: list[str], number: int) -> Iterator[RenderedFrame]:
    """Yield the images of a shard."""
    left = _in_shard(settings, number)
    per_shard = -(-settings.shard // settings.frames_per_scene)  # also for the last shard, to keep the order of scenes
    for turn in range(number * per_shard, (number + 1) * per_shard):
        if left <= 0:
            return
        rng = np.random.default_rng([settings.seed, turn])
        name = _scene_of(names, turn, settings.seed)
        count = min(settings.frames_per_scene, left)
        with FrameRenderer(settings, name, rng) as renderer:
            for _ in range(count):
                yield renderer.next_frame()
        left -= count


def _scene_of(names: list[str], turn: int, seed: int) -> str:
    """Return the scene of a turn: all scenes in random order, then all scenes again in another order."""
    cycle, position = divmod(turn, len(names))
    return names[int(np.random.default_rng([seed, 1, cycle]).permutation(len(names))[position])]
