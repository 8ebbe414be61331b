"""Optimiser steps of behaviour cloning on cached tokens: our `train_bc` against robomimic's BC.

Shapes: F frames, K class tokens, D width, T frames of history, E fused, P proprioception, A action.
"""

import contextlib
import io
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from timing import Section, cells, compare, in_turns, markdown, per_second

if TYPE_CHECKING:
    from pixio_robot.datasets.robomimic import DemoSet
    from pixio_robot.policies.settings import PolicySettings

NEEDS = {"robomimic": "robomimic"}  # package: extra of pixio-robot
DEMOS, STEPS = 32, 160  # 5120 frames, which is 20 whole batches
TOKENS, WIDTH, PROPRIO, ACTIONS = 8, 192, 4, 4  # K, D, P, A
OUR_EPOCHS, THEIR_STEPS, PAIRS = 20, 40, 7  # work of a turn: 400 steps against 40


class Step(NamedTuple):
    """The time of one optimiser step, by what it includes [s]."""

    whole: float  # ours: the whole `train_bc` call
    loop: float  # batches, forward, backward, optimiser
    compute: float  # the loop without making batches; ours makes none, it indexes a table


def measure() -> Section:
    """Compare training loops on arrays made up in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        return _measure(Path(folder))


def _measure(folder: Path) -> Section:
    from pixio_robot.datasets.robomimic import DemoSet
    from pixio_robot.hardware import threads
    from pixio_robot.policies.settings import PolicySettings

    settings = PolicySettings(epochs=OUR_EPOCHS)
    demos = DemoSet(_write_demos(folder))
    tokens = np.random.default_rng(1).normal(size=(DEMOS * STEPS, TOKENS, WIDTH)).astype(np.float16)  # (F, K, D)
    comparisons, notes = [], []
    for frames, what in (("flare", f"FLARE over 3 frames, E = {3 * WIDTH}"), ("single", f"one frame, E = {WIDTH}")):
        ours = Ours(folder / frames, demos, tokens, frames, settings)
        theirs = Robomimic(_write_fused(folder / f"{frames}.hdf5", demos, ours.fused()), ours.embedder.dim, settings)
        with threads(1):
            us, them = in_turns(ours.turn, theirs.turn, PAIRS)
        comparisons += [
            compare(f"{what}: steps", [step.loop for step in us], [step.loop for step in them]),
            compare(f"{what}: ours with all its files", [step.whole for step in us], [step.loop for step in them]),
            compare(f"{what}: theirs without its loading", [step.loop for step in us], [step.compute for step in them]),
        ]
        loading = 1 - sum(step.compute for step in them) / sum(step.loop for step in them)
        notes.append(f"{what}: {loading:.0%} of robomimic's loop is fetching and collating batches and logging.")
    how = (
        "`train_bc` against robomimic's BC in its own loop, `TrainUtils.run_epoch`, on the same "
        f"{DEMOS} demonstrations of {STEPS} steps. Our loop starts from {TOKENS} x {WIDTH} float16 tokens in a cache, "
        f"{PROPRIO} numbers of proprioception and the default fusion; robomimic gets the fused float32 vector (E) "
        "ready made, as a `low_dim` key beside proprioception, with `hdf5_cache_mode='all'`, no worker processes and "
        "no further key but actions: its fastest setting. Both: "
        f"batches of {settings.batch} shuffled frames, an MLP of 3 x 256, mean squared error, Adam at 1e-3, one "
        "thread, no validation. What differs: our head normalises its input by batch, which costs us; theirs ends in a "
        "tanh; their loop computes two more losses and logs every step. A turn is "
        f"{ours.steps} steps of ours, {THEIR_STEPS} of theirs. 'With all its files' charges us with reading "
        "demonstrations and tokens, fusing, metrics and checkpoints, and robomimic with its steps alone."
    )
    return Section("Behaviour cloning", how, rows=cells(comparisons, per_second), notes=notes)


class Ours:
    """`train_bc` on a token cache, in a fresh run folder each turn."""

    def __init__(
        self, folder: Path, demos: "DemoSet", tokens: np.ndarray, frames: str, settings: "PolicySettings"
    ) -> None:
        from pixio_robot.policies.embedding import Embedder

        from pixio_robot.datasets.token_cache import TokenCache
        from pixio_robot.encoders.pixio import TokenShape
        from pixio_robot.policies.settings import EmbeddingSettings

        folder.mkdir()
        np.save(folder / "cls.npy", tokens)
        self.folder, self.demos, self.settings = folder, demos, settings
        self.cache = TokenCache(folder, np.load(folder / "cls.npy", mmap_mode="r"), None, {})
        self.shape, self.embedding = TokenShape(TOKENS, (16, 16), WIDTH), EmbeddingSettings(frames=frames)
        self.embedder = Embedder(self.shape, replace(self.embedding, proprio=False), 0)
        self.steps = settings.epochs * len(tokens) // settings.batch
        self.turns = 0

    def fused(self) -> np.ndarray:
        """Return the embedding of all frames without proprioception, (F, E) float32."""
        import torch
        from pixio_robot.policies.embedding import frame_indices

        history = frame_indices(self.demos.frame_starts, self.embedder.history)  # (F, T)
        return self.embedder(torch.from_numpy(self.cache.cls[history]), None).numpy()

    def turn(self) -> Step:
        """Train from nothing; return the time of one step."""
        import torch
        from pixio_robot.policies.bc import train_bc
        from pixio_robot.policies.visuomotor import EncoderIdentity

        self.turns += 1
        began = perf_counter()
        with _quiet():
            result = train_bc(
                self.demos,
                self.cache,
                EncoderIdentity("random:ti:0", "", "random", {}, "fp32"),
                self.shape,
                embedding=self.embedding,
                settings=self.settings,
                seed=0,
                device=torch.device("cpu"),
                out=self.folder / f"run-{self.turns}",
            )
        loop = result.seconds["learning"] / self.steps
        return Step((perf_counter() - began) / self.steps, loop, loop)


class Robomimic:
    """robomimic's BC on a file, set up as its training script does."""

    def __init__(self, path: Path, width: int, settings: "PolicySettings") -> None:
        from pixio_robot.encoders.torchvision_guard import declare_missing_operators

        declare_missing_operators()
        import torch

        with _quiet():
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
        self._run_epoch = train_utils.run_epoch
        shapes = OrderedDict(embedding=[width], proprio=[PROPRIO])
        with _quiet():
            obs_utils.initialize_obs_utils_with_config(config)
            self._model = algo_factory("bc", config, shapes, ACTIONS, torch.device("cpu"))
            data = train_utils.dataset_factory(config, obs_keys=list(shapes))
        self._loader = torch.utils.data.DataLoader(
            data, batch_size=settings.batch, shuffle=True, num_workers=0, drop_last=True
        )

    def turn(self) -> Step:
        """Go on training; return the time of one step."""
        with _quiet():
            log = self._run_epoch(self._model, self._loader, epoch=1, num_steps=THEIR_STEPS)
        loop = log["Time_Epoch"] * 60 / THEIR_STEPS  # robomimic counts in minutes
        compute = (log["Time_Process_Batch"] + log["Time_Train_Batch"]) * 60 / THEIR_STEPS
        return Step(loop, loop, compute)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _write_demos(folder: Path) -> Path:
    """Write demonstrations of noise, as `collect` would."""
    from pixio_robot.datasets.writer import Demo, merge_demos, write_demo
    from pixio_robot.envs.registry import TaskSpec

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
    merge_demos(folder / "demos.hdf5", parts, [], TaskSpec("toy/reach"), ("none",), {})
    return folder / "demos.hdf5"


def _write_fused(path: Path, demos: "DemoSet", fused: np.ndarray) -> Path:
    """Write the same frames in robomimic's layout with the fused embedding (F, E) as an observation."""
    import h5py

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
