"""Vision: cameras stay apart, images that are trained on are moved, encoders that are tuned stay tuned."""

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pixio_robot.datasets.dataset import EpisodeDataset, open_dataset
from pixio_robot.datasets.token_cache import token_cache
from pixio_robot.encoders.load import Backbone
from pixio_robot.envs.registry import TaskSpec
from pixio_robot.errors import BadInput, DataError, UnknownName
from pixio_robot.policies.agent import Agent
from pixio_robot.policies.build import PolicyDesign
from pixio_robot.policies.cloning import new_model
from pixio_robot.policies.collect import collect
from pixio_robot.policies.commands import Evaluate, evaluate
from pixio_robot.policies.evaluate import task_of
from pixio_robot.policies.loaded import load_policy
from pixio_robot.policies.mlp import MlpConfig
from pixio_robot.policies.pixel_network import SIDE, PixelNetwork
from pixio_robot.policies.settings import ObservationSettings, TrainingSettings

CPU = torch.device("cpu")
SMALL = MlpConfig(layers=[32])
SHORT = TrainingSettings(batch=32, epochs=1)


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
    with pytest.raises(DataError, match="have no feature 'state'"):
        new_model(open_dataset(tmp_path / "demos.hdf5"), PolicyDesign("state", SMALL), None, 0)
    with pytest.raises(DataError, match="has no images; it has: proprio"):
        new_model(open_dataset(tmp_path / "demos.hdf5"), PolicyDesign("cnn", SMALL), None, 0)


# several cameras


@pytest.fixture(scope="module")
def two_views_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demonstrations of the toy through both of its cameras, with depth."""
    observe = ("rgb", "depth", "proprio")
    request = TaskSpec("toy/reach", observe, ("front", "top"), image_size=64, render="fast", horizon=25)
    path = tmp_path_factory.mktemp("views") / "demos.hdf5"
    collect(request, demos=2, valid=0, first_seed=0, out=path, workers=1)
    return path


@pytest.fixture
def two_views(two_views_file: Path) -> EpisodeDataset:
    return open_dataset(two_views_file)


@pytest.fixture
def clone_views(clone: Any, two_views: EpisodeDataset) -> Any:
    """As `clone`, on demonstrations of two cameras."""
    return replace(clone, dataset=two_views)


def test_tokens_of_several_cameras_stay_apart(clone_views: Any, two_views: EpisodeDataset, tiny: Backbone) -> None:
    def prepared(*cameras: str) -> Any:
        return clone_views.prepare(observation=ObservationSettings(cameras=list(cameras)))

    both, front, top = prepared("front", "top"), prepared("front"), prepared("top")
    assert list(both.frames.arrays) == ["rgb.cls", "rgb_top.cls"]
    maps = [each.frames.arrays for each in (both, front, top)]
    assert all(isinstance(each, np.memmap) for arrays in maps for each in arrays.values()), "nothing is held in memory"
    assert np.array_equal(maps[0]["rgb.cls"], maps[1]["rgb.cls"])
    assert np.array_equal(maps[0]["rgb_top.cls"], maps[2]["rgb_top.cls"])
    assert not np.array_equal(maps[1]["rgb.cls"], maps[2]["rgb_top.cls"])
    assert list(prepared().frames.arrays) == ["rgb.cls"]
    assert top.frames.names == [token_cache(clone_views.cache, tiny, two_views, "rgb_top").name]
    assert both.model.policy.neck.dim == 2 * front.model.policy.neck.dim - 3, "both widths, proprioception once"
    with pytest.raises(UnknownName, match="no camera side; it has: front, top"):
        prepared("side")


@pytest.mark.parametrize("encoder", ["tiny", "cnn"])
def test_a_policy_of_two_cameras_acts_on_both(encoder: str, clone_views: Any, two_views: EpisodeDataset) -> None:
    result = clone_views("bc", SHORT, encoder=encoder, observation=ObservationSettings(cameras=["front", "top"]))
    loaded = load_policy(result.last)
    assert loaded.vision.spec.cameras == ("rgb", "rgb_top")
    assert loaded.spec.observation.keys() == {"rgb", "rgb_top", "proprio"}
    agent = Agent(loaded, CPU)
    env = task_of(two_views.provenance, "").make()
    seen = {key: value[None] for key, value in env.reset(seed=9)[0].items()}
    env.close()
    alone = np.ones(1, bool)
    first = agent.act(seen, alone, alone)
    for key in ("rgb", "rgb_top"):
        assert not np.array_equal(first, agent.act({**seen, key: 255 - seen[key]}, alone, alone))
    _, evaluation = evaluate(Evaluate(checkpoint=str(result.last), episodes=2, envs=1, videos=False))
    assert len(evaluation.rows) == 2


# encoders that learn

TUNED = ObservationSettings(steps=2)


def _small(backbone: Backbone) -> Backbone:
    """Return an encoder of 4 x 4 patches, which is fast to train."""
    backbone.preprocessing = backbone.preprocessing._replace(size=(64, 64))
    return backbone


@pytest.fixture
def clone_tuned(clone_views: Any) -> Any:
    """As `clone`, on few frames and with an encoder of few patches."""
    return replace(clone_views, backbone=lambda: _small(clone_views.backbone()))


def _encoder_weights(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    prefix = "vision.backbone.network."
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def test_tuning_the_last_block_changes_it_and_the_norm_alone(clone_tuned: Any, tiny: Backbone) -> None:
    result = clone_tuned("a", SHORT, observation=TUNED, tune="last:1")
    before, after = tiny.network.state_dict(), _encoder_weights(clone_tuned.weights(result.last))
    assert before.keys() == after.keys(), "the whole encoder is in the checkpoint"
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed and all(name.startswith(("blocks.1.", "norm.")) for name in changed)
    assert {name.split(".")[0] for name in changed} == {"blocks", "norm"}


def test_a_tuned_encoder_is_restored_from_the_checkpoint(clone_tuned: Any, tiny: Backbone) -> None:
    """A loaded policy encodes with the tuned weights, and agrees with what was trained."""
    result = clone_tuned("a", replace(SHORT, lr=1e-2), observation=TUNED, tune="full")
    loaded = load_policy(result.last)
    weights = _encoder_weights(clone_tuned.weights(result.last))
    state = loaded.vision.encoder.network.state_dict()
    assert all(torch.equal(state[name], value) for name, value in weights.items())
    assert loaded.vision.encoder.fingerprint() != tiny.fingerprint()
    assert load_policy(result.last, tiny).vision.encoder.fingerprint() == loaded.vision.encoder.fingerprint()
    data = clone_tuned.prepare(observation=TUNED, tune="full").data
    sample = data.sample(np.array([1]))
    with torch.inference_mode():
        expected, _ = loaded.model.eval().policy.act(
            {**loaded.vision(sample.frames, sample.frame_index), **sample.vectors}, {}
        )
    for row in (0, 1):
        live = loaded.act({key: clone_tuned.dataset.read(key, np.array([row]))[0] for key in loaded.spec.observation})
    np.testing.assert_allclose(live, expected[0, 0], atol=2e-3)


def test_tuning_does_not_change_the_encoder_that_was_given(clone_tuned: Any, tiny: Backbone) -> None:
    before = tiny.fingerprint()
    clone_tuned.backbone = lambda: _small(tiny)
    first = clone_tuned("a", SHORT, observation=TUNED, tune="full")
    assert tiny.fingerprint() == before and not any(each.requires_grad for each in tiny.parameters())
    assert clone_tuned.same(first.last, clone_tuned("b", SHORT, observation=TUNED, tune="full").last)


def test_the_encoder_learns_at_its_own_rate(clone_tuned: Any, tiny: Backbone) -> None:
    still = clone_tuned("a", replace(SHORT, encoder_lr=0.0), observation=TUNED, tune="full")
    after = _encoder_weights(clone_tuned.weights(still.last))
    assert all(torch.equal(value, after[name]) for name, value in tiny.network.state_dict().items())


@pytest.mark.parametrize("tune", ["last:1", "full"])
def test_resumed_tuning_equals_uninterrupted(clone_tuned: Any, tune: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clone_tuned.check_resumed(
        monkeypatch, replace(SHORT, batch=25), observation=ObservationSettings(steps=1), tune=tune
    )


@pytest.mark.parametrize("depth", ["late", "points", "channels"])
def test_an_encoder_is_tuned_beside_depth(depth: str, clone_tuned: Any) -> None:
    """What is trained acts live as it was trained, to the half precision of live tokens."""
    observation = ObservationSettings(steps=2, depth=depth, depth_points=32)
    config = replace(SMALL, depth_dropout=0.0, batch_norm=False, output_init_scale=1.0)
    result = clone_tuned("a", replace(SHORT, batch=16), config, observation=observation, tune="full")
    loaded = load_policy(result.last)
    sample = clone_tuned.prepare(config, observation=observation, tune="full").data.sample(np.array([1, 30]))
    with torch.inference_mode():
        seen = {**loaded.vision(sample.frames, sample.frame_index), **sample.vectors}
        expected, _ = loaded.policy.act(seen, {})
    for number, rows in enumerate(((0, 1), (29, 30))):
        loaded.reset()
        for row in rows:
            live = loaded.act(
                {key: clone_tuned.dataset.read(key, np.array([row]))[0] for key in loaded.spec.observation}
            )
        np.testing.assert_allclose(live, expected[number, 0], atol=2e-2)


@pytest.mark.parametrize(
    ("design", "message"),
    [
        ({"tune": "last:3"}, "last:N with N from 1 to 2"),
        ({"tune": "last:0"}, "last:N with N from 1 to 2"),
        ({"tune": "lasts"}, "give frozen, full, or last:N"),
        ({"tune": "full", "encoder": "cnn"}, "needs an encoder that can be finetuned"),
        ({"tune": "full", "observation": ObservationSettings(depth="patches")}, r"observation\.depth=patches.*frozen"),
    ],
)
def test_what_cannot_be_tuned_is_refused(clone_tuned: Any, design: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        clone_tuned.prepare(**design)


# worker processes


def test_data_workers_give_the_same_weights(clone_tuned: Any) -> None:
    others = dict(observation=TUNED, tune="full", horizon=2)
    training = replace(SHORT, epochs=2, batch=20)
    none, two = (clone_tuned(f"{workers}", replace(training, workers=workers), **others) for workers in (0, 2))
    assert clone_tuned.same(none.last, two.last) and none.train_loss == two.train_loss


def test_training_data_is_small_to_send_to_workers(clone: Any) -> None:
    """Memory maps go as paths, not as copies of what they hold."""
    data = clone.prepare(MlpConfig(fusion="spatial")).data
    tokens = data.cached.arrays["rgb.patches"]
    sent = pickle.dumps(data)
    assert len(sent) < 100_000 < tokens.nbytes
    twin = pickle.loads(sent)
    assert isinstance(twin.cached.arrays["rgb.patches"], np.memmap)
    rows = np.array([3, 70])
    one, other = data.sample(rows), twin.sample(rows)
    assert all(torch.equal(one.frames[name], other.frames[name]) for name in one.frames)
    assert torch.equal(one.action, other.action) and twin.fingerprint == data.fingerprint
