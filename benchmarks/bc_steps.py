"""Optimiser steps of behaviour cloning on cached tokens: our training loop against robomimic's BC.

Shapes: F frames, K class tokens, D width, T observation steps, E fused, P proprioception, A action.
"""

import contextlib
import io
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from timing import Section, cells, compare, in_turns, markdown, per_second

if TYPE_CHECKING:
    from pixio_robot.datasets.dataset import EpisodeDataset
    from pixio_robot.policies.settings import TrainingSettings

NEEDS = {"robomimic": "robomimic"}  # package: extra of pixio-robot
DEMOS, STEPS = 32, 160  # 5120 frames, which is 20 whole batches
TOKENS, WIDTH, PROPRIO, ACTIONS = 8, 192, 4, 4  # K, D, P, A
OUR_EPOCHS, THEIR_STEPS, PAIRS = 20, 40, 7  # work of a turn: 400 steps against 40


class Step(NamedTuple):
    """The time of one optimiser step, by what it includes [s]."""

    whole: float  # ours: building the policy, reading the data and training
    loop: float  # batches, forward, backward, optimiser
    compute: float  # the loop without making batches; ours makes none, it indexes a table


def measure() -> Section:
    """Compare training loops on arrays made up in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        return _measure(Path(folder))


def _measure(folder: Path) -> Section:
    from pixio_robot.datasets.dataset import open_dataset
    from pixio_robot.hardware import threads
    from pixio_robot.policies.mlp import MlpConfig
    from pixio_robot.policies.settings import TrainingSettings

    settings, config = TrainingSettings(epochs=OUR_EPOCHS), MlpConfig()
    demos = open_dataset(_write_demos(folder))
    tokens = np.random.default_rng(1).normal(size=(DEMOS * STEPS, TOKENS, WIDTH)).astype(np.float16)  # (F, K, D)
    comparisons, notes = [], []
    for steps, what in ((3, f"FLARE over 3 frames, E = {3 * WIDTH}"), (1, f"one frame, E = {WIDTH}")):
        ours = Ours(folder / f"{steps}", demos, tokens, steps, settings)
        fused = ours.fused()
        path = _write_fused(folder / f"{steps}.hdf5", demos, fused)
        theirs = Robomimic(path, fused.shape[1], tuple(config.layers), settings)
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
        "`train_policy` against robomimic's BC in its own loop, `TrainUtils.run_epoch`, on the same "
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
    """`train_policy` on cached tokens, in a new run folder each turn.

    Args:
        tokens: (F, K, D) float16.
        steps: T.
    """

    def __init__(
        self, folder: Path, demos: "EpisodeDataset", tokens: np.ndarray, steps: int, settings: "TrainingSettings"
    ) -> None:
        from pixio_robot.encoders.load import load_encoder
        from pixio_robot.policies.build import PolicyDesign
        from pixio_robot.policies.mlp import MlpConfig
        from pixio_robot.policies.settings import ObservationSettings

        folder.mkdir()
        np.save(folder / "cls.npy", tokens)
        self.folder, self.demos, self.settings, self.observation_steps = folder, demos, settings, steps
        self.tokens = np.load(folder / "cls.npy", mmap_mode="r")
        self.backbone = load_encoder("random:ti:0")  # never run; its tokens have the shape of these
        self.design = PolicyDesign("random:ti:0", MlpConfig(frames="flare"), ObservationSettings(steps=steps))
        self.steps = settings.epochs * len(tokens) // settings.batch
        self.turns = 0

    def fused(self) -> np.ndarray:
        """Return the embedding of all frames without proprioception, (F, E) float32."""
        import torch

        from pixio_robot.datasets.windows import observation_rows
        from pixio_robot.policies.necks import FusedVector

        history = observation_rows(self.demos.episode_starts, self.observation_steps)  # (F, T)
        neck = FusedVector(self.backbone.token_shape, "mean", "flare", self.observation_steps, 0)
        return neck(torch.from_numpy(self.tokens[history]), None).numpy()

    def turn(self) -> Step:
        """Train from the start; return the time of one step."""
        from pixio_robot.datasets.dataset import Feature
        from pixio_robot.policies.build import build_policy
        from pixio_robot.policies.data import CachedFrames, TrainingData
        from pixio_robot.policies.train import TrainPlan, train_policy

        self.turns += 1
        began = perf_counter()
        with _quiet():
            features = {**self.demos.features, "rgb": Feature("image", (256, 256, 3), "uint8")}
            model = build_policy(self.design, features, ("rgb",), self.backbone, seed=0)
            data = TrainingData(self.demos, model.spec, CachedFrames({"rgb.cls": self.tokens}))
            plan = TrainPlan(self.folder / f"run-{self.turns}", "mlp", seed=0)
            result = train_policy(model, data, self.settings, plan)
        loop = result.seconds["learning"] / self.steps
        return Step((perf_counter() - began) / self.steps, loop, loop)


class Robomimic:
    """robomimic's BC on a file, set up as its training script does.

    Args:
        path: demonstrations with the fused embedding.
        width: E.
        layers: widths of the hidden layers.
    """

    def __init__(self, path: Path, width: int, layers: tuple[int, ...], settings: "TrainingSettings") -> None:
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
            config.algo.actor_layer_dims = layers
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
        """Continue training; return the time of one step."""
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
    from pixio_robot.datasets.writer import Demo, EpisodeFacts, Provenance, Splits, merge_demos, write_demo
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
            facts=EpisodeFacts(index, str(index), 100.0, True, {}),
        )
        parts.append(folder / f"part-{index}.hdf5")
        write_demo(parts[-1], demo)
    environment = Provenance("toy/reach", asdict(TaskSpec("toy/reach")), ())
    merge_demos(folder / "demos.hdf5", Splits(parts), environment, {})
    return folder / "demos.hdf5"


def _write_fused(path: Path, demos: "EpisodeDataset", fused: np.ndarray) -> Path:
    """Write the same frames in robomimic's layout with the fused embedding (F, E) as an observation."""
    import h5py

    arrays = {"actions": demos.column("action"), "obs/proprio": demos.column("proprio"), "obs/embedding": fused}
    with h5py.File(path, "w") as file:
        for index in range(DEMOS):
            group = file.create_group(f"data/demo_{index}")
            group.attrs["num_samples"] = STEPS
            for name, values in arrays.items():
                group.create_dataset(name, data=values[index * STEPS : (index + 1) * STEPS])
    return path


if __name__ == "__main__":
    print(markdown(measure()))
