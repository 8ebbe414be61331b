"""Numbers that a change of structure must not change: short trainings, evaluations, exports and resumed runs.

Everything goes through the command line and files, so that the numbers outlive the code behind them. They stand in
``frozen.json``. Floating-point results depend on the processor, so weights are compared by hash on the processor that
wrote the file and to a relative tolerance elsewhere. ``python tests/test_frozen.py NAME ...`` writes them again; do so
only for a change of numbers that is intended, and give its reason in docs/decisions.md.
"""

import hashlib
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from pixio_robot import cli
from pixio_robot.encoders.load import save_encoder
from pixio_robot.encoders.pixio import PixioEncoder
from pixio_robot.envs.registry import TaskSpec

FILE = Path(__file__).with_name("frozen.json")
Numbers = dict[str, Any]

# name of a training: what is added to `train_bc`
TRAININGS = {
    "mean": "",
    "concat": "policy.fusion=concat",
    "first": "policy.fusion=first policy.frames=stack observation.steps=2",
    "attention": "policy.fusion=attention observation.steps=1",
    "spatial": "policy.fusion=spatial observation.steps=1",
    "two_cameras": "observation.cameras=[front,side] policy.fusion=concat",
    "no_proprio": "observation.proprio=false policy.batch_norm=false policy.activation=gelu",
    "chunks": "horizon=4 policy.loss=l1 policy.dropout=0.1",
    "tanh_sgd": "policy.tanh_output=true training.optimizer=sgd policy.loss=huber training.weight_decay=0.01",
    "adamw": "training.optimizer=adamw training.weight_decay=0.1 horizon=2",
    "none": "encoder=none",
    "state": "encoder=state",
    "cnn": "encoder=cnn training.epochs=1",
    "cnn_single": "encoder=cnn observation.steps=1 observation.cameras=[front,side] training.epochs=1",
    "depth_late": "observation.depth=late training.epochs=1",
    "depth_late_none": "encoder=none observation.depth=late training.epochs=1",
    "depth_points": "observation.depth=points training.epochs=1",
    "depth_channels": "observation.depth=channels observation.depth_code=colours",
    "depth_patches": "observation.depth=patches observation.depth_epochs=1",
}


def processor() -> str:
    """Return what bit-equal results depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    known = {line.split(":")[0].strip(): line.split(":")[-1].strip() for line in lines}
    return " ".join(
        [
            known.get("model name", ""),
            known.get("model", ""),
            torch.backends.cpu.get_cpu_capability(),
            torch.__version__,
        ]
    )


def weights_of(path: Path) -> Numbers:
    """Describe the floating-point tensors of a file, whatever they are called: a hash, and their norms in order."""
    tensors = [each for each in load_file(path).values() if each.dtype.kind == "f" and each.size > 0]
    parts = sorted(hashlib.sha256(np.ascontiguousarray(each).tobytes()).hexdigest() for each in tensors)
    norms = sorted(float(np.linalg.norm(each.astype(np.float64))) for each in tensors)
    return {"sha256": hashlib.sha256("".join(parts).encode()).hexdigest(), "norms": norms}


def smooth(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Return smooth random numbers in [0, 1] of images (..., H, W)."""
    coarse = rng.uniform(0, 1, (*shape[:-2], 6, 6)).astype(np.float32)
    flat = coarse.reshape(-1, 6, 6)
    return np.stack([np.clip(cv2.resize(each, shape[:-3:-1], interpolation=cv2.INTER_LINEAR), 0, 1) for each in flat])


def write_demonstrations(path: Path, size: int = 32) -> None:
    """Write random demonstrations of two cameras in robomimic's layout."""
    rng = np.random.default_rng(0)
    request = TaskSpec("toy/reach", ("rgb", "depth", "proprio", "state"), ("front", "side"), size, "fast", 12, "exact")
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        lengths = [9, 12, 5, 7, 11]
        for number, steps in enumerate(lengths):
            demo = data.create_group(f"demo_{number}")
            known = {"intrinsics": [[40.0, 0, 16], [0, 40.0, 16], [0, 0, 1]], "extrinsics": np.eye(4).tolist()}
            demo.attrs.update(
                num_samples=steps, seed=number, initial_state_hash=f"{number:016x}", score=100.0, success=True
            )
            demo.attrs["camera_info"] = json.dumps({"front": known, "side": known})
            demo["actions"] = rng.uniform(-1, 1, (steps, 3)).astype(np.float32)
            demo["rewards"], demo["success"] = np.zeros(steps), np.zeros(steps, bool)
            demo["dones"], demo["states"] = np.zeros(steps, np.int64), np.zeros((steps, 4))
            for camera in ("front", "side"):
                image = smooth(rng, steps * 3, size, size).reshape(steps, 3, size, size).transpose(0, 2, 3, 1)
                demo[f"obs/{camera}_image"] = (255 * image).astype(np.uint8)
                depth = 0.3 + 3 * smooth(rng, steps, size, size)
                demo[f"obs/{camera}_depth"] = np.where(depth < 0.6, 0, depth).astype(np.float32)[..., None]
            demo["obs/proprio"] = rng.normal(0, 1, (steps, 3)).astype(np.float32)
            demo["obs/state"] = rng.normal(0, 1, (steps, 6)).astype(np.float32)
        environment = dict(env_name="toy/reach", type=2, env_type=2, env_kwargs=asdict(request))
        environment["cameras"] = ["front", "side"]
        data.attrs.update(total=sum(lengths), env_args=json.dumps(environment), collection="{}")
        file["mask/train"] = np.array([f"demo_{each}" for each in range(4)], dtype="S")
        file["mask/valid"] = np.array(["demo_4"], dtype="S")


def write_encoder(path: Path) -> None:
    encoder = PixioEncoder(dim=32, depth=2, heads=2)
    encoder.initialise(torch.Generator().manual_seed(0))
    save_encoder(encoder, path)


def command(*words: str) -> None:
    assert cli.run([*words]) == 0, words


def last_row(out: Path) -> dict[str, float]:
    row = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    return {key: value for key, value in row.items() if key.endswith("loss")}


def checkpoint_of(out: Path, name: str = "last") -> Path:
    """Return the one checkpoint of a run folder."""
    (found,) = (out / "checkpoints").glob(f"*/{name}.safetensors")
    return found


def train(name: str, home: Path, **others: str) -> Path:
    """Train a policy on the random demonstrations and return its run folder."""
    demos, encoder, out = home / "demos.hdf5", home / "tiny.safetensors", home / f"bc-{name}"
    if not demos.is_file():
        write_demonstrations(demos)
        write_encoder(encoder)
    words = {"encoder": str(encoder), "policy.layers": "[32,32]", "training.batch": "16", "training.epochs": "3"}
    words |= dict(each.split("=", 1) for each in TRAININGS[name].split()) | others
    command(
        "train_bc", f"demos={demos}", f"cache={home / 'cache'}", f"out={out}", *(f"{k}={v}" for k, v in words.items())
    )
    return out


def training(name: str, home: Path) -> Numbers:
    out = train(name, home)
    return {"last": weights_of(checkpoint_of(out)), "best": weights_of(checkpoint_of(out, "best")), **last_row(out)}


def resumed_training(home: Path) -> Numbers:
    """Stop after each epoch and resume: 1, 2, then 3 epochs give the weights of an uninterrupted run."""
    from pixio_robot.training.metric_log import MetricLogger

    original = MetricLogger.write

    def stop(self: MetricLogger, epoch: float, step: int, values: dict[str, float]) -> None:
        original(self, epoch, step, values)
        if epoch == 2:
            raise KeyboardInterrupt

    MetricLogger.write = stop  # type: ignore[method-assign]
    try:
        with pytest.raises(AssertionError):
            train("chunks", home, save_every="1")
    finally:
        MetricLogger.write = original  # type: ignore[method-assign]
    out = train("chunks", home, save_every="1")
    return {"last": weights_of(checkpoint_of(out)), **last_row(out)}


def rows_of(path: Path) -> list[Numbers]:
    names = ("index", "seed", "episode_return", "success_any", "success_last", "length")
    return [{name: row[name] for name in names} for row in map(json.loads, path.read_text().splitlines())]


def evaluation(home: Path) -> Numbers:
    """Episodes of a policy that is trained on the expert's demonstrations of the toy."""
    demos = home / "toy.hdf5"
    task = ["task=toy/reach", "render=fast", "image_size=32", "episode_steps=12", "workers=1"]
    command("collect", *task, "demos=6", "valid=1", f"out={demos}")
    found = {}
    for kind, encoder in (("state", "state"), ("tokens", str(home / "tiny.safetensors"))):
        write_encoder(home / "tiny.safetensors")
        out = home / f"evaluated-{kind}"
        small = ["policy.layers=[32]", "training.batch=16", "training.epochs=20", "horizon=2"]
        command("train_bc", f"demos={demos}", f"encoder={encoder}", *small, f"cache={home / 'cache'}", f"out={out}")
        for n_action_steps in (1, 2):
            where = home / f"episodes-{kind}-{n_action_steps}"
            words = [
                f"checkpoint={checkpoint_of(out)}",
                f"n_action_steps={n_action_steps}",
                "episodes=4",
                "envs=1",
                f"out={where}",
            ]
            command("evaluate", *words)
            found[f"{kind}_{n_action_steps}"] = sorted(rows_of(where / "episodes.jsonl"), key=lambda row: row["index"])
    return found


def exported(home: Path) -> Numbers:
    """Tokens and actions of an exported program over eight frames of an episode."""
    from pixio_robot.deploy.runtime import Runtime

    out = train("mean", home, **{"horizon": "2"})
    words = [f"checkpoint={checkpoint_of(out)}", f"demos={home / 'demos.hdf5'}", "frames=16", "episodes=0", "threads=1"]
    command("export", *words, f"out={home / 'bundle'}")
    runtime, found = Runtime.load(home / "bundle", threads=1), []
    with h5py.File(home / "demos.hdf5") as file:
        demo = file["data/demo_1"]
        for step in range(8):
            action = runtime.act({"rgb": demo["obs/front_image"][step], "proprio": demo["obs/proprio"][step]})
            tokens = runtime.other_outputs()["rgb.cls"].astype(np.float64)
            found.append({"action": action.astype(float).ravel().tolist(), "tokens": float(np.linalg.norm(tokens))})
    return {"frames": found}


def write_images(folder: Path) -> None:
    rng = np.random.default_rng(1)
    folder.mkdir(exist_ok=True)
    for number in range(48):
        image = 255 * smooth(rng, 3, 48, 48).transpose(1, 2, 0)
        cv2.imwrite(str(folder / f"{number:03d}.png"), image.astype(np.uint8))


_TRAINING = [
    "batch=8",
    "steps=40",
    "lr=1e-3",
    "val_images=8",
    "workers=0",
    "device=cpu",
    "precision=fp32",
    "log_every=10",
]
_TRAINING += ["valid_every=20", "save_every=20", "visualize_every=40"]


def pretrained(home: Path) -> Numbers:
    write_images(home / "images")
    words = ["encoder=32x2x2", "decoder=32x2x2", "patch=8", "image_size=64", "mask_block=2", f"cache={home / 'index'}"]
    out = home / "pretrained"
    command("pretrain", f"images={home / 'images'}", *words, *_TRAINING, f"out={out}")
    return {"encoder": weights_of(out / "encoder.safetensors"), **last_row(out)}


def distilled(home: Path) -> Numbers:
    write_images(home / "images")
    encoder = PixioEncoder(dim=48, depth=2, heads=2, patch=8, image_size=32)
    encoder.initialise(torch.Generator().manual_seed(7))
    save_encoder(encoder, home / "teacher.safetensors")
    words = [f"teacher={home / 'teacher.safetensors'}", "students={a:{size:32x2x2}}", f"cache={home / 'index'}"]
    out = home / "distilled"
    command("distill", f"images={home / 'images'}", *words, *_TRAINING, f"out={out}")
    (student,) = out.glob("*.safetensors")
    return {"encoder": weights_of(student), **last_row(out)}


def reinforced(home: Path) -> Numbers:
    """A run of SAC that stops in the middle and resumes."""
    words = ["task=toy/reach", "obs=state", "algorithm=sac", "algorithm.layers=[16,16]", "algorithm.batch=8"]
    words += ["algorithm.buffer=500", "algorithm.warmup=16", "algorithm.updates=0.25", "envs=2", "episode_steps=10"]
    words += ["eval_every=120", "eval_episodes=2", "episodes=2", "log_every=48", "save_every=96", "processes=false"]
    for steps in (144, 240):
        command("train_rl", *words, f"steps={steps}", f"out={home / 'rl'}", "device=cpu")
    out = home / "rl"
    return {"last": weights_of(checkpoint_of(out)), "rows": rows_of(out / "episodes.jsonl")}


def benchmarked(home: Path) -> Numbers:
    """A run of the benchmark on the toy: the privileged state, trained and evaluated in both columns."""
    words = ["tasks=toy/reach", "encoders=[state]", "budget=smoke", "seeds=[100]", f"out={home / 'benchmark'}"]
    command("benchmark", *words)
    (result,) = (home / "benchmark/runs").glob("*/result.json")
    value = json.loads(result.read_text())
    rows = [rows_of(path) for path in sorted(result.parent.rglob("episodes.jsonl"))]
    return {"means": value["best_checkpoint"], "rows": sorted(rows, key=json.dumps)}


CASES: dict[str, Callable[[Path], Numbers]] = {
    **{f"train_{name}": (lambda home, name=name: training(name, home)) for name in TRAININGS},
    "train_resumed": resumed_training,
    "evaluate": evaluation,
    "export": exported,
    "pretrain": pretrained,
    "distill": distilled,
    "train_rl": reinforced,
    "benchmark": benchmarked,
}
NEEDS = {"export": "onnxruntime", "train_rl": "stable_baselines3"}


def compare(found: Any, kept: Any, exact: bool, where: str = "") -> None:
    """Assert that numbers are what they were."""
    if isinstance(kept, dict):
        assert found.keys() == kept.keys(), where
        for key, value in kept.items():
            if key == "sha256":
                assert not exact or found[key] == value, f"{where} has other weights, norms {found.get('norms')}"
            else:
                compare(found[key], value, exact, f"{where}.{key}")
    elif isinstance(kept, list):
        assert len(found) == len(kept), where
        for number, (one, other) in enumerate(zip(found, kept, strict=True)):
            compare(one, other, exact, f"{where}[{number}]")
    elif isinstance(kept, float):
        assert found == pytest.approx(kept, rel=1e-6 if exact else 0.02, abs=1e-6 if exact else 0.02), where
    else:
        assert found == kept, where


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", CASES)
def test_numbers_are_what_they_were(name: str, tmp_path: Path) -> None:
    if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"needs {NEEDS[name]}")
    kept = json.loads(FILE.read_text())
    with one_thread():
        compare(CASES[name](tmp_path), kept["numbers"][name], kept["processor"] == processor(), name)


def write(names: list[str]) -> None:
    """Write the numbers of some cases, or of all."""
    kept = json.loads(FILE.read_text()) if names else {"processor": processor(), "numbers": {}}
    if kept["processor"] != processor():
        raise SystemExit(f"the numbers are of another processor, {kept['processor']}; write all of them")
    for name in names or CASES:
        with tempfile.TemporaryDirectory() as folder, one_thread():
            os.chdir(folder)
            kept["numbers"][name] = CASES[name](Path(folder))
            os.chdir(FILE.parent)
    FILE.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    write(sys.argv[1:])
