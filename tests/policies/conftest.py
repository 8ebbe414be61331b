"""Behaviour cloning of the toy's demonstrations with a tiny encoder, as the tests of policies need it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pixio_robot.checkpoint import load_checkpoint
from pixio_robot.datasets.dataset import EpisodeDataset, open_dataset
from pixio_robot.encoders.load import WITHOUT_ENCODER, Backbone, load_encoder
from pixio_robot.policies.build import PolicyDesign
from pixio_robot.policies.cloning import CloningSetup, Prepared, prepare_cloning
from pixio_robot.policies.mlp import MlpConfig
from pixio_robot.policies.settings import ObservationSettings, StatisticsSettings, TrainingSettings
from pixio_robot.policies.train import TrainPlan, TrainResult, train_policy

SMALL = MlpConfig(layers=[32])
SHORT = TrainingSettings(batch=32, epochs=4)


@dataclass
class Cloner:
    """Prepares and trains policies on one data set. Called, it trains; caches of frames are shared by all tests."""

    dataset: EpisodeDataset
    backbone: Callable[[], Backbone]
    cache: Path

    def prepare(
        self,
        config: Any = SMALL,
        encoder: str = "tiny",
        observation: ObservationSettings = ObservationSettings(),
        statistics: StatisticsSettings = StatisticsSettings(),
        seed: int = 0,
        **design: Any,
    ) -> Prepared:
        """Return a model and its data; `design` are further fields of `PolicyDesign`."""
        backbone = None if encoder in WITHOUT_ENCODER else self.backbone()
        chosen = PolicyDesign(encoder if backbone is None else backbone.name, config, observation, **design)
        return prepare_cloning(self.dataset, chosen, backbone, CloningSetup(seed, statistics, self.cache))

    def __call__(
        self, out: str | Path, training: TrainingSettings = SHORT, config: Any = SMALL, **others: Any
    ) -> TrainResult:
        """Train into the folder `out`; `others` are for `prepare` and `TrainPlan`."""
        plan = {name: others.pop(name) for name in ("keep", "depth_epochs", "save_every") if name in others}
        encoder = others.get("encoder", "tiny")
        prepared = self.prepare(config, **others)
        label = encoder if encoder in WITHOUT_ENCODER else config.name
        target = TrainPlan(Path(out), label, others.get("seed", 0), **{"save_every": 1, **plan})
        return train_policy(prepared.model, prepared.data, training, target)

    @staticmethod
    def weights(path: Path) -> dict[str, torch.Tensor]:
        """Return the tensors of a policy checkpoint."""
        return load_checkpoint(path, "policy").tensors

    def same(self, one: Path, other: Path) -> bool:
        """Return whether two checkpoints have equal weights, bit for bit."""
        first, second = self.weights(one), self.weights(other)
        return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)

    def rows(self, out: str | Path) -> list[Mapping[str, float]]:
        """Return the rows of a run folder's metrics."""
        return [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]

    def check_resumed(
        self, monkeypatch: pytest.MonkeyPatch, training: TrainingSettings = SHORT, config: Any = SMALL, **others: Any
    ) -> TrainResult:
        """Check that a run stopped in its third of four epochs and resumed ends as one that was not stopped."""
        from pixio_robot.training.metric_log import MetricLogger

        training = replace(training, epochs=4)
        whole = self("whole", training, config, **others)
        original = MetricLogger.write

        def stop(self: MetricLogger, epoch: float, step: int, values: dict[str, float]) -> None:
            original(self, epoch, step, values)
            if epoch == 3:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(MetricLogger, "write", stop)
            with pytest.raises(KeyboardInterrupt):
                self("cut", training, config, **others)
        resumed = self("cut", training, config, **others)
        assert self.same(whole.last, resumed.last) and self.same(whole.best, resumed.best)
        assert [row["epoch"] for row in self.rows("cut")] == [1, 2, 3, 4]
        assert self.rows("cut") == self.rows("whole")
        assert self("cut", training, config, **others).reused
        return whole


@pytest.fixture(scope="session")
def clone_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clone-cache")


@pytest.fixture
def clone(toy_file: Path, tiny_file: Path, clone_cache: Path) -> Cloner:
    return Cloner(open_dataset(toy_file), lambda: load_encoder(str(tiny_file)), clone_cache)
