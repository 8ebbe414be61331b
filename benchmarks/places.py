"""How well frozen class tokens tell where things are: ``python benchmarks/places.py ENCODER [ENCODER ...]``

For each task, 400 pictures at random moments of its expert's disturbed episodes; ridge regression from tokens to the
first object's position on 300 of them, R squared on the others. Minutes instead of the hours that behaviour cloning
takes, and blind to all that cloning needs besides.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from pixio_robot.backbones import Backbone, load_encoder
from pixio_robot.envs.registry import new_task
from pixio_robot.envs.rendering import use_headless_gl

TASKS = ("button-press-topdown", "hammer", "assembly", "bin-picking")
PICTURES, TRAINING = 400, 300
OBJECT = slice(4, 7)  # in MetaWorld's state: x, y, z of the first object [m]
PENALTIES = (1.0, 10.0, 100.0, 1000.0)


def moments_of(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures (N, 256, 256, 3) uint8 and the object's position (N, 3) [m]; kept in ``runs/places``."""
    file = Path(f"runs/places/{name}.npz")
    if not file.is_file():
        use_headless_gl()
        task, rng = new_task(f"metaworld/{name}"), np.random.default_rng(5)
        view = task.view(task.cameras[0], 256, "fast")
        images, places = [], []
        for _ in range(PICTURES):
            task.reset(rng)
            for _ in range(rng.integers(0, 70)):
                task.step(np.clip(task.expert_action() + rng.normal(0, 0.3, task.action_dim), -1, 1))
            images.append(view.rgb(task.data))
            places.append(task.known_state()[OBJECT].copy())
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


def r_squared(inputs: np.ndarray, targets: np.ndarray) -> float:
    """Return the share of the targets' variance that a ridge regression explains on the later rows, mean over columns.

    The penalty is the best of four on those rows, for every encoder alike. Columns that never change are left out.
    """
    targets = targets[:, targets[:TRAINING].std(axis=0) > 1e-3]
    inputs = (inputs - inputs[:TRAINING].mean(axis=0)) / (inputs[:TRAINING].std(axis=0) + 1e-6)
    middle, known, new = targets[:TRAINING].mean(axis=0), inputs[:TRAINING], inputs[TRAINING:]
    left = ((targets[TRAINING:] - targets[TRAINING:].mean(axis=0)) ** 2).sum(axis=0)
    scores = []
    for penalty in PENALTIES:
        gram = known.T @ known + penalty * np.eye(known.shape[1])
        weights = np.linalg.solve(gram, known.T @ (targets[:TRAINING] - middle))
        error = ((new @ weights + middle - targets[TRAINING:]) ** 2).sum(axis=0)
        scores.append(float((1 - error / left).mean()))
    return max(scores)


def main(names: list[str]) -> None:
    """Print a table, encoders by tasks."""
    print("| encoder | tokens |", " | ".join(TASKS), "| mean |")
    print("|---" * (len(TASKS) + 3) + "|")
    for name in names:
        encoder = load_encoder(name)
        scores: dict[str, list[float]] = {"mean": [], "all": []}
        for task in TASKS:
            images, places = moments_of(task)
            tokens = class_tokens(encoder, images)
            scores["mean"].append(r_squared(tokens.mean(axis=1), places))
            scores["all"].append(r_squared(tokens.reshape(len(tokens), -1), places))
        for tokens_used, values in scores.items():
            cells = " | ".join(f"{value:.2f}" for value in values)
            print(f"| {name} | {tokens_used} | {cells} | {np.mean(values):.3f} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    main(sys.argv[1:])
