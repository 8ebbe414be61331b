"""The command render_frames."""

from dataclasses import dataclass
from typing import Any

from ..command import Command
from ..settings import MISSING, key


@dataclass
class RenderFrames:
    """Render simulated scenes with random appearance, cameras, clutter and robot states into pre-training shards."""

    scenes: Any = key(
        MISSING, "tasks, suites, MJCF files or patterns of them, also in a package (dm_control:suite/*.xml); or a list"
    )
    frames: int = key(20_000, "number of images", least=1)
    image_size: int = key(256, "side of the images [px]")
    render: list[str] = key(["fast", "fast", "balanced"], "render qualities; one is drawn each time a scene is opened")
    keep_appearance_prob: float = key(
        0.3, "probability that an image keeps the scene's colours, textures and lights, without clutter"
    )
    scene_camera_prob: float = key(
        0.5, "probability of a camera of the scene, displaced slightly; the other images are from free cameras"
    )
    closeup_prob: float = key(0.3, "probability that a free camera is near a moving body")
    clutter: int = key(6, "largest number of bodies added to an image", least=0)
    frames_per_scene: int = key(50, "images of a scene before the next scene is opened", least=1)
    shard: int = key(1000, "images in a shard", least=1)
    quality: int = key(92, "JPEG quality, 1 to 100")
    depth: bool = key(False, "write depth too, as `probe` reads it: KEY.depth.png, uint16 [mm]")
    seed: int = key(0, "random seed", least=0)
    workers: int | None = key(None, "worker processes; null means one per core", least=1, free=True)
    out: str | None = key(None, "folder of the shards; null means runs/frames/<digest of the settings>", free=True)
    debug: bool = key(False, "show tracebacks", free=True)


def run_render_frames(settings: RenderFrames) -> int:
    """Render the images and print where they are."""
    from dataclasses import fields
    from pathlib import Path

    from ..errors import BadInput
    from ..run_folder import settings_digest
    from .frame_renderer import FrameSettings
    from .frames import render_frames

    scenes = [settings.scenes] if isinstance(settings.scenes, str) else settings.scenes
    if not isinstance(scenes, list) or not all(isinstance(each, str) for each in scenes):
        raise BadInput(f"scenes={settings.scenes} must be one scene, or a list: scenes=[metaworld,arm.xml]")
    copied = {each.name for each in fields(FrameSettings)} - {"scenes", "render"}
    what = FrameSettings(
        scenes=tuple(scenes), render=tuple(settings.render), **{name: getattr(settings, name) for name in copied}
    )
    out = Path(settings.out or f"runs/frames/{settings_digest(settings)}")
    report = render_frames(what, out, settings.workers)
    print(f"{report.folder}: {settings.frames} images in {report.shards} shards, {report.reused} of them reused")
    return 0


COMMANDS = {
    "render_frames": Command(RenderFrames, run_render_frames),
}
