"""The command render_frames."""

from dataclasses import dataclass
from typing import Any

from ..command import Command
from ..settings import MISSING, key


@dataclass
class RenderFrames:
    """Render simulated scenes with random looks, cameras, clutter and robot states into shards to pre-train on."""

    scenes: Any = key(
        MISSING, "tasks, suites, MJCF files or patterns of them, also in a package (dm_control:suite/*.xml); or a list"
    )
    frames: int = key(20_000, "images in all", least=1)
    image_size: int = key(256, "side of the images [px]")
    render: list[str] = key(["fast", "fast", "balanced"], "render qualities; each visit to a scene draws one of these")
    keep_appearance_prob: float = key(
        0.3, "share of images with the scene's own colours, textures and lights, without clutter"
    )
    scene_camera_prob: float = key(
        0.5, "share through the scene's own cameras, moved a little; the others from anywhere"
    )
    close: float = key(0.3, "share of those others taken close to something that moves")
    clutter: int = key(6, "most bodies added to an image", least=0)
    frames_per_scene: int = key(50, "images of a scene before the next one", least=1)
    shard: int = key(1000, "images in a shard", least=1)
    quality: int = key(92, "JPEG quality, 1 to 100")
    depth: bool = key(False, "write depth too, as `probe` reads it: KEY.depth.png, uint16 [mm]")
    seed: int = key(0, "seed of everything random", least=0)
    workers: int | None = key(None, "worker processes; null means one a core", least=1, free=True)
    out: str | None = key(None, "folder of the shards; null means runs/frames/<digest of the settings>", free=True)
    debug: bool = key(False, "show tracebacks", free=True)


def _render_frames(command: RenderFrames) -> int:
    from .frames import run_render_frames

    report = run_render_frames(command)
    print(f"{report.folder}: {command.frames} images in {report.shards} shards, {report.reused} of them reused")
    return 0


COMMANDS = {
    "render_frames": Command(RenderFrames, _render_frames),
}
