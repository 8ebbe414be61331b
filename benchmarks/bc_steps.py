"""Optimiser steps of behaviour cloning on cached tokens: our `train_bc` against robomimic's BC.

Shapes: F frames, K class tokens, D width, T frames of history, E embedding, P proprioception, A action.
"""

import contextlib
import io
import tempfile
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from timing import COLUMNS, Section, interleaved, markdown, per_second, rows

NEEDS = {"robomimic": "robomimic"}  # package: extra of pixio-robot
DEMOS, STEPS = 32, 160  # 5120 frames, which is 20 whole batches
TOKENS, WIDTH, PROPRIO, ACTIONS = 8, 192, 4, 4  # K, D, P, A
OUR_EPOCHS, THEIR_STEPS, PAIRS = 30, 40, 9  # work of one turn: 600 steps against 40
CAMERA = "side"


def measure() -> Section:
    """Compare steps with and without data loading, on arrays made up in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        return _measure(Path(folder))


def _measure(folder: Path) -> Section:
    import torch

    from pixio_robot.embedding import Embedder, TokenShape, frame_indices
    from pixio_robot.hardware import threads
    from pixio_robot.policies.bc import train_bc
    from pixio_robot.policies.cache import TokenCache
    from pixio_robot.policies.demos import DemoSet
    from pixio_robot.policies.visuomotor import EncoderIdentity
    from pixio_robot.schemas import EmbeddingSettings, PolicySettings

    demos = DemoSet(_write_demos(folder))
    tokens = np.random.default_rng(1).normal(size=(DEMOS * STEPS, TOKENS, WIDTH)).astype(np.float16)
    np.save(folder / "cls.npy", tokens)
    cache = TokenCache(folder, np.load(folder / "cls.npy", mmap_mode="r"), None, {})
    shape, embedding = TokenShape(TOKENS, (16, 16), WIDTH), EmbeddingSettings()
    settings = PolicySettings(epochs=OUR_EPOCHS)
    identity = EncoderIdentity("random:ti:0", "", "random", {}, "fp32")
    runs, wholes = [0], []

    def ours() -> float:
        runs[0] += 1
        began = perf_counter()
        result = train_bc(
            demos,
            cache,
            identity,
            shape,
            embedding=embedding,
            settings=settings,
            seed=0,
            device=torch.device("cpu"),
            out=folder / f"run-{runs[0]}",
        )
        steps = OUR_EPOCHS * len(tokens) // settings.batch
        wholes.append((perf_counter() - began) / steps)
        return result.seconds["learning"] / steps

    # robomimic gets the embedding already fused, as our loop has it after its first look at the tokens
    visual = Embedder(shape, replace(embedding, proprio=False), 0)
    history = frame_indices(demos.frame_starts, visual.history)  # (F, T)
    fused = visual(torch.from_numpy(tokens[history]), None).numpy()  # (F, E) float32
    theirs = Robomimic(_write_fused(folder, demos, fused), fused.shape[1], settings)

    with threads(1):
        steps = interleaved("optimiser steps", ours, lambda: theirs.step()["whole"], PAIRS)
        wholes.clear()
        whole = interleaved(
            "the whole `train_bc` call, files included",
            lambda: ours() and wholes[-1],
            lambda: theirs.step()["whole"],
            3,
        )
        compute = interleaved(
            "compute alone, robomimic's loading left out", ours, lambda: theirs.step()["compute"], PAIRS
        )
    share = theirs.spent["loading"] / theirs.spent["whole"]
    how = (
        f"`train_bc` against robomimic's BC and its own loop, `TrainUtils.run_epoch`. Both see the same {DEMOS} "
        f"demonstrations of {STEPS} steps and the same float32 input of {fused.shape[1]} + {PROPRIO} numbers: the fused "
        f"tokens ({TOKENS} x {WIDTH}, mean, FLARE over 3 frames) and proprioception. robomimic gets the fused vector ready "
        'made, as `low_dim` keys of its HDF5 file, with `hdf5_cache_mode="all"`, no worker processes and no dataset '
        "key but actions, its fastest setting. Both: batches of 256 shuffled frames, an MLP of 3 x 256, mean squared "
        "error, Adam at 1e-3, one thread, no validation. What differs: our head also has batch normalisation of the "
        "input, theirs a tanh; their loop computes three losses and logs each step. A turn is "
        f"{OUR_EPOCHS * len(tokens) // settings.batch} of our steps, {THEIR_STEPS} of theirs."
    )
    notes = [
        f"{share:.0%} of robomimic's loop is its data loading (fetching and collating {settings.batch} dictionaries), "
        f"{theirs.spent['compute'] / theirs.spent['whole']:.0%} the training step, the rest logging. The second row charges "
        "us with reading the demonstrations, fusing the tokens, saving the best policy in every epoch (there is no "
        "validation split) and writing metrics; robomimic is charged with its steps alone."
    ]
    return Section("Behaviour cloning", how, COLUMNS, rows([steps, whole, compute], per_second), notes)


class Robomimic:
    """robomimic's BC on a file, set up as its training script does."""

    def __init__(self, path: Path, width: int, settings: Any) -> None:
        from pixio_robot.torchvision_guard import declare_missing_operators

        declare_missing_operators()
        import torch
        from robomimic.algo import algo_factory
        from robomimic.config import config_factory
        from robomimic.utils import obs_utils, train_utils

        config = config_factory("bc")
        with config.values_unlocked():
            config.observation.modalities.obs.low_dim = ["embedding", "proprio"]
            config.algo.actor_layer_dims = tuple(settings.layers)
            config.algo.optim_params.policy.learning_rate.initial = settings.lr
            config.train.data = str(path)
            config.train.dataset_keys = ("actions",)
            config.train.hdf5_cache_mode = "all"
        self.spent = {"whole": 0.0, "loading": 0.0, "compute": 0.0}  # [s]
        self._run_epoch = train_utils.run_epoch
        shapes = OrderedDict(embedding=[width], proprio=[PROPRIO])
        with _quiet():
            obs_utils.initialize_obs_utils_with_config(config)
            self._model = algo_factory("bc", config, shapes, ACTIONS, torch.device("cpu"))
            data = train_utils.dataset_factory(config, obs_keys=list(shapes))
        self._loader = torch.utils.data.DataLoader(
            data, batch_size=settings.batch, shuffle=True, num_workers=0, drop_last=True
        )

    def step(self) -> dict[str, float]:
        """Train for a turn; return where the time of one step went [s]."""
        with _quiet():
            log = self._run_epoch(self._model, self._loader, epoch=1, num_steps=THEIR_STEPS)
        minutes = {
            "whole": log["Time_Epoch"],
            "loading": log["Time_Data_Loading"],
            "compute": log["Time_Process_Batch"] + log["Time_Train_Batch"],
        }
        for name in minutes:
            self.spent[name] += 60 * minutes[name]
        return {name: 60 * time / THEIR_STEPS for name, time in minutes.items()}


@contextlib.contextmanager
def _quiet() -> Any:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _write_demos(folder: Path) -> Path:
    """Write demonstrations of noise, as `collect` would."""
    from pixio_robot.envs.registry import EnvRequest
    from pixio_robot.policies.demos import Demo, merge_demos, write_demo

    rng = np.random.default_rng(0)
    parts = []
    for index in range(DEMOS):
        demo = Demo(
            observations={"proprio": rng.normal(size=(STEPS, PROPRIO)).astype(np.float32)},
            actions=rng.uniform(-1, 1, (STEPS, ACTIONS)).astype(np.float32),
            rewards=np.zeros(STEPS),
            success=np.ones(STEPS, bool),
            states=np.zeros((STEPS, 1)),
            seed=index,
            start=str(index),
            cameras={},
        )
        parts.append(folder / f"part-{index}.hdf5")
        write_demo(parts[-1], demo)
    merge_demos(folder / "demos.hdf5", parts, [], EnvRequest("toy/reach"), (CAMERA,))
    return folder / "demos.hdf5"


def _write_fused(folder: Path, demos: Any, fused: np.ndarray) -> Path:
    """Write the same frames in robomimic's layout with the fused embedding (F, E) as an observation."""
    import h5py

    path = folder / "fused.hdf5"
    arrays = {"actions": demos.read("actions"), "obs/proprio": demos.read("proprio"), "obs/embedding": fused}
    with h5py.File(path, "w") as file:
        for index in range(DEMOS):
            group = file.create_group(f"data/demo_{index}")
            group.attrs["num_samples"] = STEPS
            for name, values in arrays.items():
                group.create_dataset(name, data=values[index * STEPS : (index + 1) * STEPS])
    return path


if __name__ == "__main__":
    print(markdown(measure()))
