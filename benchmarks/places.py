"""How well object positions can be read from frozen class tokens: ``python benchmarks/places.py ENCODER [ENCODER ...]``

For each task it renders 400 images at random times of its expert's disturbed episodes, each with another placement of
the objects. Ridge regression maps tokens to the first object's position. It is fitted on 300 images, and twelve times
on 25, as few as cloning has; R squared is measured on the others. This takes minutes where cloning takes hours, but it
measures position only, not the rest of what cloning needs.
"""

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from pixio_robot.encoders.load import Backbone, load_encoder
from pixio_robot.envs.registry import new_task
from pixio_robot.envs.rendering import use_headless_gl

TASKS = ("button-press-topdown", "hammer", "assembly", "bin-picking")
IMAGES, TRAINING, FEW = 400, 300, 25
OBJECT = slice(4, 7)  # in MetaWorld's state: x, y, z of the first object [m]
PENALTIES = (1.0, 10.0, 100.0, 1000.0)


def images_of(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images (N, 256, 256, 3) uint8 and the object's position (N, 3) [m]; kept in ``runs/places``."""
    file = Path(f"runs/places/{name}.npz")
    if not file.is_file():
        use_headless_gl()
        task, rng = new_task(f"metaworld/{name}"), np.random.default_rng(5)
        view = task.view(task.cameras[0], 256, "fast")
        images, places = [], []
        for _ in range(IMAGES):
            task.reset(rng)
            for _ in range(rng.integers(0, 70)):
                task.step(np.clip(task.expert_action() + rng.normal(0, 0.3, task.action_dim), -1, 1))
            images.append(view.rgb())
            places.append(task.privileged_state()[OBJECT].copy())
        view.close()
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, images=np.stack(images), places=np.stack(places))
    with np.load(file) as data:
        return data["images"], data["places"]


@torch.inference_mode()
def class_tokens(encoder: Backbone, images: np.ndarray) -> np.ndarray:
    """Return (N, K, D)."""
    parts = torch.from_numpy(images).split(20)
    return torch.cat([encoder(encoder.preprocess(part)).cls for part in parts]).numpy()


def r_squared(inputs: np.ndarray, targets: np.ndarray, known: int) -> float:
    """Return the share of the targets' variance that ridge regressions explain on the last rows, mean over columns.

    The penalty is the best of four on those rows, for every encoder. Columns that never change are left out.

    Args:
        inputs: (N, D).
        targets: (N, C).
        known: rows of a fit; the first rows are split into parts of this size, one fit each.
    """
    targets = targets[:, targets[:TRAINING].std(axis=0) > 1e-3]
    inputs = (inputs - inputs[:TRAINING].mean(axis=0)) / (inputs[:TRAINING].std(axis=0) + 1e-6)
    new, true = inputs[TRAINING:], targets[TRAINING:]
    left = ((true - true.mean(axis=0)) ** 2).sum(axis=0)
    scores = []
    for penalty in PENALTIES:
        explained = []
        for start in range(0, TRAINING, known):
            rows = slice(start, start + known)
            middle = targets[rows].mean(axis=0)
            kernel = inputs[rows] @ inputs[rows].T + penalty * np.eye(known)
            guess = new @ (inputs[rows].T @ np.linalg.solve(kernel, targets[rows] - middle)) + middle
            explained.append(float((1 - ((guess - true) ** 2).sum(axis=0) / left).mean()))
        scores.append(float(np.mean(explained)))
    return max(scores)


def main(names: list[str]) -> None:
    """Print a table, encoders by tasks."""
    print("| encoder | tokens | placements |", " | ".join(TASKS), "| mean |")
    print("|---" * (len(TASKS) + 4) + "|")
    for name in names:
        encoder = load_encoder(name)
        scores: dict[tuple[str, int], list[float]] = defaultdict(list)
        for task in TASKS:
            images, places = images_of(task)
            tokens = class_tokens(encoder, images)
            for used, inputs in (("mean", tokens.mean(axis=1)), ("all", tokens.reshape(len(tokens), -1))):
                for known in (TRAINING, FEW):
                    scores[used, known].append(r_squared(inputs, places, known))
        for (used, known), values in scores.items():
            cells = " | ".join(f"{value:.2f}" for value in values)
            print(f"| {name} | {used} | {known} | {cells} | {np.mean(values):.3f} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    main(sys.argv[1:])
