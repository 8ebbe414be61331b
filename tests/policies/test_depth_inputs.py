"""Laws of depth: patches start with colour alone, clouds have no order, predicted depth replaces measured depth."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pixio_robot import cli
from pixio_robot.cameras.camera import CameraRequest
from pixio_robot.cameras.point_clouds import farthest_points, point_cloud
from pixio_robot.cameras.registry import find_camera
from pixio_robot.datasets.dataset import EpisodeDataset, open_dataset
from pixio_robot.datasets.token_cache import encode, tokens_of
from pixio_robot.deploy.stream import PolicyInput, stream
from pixio_robot.depth.estimator import DepthEstimator, DepthHead, save_depth
from pixio_robot.depth.heads import make_head
from pixio_robot.encoders.load import Backbone
from pixio_robot.envs.registry import make
from pixio_robot.errors import CheckpointError, DataError
from pixio_robot.hardware import seeded
from pixio_robot.policies.agent import Agent
from pixio_robot.policies.build import PolicyDesign, build_policy
from pixio_robot.policies.depth_inputs import PointView, predicted_depth
from pixio_robot.policies.depth_networks import DepthPatches, PointNetwork
from pixio_robot.policies.loaded import load_policy
from pixio_robot.policies.mlp import MlpConfig
from pixio_robot.policies.settings import ObservationSettings, TrainingSettings

CPU = torch.device("cpu")
SMALL = MlpConfig(layers=[32])
SHORT = TrainingSettings(batch=64, epochs=2)


@pytest.fixture(scope="module")
def rgbd_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rgbd") / "reach.hdf5"
    words = ["task=toy/reach", "demos=3", "valid=1", "render=fast", "image_size=64", "episode_steps=12", "obs=rgbd"]
    assert cli.run(["collect", *words, f"out={path}", "workers=1"]) == 0
    return path


@pytest.fixture
def demos(rgbd_file: Path) -> EpisodeDataset:
    return open_dataset(rgbd_file)


@pytest.fixture
def clone_depth(clone: Any, demos: EpisodeDataset) -> Any:
    """As `clone`, on demonstrations with depth."""
    return replace(clone, dataset=demos)


def test_patches_start_with_colour_alone_and_alone_get_gradients(tiny: Backbone) -> None:
    """Bit for bit what the encoder gives without depth, then something else; the encoder itself stays as it is."""
    images = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    depth = torch.randint(0, 256, (2, 128, 128, 2), dtype=torch.uint8)
    patches = DepthPatches(tiny.token_shape.grid, tiny.token_shape.dim)
    assert patches.size == (128, 128)
    plain = encode(tiny, images, True, "fp32")
    initial = encode(tiny, images, True, "fp32", patches(depth).detach())
    assert all(torch.equal(one, other) for one, other in zip(plain, initial, strict=True))
    before = {name: value.clone() for name, value in tiny.state_dict().items()}
    optimizer = torch.optim.SGD(patches.parameters(), lr=1.0)
    tokens_of(tiny, images, True, "fp32", patches(depth)).cls.square().mean().backward()
    assert all(parameter.grad is None for parameter in tiny.parameters())
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in patches.parameters())
    optimizer.step()
    learned = encode(tiny, images, True, "fp32", patches(depth).detach())
    assert not torch.equal(plain[0], learned[0])
    assert all(torch.equal(value, before[name]) for name, value in tiny.state_dict().items())


@pytest.mark.parametrize("fusion", ["mean", "attention"])
def test_encoding_again_gives_what_the_cache_holds_until_depth_is_learned(fusion: str, clone_depth: Any) -> None:
    """Windows share frames, rows are in any order; what comes out is each sample's own."""
    config = replace(SMALL, fusion=fusion, output_init_scale=1.0)
    prepared = clone_depth.prepare(config, observation=ObservationSettings(depth="patches"))
    model, data = prepared.model.eval(), prepared.data
    rows = np.array([30, 2, 3, 12, 0, 47])

    def predict(images: tuple[str, ...]) -> torch.Tensor:
        sample = data.sample(rows, images)
        frames = sample.frames if images else {"rgb.cls": sample.frames["rgb.cls"]}
        observation = model.observation(frames, sample.vectors, sample.frame_index)
        return model.policy.predict(observation, {})[0]

    with torch.no_grad():
        cached, fresh = predict(()), predict(("rgb",))
        assert torch.allclose(cached, fresh, atol=2e-3), "but for the cache's half precision"
        assert model.vision.residual is not None
        model.vision.residual.project.weight.normal_()
        assert not torch.allclose(fresh, predict(("rgb",)), atol=1e-2)


def test_recomputing_saves_memory_and_changes_no_gradient(clone_depth: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = clone_depth.prepare(observation=ObservationSettings(depth="patches"))
    model, sample = prepared.model.eval(), prepared.data.sample(np.array([5, 20]), ("rgb",))
    grads = []
    for limit in (2**40, 0):
        monkeypatch.setattr("pixio_robot.policies.vision._IN_MEMORY", limit)
        model.zero_grad()
        observation = model.observation(sample.frames, sample.vectors, sample.frame_index)
        model.policy.predict(observation, {})[0].square().sum().backward()
        weight = model.vision.residual.project.weight
        assert weight.grad is not None
        grads.append(weight.grad.clone())
        assert all(block.activation_checkpointing == (limit == 0) for block in model.vision.encoder.network.blocks)
    assert grads[0].any() and torch.allclose(grads[0], grads[1], rtol=1e-4, atol=1e-9)


def test_until_depth_is_learned_the_policy_is_that_of_colour(clone_depth: Any) -> None:
    """Bit for bit after the epochs on cached tokens; the last epoch changes head and patches."""
    runs = {}
    for depth in ("none", "patches"):
        others = dict(observation=ObservationSettings(depth=depth), seed=1, keep=(2,), depth_epochs=1)
        result = clone_depth(depth, replace(SHORT, epochs=3), **others)
        for name, path in (("epoch-0002", result.kept[0]), ("last", result.last)):
            runs[depth, name] = load_policy(path).model.state_dict()
    colour, early, learned = (
        runs[each] for each in (("none", "epoch-0002"), ("patches", "epoch-0002"), ("patches", "last"))
    )
    assert all(torch.equal(early[name], value) for name, value in colour.items())
    added = [name for name in early if name not in colour]
    assert len(added) == 2 and not any(early[name].any() for name in added)
    assert all(learned[name].any() for name in added)
    assert not torch.equal(learned["policy.head.layers.1.weight"], early["policy.head.layers.1.weight"])


def test_depth_patches_resume_exactly_in_the_epochs_that_run_the_encoder(
    clone_depth: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    observation = ObservationSettings(depth="patches", steps=1)
    clone_depth.check_resumed(monkeypatch, SHORT, observation=observation, depth_epochs=2)


def test_farthest_points_cover_what_there_is() -> None:
    """No left-out point is farther from the chosen ones than these are from each other, and there are no doubles."""
    points = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32)
    chosen = points[farthest_points(points, 40)]
    apart = np.linalg.norm(chosen[:, None] - chosen[None], axis=-1)
    least = apart[~np.eye(40, dtype=bool)].min()
    covered = np.linalg.norm(points[:, None] - chosen[None], axis=-1).min(axis=1).max()
    assert least > 0 and covered <= least * 1.0001
    assert sorted(farthest_points(points[:3], 7).tolist()) == [0, 0, 0, 1, 1, 2, 2]


def test_clouds_are_cropped_and_invalid_points_are_no_points() -> None:
    rng = np.random.default_rng(1)
    points = rng.uniform(-1, 1, (32, 32, 3)).astype(np.float32)
    there = rng.random((32, 32)) < 0.5
    points[~there] = 0.1  # inside the box, but not there
    box = (-0.5, 0.5, -0.25, 0.75, 0.0, 1.0)
    cloud = point_cloud(points, there, box, 128)
    assert cloud.shape == (128, 4) and np.abs(cloud[:, :3]).max() <= 1 and (cloud[:, 3] == 1).all()
    low, high = np.array(box[::2]), np.array(box[1::2])
    back = (cloud[:, :3] + 1) / 2 * (high - low) + low
    known = points[there]
    nearest = np.linalg.norm(back[:, None] - known[None], axis=-1).min(axis=1)
    assert nearest.max() < 1e-5, "only points that were seen"
    assert not point_cloud(points, np.zeros((32, 32), bool), box, 16).any()


def test_points_of_a_render_lie_where_things_are() -> None:
    """The toy's floor is at height 0 of the world, and its ball where the simulator says."""
    env = make("toy/reach", observe=("depth", "state"), image_size=96, render="fast")
    observation, _ = env.reset(seed=3)
    calibration, ball = next(iter(env.calibration().values())), observation["state"][3:]
    env.close()
    depth = observation["depth"][None]
    world = PointView(calibration, ()).world(depth)[0]
    low = world[(depth[0] > 0) & (world[..., 2] < 0.02)]
    assert len(low) > 1000 and np.abs(low[:, 2]).max() < 2e-3
    near = world[np.linalg.norm(world - ball, axis=-1) < 0.035]
    assert len(near) > 10 and np.median(np.abs(np.linalg.norm(near - ball, axis=-1) - 0.03)) < 2e-3


def test_a_point_network_knows_no_order_and_no_number() -> None:
    with seeded(0, 0):
        network = PointNetwork(2, "stack").eval()
    cloud = torch.rand(3, 2, 20, 4)
    cloud[..., 3] = 1
    whole = network(cloud)
    assert whole.shape == (3, 1, 1, network.tokens.dim)
    shuffled = cloud[:, :, torch.randperm(20)]
    doubled = torch.cat([cloud, cloud[:, :, :5]], dim=2)
    missing = torch.cat([cloud, torch.zeros(3, 2, 6, 4)], dim=2)
    assert all(torch.allclose(network(each), whole, atol=1e-6) for each in (shuffled, doubled, missing))
    assert not torch.allclose(network(cloud * torch.tensor([1.0, 1.0, 0.5, 1.0])), whole, atol=1e-3)
    assert torch.isfinite(network(torch.zeros(1, 2, 20, 4))).all()


def test_points_need_a_camera_that_stood_still(rgbd_file: Path, tmp_path: Path) -> None:
    import json
    import shutil

    import h5py

    moved = Path(shutil.copy(rgbd_file, tmp_path / "moved.hdf5"))
    with h5py.File(moved, "r+") as file:
        known = json.loads(file["data/demo_1"].attrs["camera_info"])
        known["front"]["extrinsics"][0][3] += 0.1
        file["data/demo_1"].attrs["camera_info"] = json.dumps(known)
    assert open_dataset(rgbd_file).calibration("rgb").camera_to_world.shape == (4, 4)
    with pytest.raises(DataError, match="moved between demonstrations"):
        open_dataset(moved).calibration("rgb")


@pytest.fixture
def depth_head(tiny: Backbone, tmp_path: Path) -> Path:
    """A head of random weights: what it says is a function of the image, and that is all that matters here."""
    with seeded(3, 0):
        head = make_head("linear", tiny.token_shape.dim)
    design = DepthHead("linear", tiny.token_shape.dim, "small", None, [64, 64], 2.0)
    save_depth(DepthEstimator(tiny, head, design), tmp_path / "head.safetensors")
    return tmp_path / "head.safetensors"


@pytest.mark.parametrize("fusion", ["late", "patches"])
def test_predicted_depth_needs_colour_alone(
    fusion: str, rgbd_file: Path, tiny_file: Path, tiny: Backbone, depth_head: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Train, evaluate and stream from cameras without depth; another head than the trained one is refused."""
    words = [f"observation.depth={fusion}", f"observation.depth_head={depth_head}", "observation.depth_epochs=1"]
    command = ["train_bc", f"demos={rgbd_file}", f"encoder={tiny_file}", *words, "out=run", "device=cpu"]
    command += ["policy.layers=[32]", "training.batch=64", "training.epochs=2"]
    assert cli.run(command) == 0, capsys.readouterr().err
    checkpoint = Path("run/checkpoints/mlp/last.safetensors")
    loaded = load_policy(checkpoint)
    assert not loaded.vision.observes_depth and loaded.vision.observes_images and loaded.vision.spec.depth == fusion
    assert loaded.spec.observation.keys() == {"rgb", "proprio"}
    request = CameraRequest(width=64, render="fast", seed=5, depth=False)
    with find_camera("task:toy/reach", request) as camera:
        steps = [step for step, _ in zip(stream(loaded, {"rgb": camera}), range(2), strict=False)]
    assert steps[0].action is not None and np.isfinite(steps[0].action).all()
    assert cli.run(["evaluate", f"checkpoint={checkpoint}", "episodes=1", "envs=1", "videos=false", "device=cpu"]) == 0
    rows = next(Path("runs/evaluate").glob("*/episodes.jsonl")).read_text()
    assert f"depth {fusion} predicted" in rows
    save_depth(
        DepthEstimator(tiny, make_head("linear", 32), DepthHead("linear", 32, "small", None, [64, 64], 2.0)), depth_head
    )
    with pytest.raises(CheckpointError, match="not the depth head"):
        Agent(load_policy(checkpoint), CPU)


def test_predictions_are_made_once(demos: EpisodeDataset, depth_head: Path, tmp_path: Path) -> None:
    first = predicted_depth(tmp_path / "cache", str(depth_head), demos, "rgb", CPU)
    assert first.shape == (48, 64, 64) and first.dtype == np.float16 and (first > 0).all()
    file = next((tmp_path / "cache").glob("depth-*.npy"))
    written = file.stat().st_mtime_ns
    again = predicted_depth(tmp_path / "cache", str(depth_head), demos, "rgb", CPU)
    assert np.array_equal(first, again) and file.stat().st_mtime_ns == written


def test_points_of_another_camera_of_the_same_scene_are_the_same_points(rgbd_file: Path, tiny_file: Path) -> None:
    """A policy of points takes the source's own intrinsics and pose, not those of its training."""
    command = ["train_bc", f"demos={rgbd_file}", f"encoder={tiny_file}", "obs=rgbd", "observation.depth=points"]
    box = "observation.depth_box=[-0.3,0.3,-0.3,0.3,0.05,0.4]"
    assert cli.run([*command, box, "policy.layers=[32]", "training.batch=64", "training.epochs=1", "out=run"]) == 0
    loaded = load_policy("run/checkpoints/mlp/last.safetensors")
    clouds = []
    for name in ("task:toy/reach@front", "task:toy/reach@top"):
        with find_camera(name, CameraRequest(width=64, render="fast", seed=2)) as camera:
            seen = PolicyInput(loaded).observation({"rgb": camera.read()})
        cloud = loaded.vision.depth_frames(seen["depth"][None], seen["points"][None])[0]
        clouds.append(cloud[cloud[:, 3] > 0, :3])
    apart = np.linalg.norm(clouds[0][:, None] - clouds[1][None], axis=-1).min(axis=1)
    assert np.quantile(apart, 0.5) < 0.1, "each sees other sides of the same hand and ball, in units of the box"


def test_training_leaves_out_depth_of_some_and_colour_of_others_and_proprioception_of_none(
    demos: EpisodeDataset, tiny: Backbone
) -> None:
    """One sample many times: three answers in the asked shares while training, one otherwise."""
    config = replace(SMALL, batch_norm=False, output_init_scale=1.0, depth_dropout=0.2)
    observation = ObservationSettings(steps=1, depth="points", depth_points=16)
    view = PointView(demos.calibration("rgb"), (-1, 1, -1, 1, -1, 1))
    model = build_policy(PolicyDesign(tiny.name, config, observation), demos.features, ("rgb",), tiny, 0, view=view)
    frames = {"rgb.cls": torch.rand(1, 1, 8, 32), "depth_feature": torch.rand(1, 1, 16, 4)}
    proprio = torch.rand(1, 1, 3)

    def answer(count: int = 1, colour: float = 1.0) -> torch.Tensor:
        many = {name: values.expand(count, *values.shape[1:]) for name, values in frames.items()}
        many["rgb.cls"] = many["rgb.cls"] * colour
        return model.act(many, {"proprio": proprio.expand(count, 1, 3)}, {})[0].flatten(1)

    with seeded(5, 0), torch.no_grad():
        model.train()
        answers, counts = torch.unique(answer(2000).round(decimals=4), dim=0, return_counts=True)
        model.eval()
        alone, without_colour = answer(), answer(colour=0.0)
    shares = {tuple(each.tolist()): count / 2000 for each, count in zip(answers, counts.tolist(), strict=True)}
    assert len(shares) == 3
    for expected, share in ((alone, 0.6), (without_colour, 0.2)):
        nearest = min(shares, key=lambda each: float((torch.tensor(each) - expected[0]).abs().max()))
        assert torch.allclose(torch.tensor(nearest), expected[0], atol=2e-4)
        assert shares[nearest] == pytest.approx(share, abs=0.04)
