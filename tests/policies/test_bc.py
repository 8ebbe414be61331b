"""Behaviour cloning: one seed one result, exact resumption, and it does learn."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pixio_robot.policies.bc import BCResult, _split, new_policy, train_bc
from pixio_robot.policies.heads import MlpHead
from pixio_robot.policies.runs import cache_for, run_evaluate, run_train_bc
from pixio_robot.policies.visuomotor import EncoderIdentity, load_policy, load_policy_encoder

from pixio_robot.checkpoint import load_checkpoint
from pixio_robot.datasets.robomimic import DemoSet
from pixio_robot.datasets.token_cache import TokenCache
from pixio_robot.encoders.load import Backbone, load_encoder
from pixio_robot.envs.registry import TaskSpec
from pixio_robot.errors import BadInput, CheckpointError, DataError, UnknownName
from pixio_robot.policies.agent import Agent
from pixio_robot.policies.collect import collect
from pixio_robot.policies.commands import Evaluate, TrainBC
from pixio_robot.policies.pixel_network import SIDE, PixelNetwork
from pixio_robot.policies.settings import EmbeddingSettings, PolicySettings

SMALL = PolicySettings(layers=[32], batch=32, epochs=4)


class Trainer:
    """`train_bc` on the toy's demonstrations with a tiny encoder."""

    def __init__(self, demos: DemoSet, cache: TokenCache, backbone: Backbone, root: Path) -> None:
        self.demos, self.cache, self.backbone, self.root = demos, cache, backbone, root

    def __call__(self, out: str, settings: PolicySettings = SMALL, kind: str = "bc", **changes: Any) -> BCResult:
        embedding = changes.pop("embedding", EmbeddingSettings())
        arguments = dict(embedding=embedding, settings=settings, seed=0, device=torch.device("cpu"), save_every=1)
        sees = kind == "bc"
        identity = EncoderIdentity.of(self.backbone, "fp32") if sees else None
        shape, cache = (self.backbone.token_shape, self.cache) if sees else (None, None)
        return train_bc(self.demos, cache, identity, shape, out=self.root / out, kind=kind, **(arguments | changes))


@pytest.fixture
def train(toy_demos: DemoSet, toy_cache: TokenCache, tiny: Backbone, tmp_path: Path) -> Trainer:
    return Trainer(toy_demos, toy_cache, tiny, tmp_path)


def _weights(path: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(path, "policy").tensors


def _same(one: Path, other: Path) -> bool:
    first, second = _weights(one), _weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_one_seed_gives_one_result_and_leaves_global_randomness_alone(train: Trainer) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = train("a")
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    assert _same(first.last, train("b").last)
    assert not _same(first.last, train("c", seed=1).last)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_a_resumed_run_ends_on_the_same_weights(
    train: Trainer, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(SMALL, dropout=0.2, optimizer=optimizer)
    whole = train("whole", settings)
    from pixio_robot.training.metric_log import MetricLogger

    original = MetricLogger.write

    def stop(self: MetricLogger, epoch: int, step: int, values: dict[str, float]) -> None:
        original(self, epoch, step, values)
        if epoch == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(MetricLogger, "write", stop)
    with pytest.raises(KeyboardInterrupt):
        train("cut", settings)
    monkeypatch.undo()
    resumed = train("cut", settings)
    assert _same(whole.last, resumed.last) and _same(whole.best, resumed.best)
    rows = [json.loads(line) for line in (train.root / "cut/metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert rows == [json.loads(line) for line in (train.root / "whole/metrics.jsonl").read_text().splitlines()]
    assert train("cut", settings).reused


def test_a_run_folder_of_other_settings_is_refused(train: Trainer) -> None:
    train("a")
    with pytest.raises(CheckpointError, match="other settings or data"):
        train("a", replace(SMALL, lr=1e-2))


def test_it_learns_what_can_be_learned(train: Trainer) -> None:
    """With the tokens the training loss falls far below what a constant action gives."""
    settings = PolicySettings(layers=[256, 256], batch=32, epochs=60)
    result = train("a", settings)
    actions = train.demos.read("actions")[train.demos.rows("train")]
    assert result.train_loss < 0.1 * float(actions.var(axis=0).mean())
    rows = [json.loads(line) for line in (train.root / "a/metrics.jsonl").read_text().splitlines()]
    assert rows[0]["train/loss"] > 5 * rows[-1]["train/loss"] and "valid/loss" in rows[-1]
    best = min(rows, key=lambda row: row["valid/loss"])
    assert load_policy(result.best).training["epoch"] == best["epoch"]


@pytest.mark.parametrize("fusion", ["concat", "first", "attention", "spatial"])
def test_every_fusion_trains_and_its_own_weights_move(train: Trainer, fusion: str) -> None:
    embedding = EmbeddingSettings(fusion=fusion, frames="stack", history=2)
    result = train(fusion, replace(SMALL, epochs=1), embedding=embedding)
    once, again = (
        _weights(result.last),
        _weights(train(f"{fusion}2", replace(SMALL, epochs=2), embedding=embedding).last),
    )
    own = [name for name in once if name.startswith("embedder.")]
    assert bool(own) == (fusion in ("attention", "spatial"))
    assert all(not torch.equal(once[name], again[name]) for name in own if "in_proj_bias" not in name)


def test_a_blind_policy_needs_no_tokens(train: Trainer) -> None:
    result = train("blind", kind="blind")
    loaded = load_policy(result.last)
    assert loaded.encoder is None and loaded.policy.embedder.dim == 3
    assert loaded.policy(None, torch.zeros(2, 3)).shape == (2, 3)


def test_a_policy_that_is_told_the_state_learns_better_than_a_blind_one(train: Trainer) -> None:
    settings = PolicySettings(layers=[256, 256], batch=32, epochs=40)
    told, blind = (train(kind, settings, kind=kind) for kind in ("state", "blind"))
    assert told.train_loss < 0.7 * blind.train_loss
    loaded = load_policy(told.last)
    assert loaded.policy.kind == "state" and loaded.policy.felt == "state" and loaded.policy.embedder.dim == 6


@pytest.mark.parametrize("frames", ["single", "flare"])
def test_a_policy_that_learns_to_see(train: Trainer, frames: str) -> None:
    """Its network learns, it repeats itself, and what it reads from a file acts as what it wrote."""
    embedding = EmbeddingSettings(frames=frames)
    settings = PolicySettings(layers=[64], batch=32, epochs=8)
    result, again = (train(out, settings, kind="cnn", embedding=embedding) for out in ("a", "b"))
    assert _same(result.last, again.last)
    rows = [json.loads(line) for line in (train.root / "a/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["train/loss"] < 0.7 * rows[0]["train/loss"]
    policy = load_policy(result.last).policy
    assert policy.kind == "cnn" and policy.history == (1 if frames == "single" else 3)
    early = _weights(train("c", replace(settings, epochs=1), kind="cnn", embedding=embedding).last)
    late = _weights(result.last)
    assert all(not torch.equal(early[name], late[name]) for name in late if name.startswith("pixels."))


def test_training_images_are_moved_and_others_are_not() -> None:
    torch.manual_seed(0)
    network = PixelNetwork(1)
    images = torch.randint(0, 255, (4, 1, SIDE, SIDE, 3), dtype=torch.uint8)
    with torch.no_grad():
        moved = [network(images) for _ in range(2)]
        network.eval()
        still = [network(images) for _ in range(2)]
    assert not torch.equal(*moved) and torch.equal(*still) and still[0].shape == (4, 1, 1, 128)


def test_demonstrations_without_the_state_are_named(toy_request: TaskSpec, tmp_path: Path) -> None:
    request = replace(toy_request, observe=("proprio",))
    collect(request, demos=1, valid=0, first_seed=0, out=tmp_path / "demos.hdf5", workers=1)
    with pytest.raises(DataError, match="have no observation 'state'"):
        new_policy(None, EmbeddingSettings(), DemoSet(tmp_path / "demos.hdf5").widths, PolicySettings(), 0, "state")


def test_the_checkpoint_explains_itself(train: Trainer) -> None:
    loaded = load_policy(train("a").last)
    assert loaded.encoder is not None and loaded.encoder.fingerprint == train.backbone.fingerprint()
    assert loaded.request == train.demos.request
    assert loaded.training["lr"] == 1e-3 and loaded.training["epoch"] == 4 and loaded.step == 4 * 4
    assert load_policy_encoder(loaded.encoder).fingerprint() == train.backbone.fingerprint()
    loaded.encoder.fingerprint = "0" * 64
    with pytest.raises(CheckpointError, match="was trained on 000000000000"):
        load_policy_encoder(loaded.encoder)


def test_the_head_is_cortexbench_s() -> None:
    head = MlpHead(10, 4, PolicySettings())
    kinds = [type(layer).__name__ for layer in head.layers]
    assert kinds == ["BatchNorm1d", *["Linear", "Dropout", "ReLU"] * 3, "Linear"]
    linears = [layer for layer in head.layers if isinstance(layer, torch.nn.Linear)]
    assert [layer.out_features for layer in linears] == [256, 256, 256, 4]
    assert float(linears[-1].weight.detach().abs().max()) <= 0.01 / 256**0.5 * 1.001
    assert not [
        layer for layer in MlpHead(10, 4, PolicySettings(batch_norm=False)).layers if "Norm" in type(layer).__name__
    ]


def test_a_last_batch_of_one_joins_the_one_before() -> None:
    assert [len(part) for part in _split(torch.arange(65), 32)] == [32, 33]
    assert [len(part) for part in _split(torch.arange(66), 32)] == [32, 32, 2]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"loss": "mes"}, UnknownName, "did you mean 'mse'"),
        ({"optimizer": "lion"}, UnknownName, "adam, adamw, sgd"),
        ({"activation": "silu"}, UnknownName, "relu, gelu, tanh"),
        ({"layers": [0]}, BadInput, "at least 1"),
        ({"batch": 1}, BadInput, "at least 2"),
        ({"epochs": 0}, BadInput, "at least 1"),
        ({"lr": 1e30}, DataError, "lower policy.lr"),
    ],
)
def test_impossible_settings_are_refused(
    train: Trainer, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        train("a", replace(SMALL, **change))


# several cameras


@pytest.fixture(scope="module")
def two_views(tmp_path_factory: pytest.TempPathFactory) -> DemoSet:
    """Demonstrations of the toy through both of its cameras."""
    request = TaskSpec("toy/reach", ("rgb", "proprio"), ("front", "top"), image_size=64, render="fast", horizon=25)
    path = tmp_path_factory.mktemp("views") / "demos.hdf5"
    collect(request, demos=2, valid=0, first_seed=0, out=path, workers=1)
    return DemoSet(path)


def test_tokens_of_several_cameras_stand_side_by_side(two_views: DemoSet, tiny: Backbone, tmp_path: Path) -> None:
    def cache(*cameras: str) -> TokenCache:
        embedding = EmbeddingSettings(cameras=list(cameras))
        return cache_for(tiny, two_views, embedding, tmp_path, torch.device("cpu"), "fp32")

    both, front, top = cache("front", "top"), cache("front"), cache("top")
    assert both.cls.shape == (*front.cls.shape[:2], 2 * tiny.token_shape.dim)
    assert np.array_equal(both.cls, np.concatenate([front.cls, top.cls], axis=2))
    assert np.array_equal(cache().cls, front.cls) and not np.array_equal(front.cls, top.cls)
    with pytest.raises(UnknownName, match="no camera side; it has: front, top"):
        cache("side")


@pytest.mark.parametrize("encoder", ["tiny", "cnn"])
def test_a_policy_of_two_cameras_acts_on_both(
    encoder: str, two_views: DemoSet, tiny_file: Path, tmp_path: Path
) -> None:
    name = str(tiny_file) if encoder == "tiny" else encoder
    command = TrainBC(demos=str(two_views.path), encoder=name, cache=str(tmp_path / "cache"), out=str(tmp_path / "bc"))
    command.policy = replace(SMALL, epochs=1)
    command.embedding = EmbeddingSettings(cameras=["front", "top"])
    _, result = run_train_bc(command)
    loaded = load_policy(result.last)
    assert loaded.policy.images == ("rgb", "rgb_top")
    agent = Agent(loaded, load_encoder(name) if encoder == "tiny" else None, torch.device("cpu"))
    env = two_views.request.make()
    seen = {key: value[None] for key, value in env.reset(seed=9)[0].items()}
    env.close()
    alone = np.ones(1, bool)
    first = agent.act(seen, alone, alone)
    for key in ("rgb", "rgb_top"):
        assert not np.array_equal(first, agent.act({**seen, key: 255 - seen[key]}, alone, alone))
    run_evaluate(
        Evaluate(checkpoint=str(result.last), episodes=2, envs=1, videos=False, out=str(tmp_path / "eval")),
    )


def test_kept_epochs_are_the_policy_of_that_moment(train: Trainer) -> None:
    kept = train("kept", keep=(2, 4)).kept
    assert [path.name for path in kept] == ["epoch-0002.safetensors", "epoch-0004.safetensors"]
    assert _same(kept[0], train("short", replace(SMALL, epochs=2)).last) and not _same(*kept)
    assert train("kept", keep=(2, 4)).reused
    kept[0].unlink()
    with pytest.raises(CheckpointError, match=r"4 epochs on without epoch-0002\.safetensors"):
        train("kept", keep=(2, 4))
