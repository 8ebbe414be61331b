"""Depth of every frame of a video: examples/depth_from_video.py HEAD.safetensors VIDEO.mp4 OUT.npz.

The head is one that ``pixio-robot probe`` trained; it knows the scenes and the camera of its training images.
With OUT.mp4 an image is written instead, near things bright.
"""

import argparse
from pathlib import Path

import numpy as np

from pixio_robot import load_depth
from pixio_robot.files import replacing
from pixio_robot.hardware import choose_device
from pixio_robot.video import VideoWriter, read_video


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("head", type=Path)
    parser.add_argument("video", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--encoder", help="where the encoder is now, if not where the head was trained")
    parser.add_argument("--fps", type=float, default=25, help="of OUT.mp4")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    estimator = load_depth(arguments.head, arguments.encoder).to(choose_device(arguments.device))
    depth = np.stack(list(estimator.stream(read_video(arguments.video))))  # (T, H, W) float32 [m]
    if arguments.out.suffix == ".mp4":
        near, far = float(depth.min()), float(depth.max())
        grey = (255 * (far - depth) / max(far - near, 1e-6)).astype(np.uint8)
        with VideoWriter(arguments.out, arguments.fps) as writer:
            for frame in grey:
                writer.add(np.repeat(frame[:, :, None], 3, axis=2))
    else:
        with replacing(arguments.out) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, depth=depth)
    print(f"{len(depth)} frames, {depth.min():.3f} to {depth.max():.3f} m: {arguments.out}")


if __name__ == "__main__":
    main()
