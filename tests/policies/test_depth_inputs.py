"""Laws of the fusions: patches begin as colour alone, clouds know no order, predicted depth stands in for measured."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pixio_robot.policies.bc import new_policy, train_bc
from pixio_robot.policies.bc_data import Batches, bc_data
from pixio_robot.policies.runs import load_policy
from pixio_robot.policies.visuomotor import EncoderIdentity

from pixio_robot import cli
from pixio_robot.cameras.camera import CameraRequest
from pixio_robot.cameras.point_clouds import farthest_points, point_cloud
from pixio_robot.cameras.registry import find_camera
from pixio_robot.datasets.robomimic import DemoSet
from pixio_robot.datasets.token_cache import encode, token_cache, tokens_of
from pixio_robot.deploy.stream import observation_of, stream
from pixio_robot.depth.estimator import DepthEstimator, DepthHead, save_depth
from pixio_robot.depth.heads import make_head
from pixio_robot.encoders.load import Backbone
from pixio_robot.encoders.pixio import TokenShape
from pixio_robot.envs.registry import make
from pixio_robot.errors import CheckpointError, DataError
from pixio_robot.hardware import seeded
from pixio_robot.policies.agent import Agent
from pixio_robot.policies.depth_inputs import PointView, predicted_depth
from pixio_robot.policies.depth_networks import DepthPatches, PointNetwork
from pixio_robot.policies.settings import EmbeddingSettings, PolicySettings

CPU = torch.device("cpu")
HEAD = PolicySettings(layers=[32], batch=64, epochs=2)


@pytest.fixture(scope="module")
def rgbd_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rgbd") / "reach.hdf5"
    words = ["task=toy/reach", "demos=3", "valid=1", "render=fast", "image_size=64", "horizon=12", "obs=rgbd"]
    assert cli.run(["collect", *words, f"out={path}", "workers=1"]) == 0
    return path


@pytest.fixture
def demos(rgbd_file: Path) -> DemoSet:
    return DemoSet(rgbd_file)


def test_patches_begin_as_colour_alone_and_alone_get_gradients(tiny: Backbone) -> None:
    """Bit for bit what the encoder gives without depth, then something else; the encoder itself stays as it is."""
    images = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    depth = torch.randint(0, 256, (2, 128, 128, 2), dtype=torch.uint8)
    patches = DepthPatches(tiny.token_shape.grid, tiny.token_shape.dim)
    assert patches.size == (128, 128)
    plain = encode(tiny, images, True, "fp32")
    begun = encode(tiny, images, True, "fp32", patches(depth).detach())
    assert all(torch.equal(one, other) for one, other in zip(plain, begun, strict=True))
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
def test_encoding_anew_gives_what_the_cache_holds_until_depth_is_learned(
    fusion: str, demos: DemoSet, tiny: Backbone, tmp_path: Path
) -> None:
    """Histories share frames, rows are in any order; what comes out is each sample's own."""
    embedding = EmbeddingSettings(fusion=fusion, depth="patches")
    settings = PolicySettings(layers=[32], output_init_scale=1.0)
    policy = new_policy(tiny.token_shape, embedding, demos.widths, settings, 0).eval()
    cache = token_cache(tmp_path, tiny, demos)
    batches = Batches(bc_data(demos, cache, policy), policy, CPU, tiny, "fp32")
    rows = torch.tensor([30, 2, 3, 12, 0, 47])
    with torch.no_grad():
        cached = batches.predict(policy, rows)
        batches.depth_enabled = True
        fresh = batches.predict(policy, rows)
        assert torch.allclose(cached, fresh, atol=2e-3), "but for the cache's half precision"
        assert policy.patches is not None
        policy.patches.project.weight.normal_()
        assert not torch.allclose(fresh, batches.predict(policy, rows), atol=1e-2)


def test_recomputing_saves_memory_and_changes_no_gradient(
    demos: DemoSet, tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = new_policy(tiny.token_shape, EmbeddingSettings(depth="patches"), demos.widths, HEAD, 0).eval()
    cache = token_cache(tmp_path, tiny, demos)
    grads = []
    for limit in (2**40, 0):
        monkeypatch.setattr("pixio_robot.policies.bc_data._IN_MEMORY", limit)
        batches = Batches(bc_data(demos, cache, policy), policy, CPU, tiny, "fp32")
        batches.depth_enabled = True
        policy.zero_grad()
        batches.predict(policy, torch.tensor([5, 20])).square().sum().backward()
        assert policy.patches is not None and policy.patches.project.weight.grad is not None
        grads.append(policy.patches.project.weight.grad.clone())
        assert all(block.activation_checkpointing == (limit == 0) for block in tiny.network.blocks)
    assert grads[0].any() and torch.allclose(grads[0], grads[1], rtol=1e-4, atol=1e-9)


def test_until_depth_is_learned_the_policy_is_that_of_colour(demos: DemoSet, tiny: Backbone, tmp_path: Path) -> None:
    """Bit for bit after the epochs on cached tokens; the last epoch changes head and patches."""
    cache, runs = token_cache(tmp_path / "cache", tiny, demos), {}
    for depth in ("none", "patches"):
        train_bc(
            demos,
            cache,
            EncoderIdentity.of(tiny, "fp32"),
            tiny.token_shape,
            embedding=EmbeddingSettings(depth=depth, depth_epochs=1),
            settings=replace(HEAD, epochs=3),
            seed=1,
            device=CPU,
            out=tmp_path / depth,
            keep=(2,),
            backbone=tiny,
        )
        for name in ("epoch-0002", "last"):
            policy = load_policy(tmp_path / depth / f"checkpoints/bc/{name}.safetensors").policy
            runs[depth, name] = policy.state_dict()
    colour, begun, learned = (
        runs[each] for each in (("none", "epoch-0002"), ("patches", "epoch-0002"), ("patches", "last"))
    )
    assert all(torch.equal(begun[name], value) for name, value in colour.items())
    added = [name for name in begun if name not in colour]
    assert len(added) == 2 and not any(begun[name].any() for name in added)
    assert all(learned[name].any() for name in added)
    assert not torch.equal(learned["head.layers.1.weight"], begun["head.layers.1.weight"])


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
    assert DemoSet(rgbd_file).calibration("rgb").camera_to_world.shape == (4, 4)
    with pytest.raises(DataError, match="moved between demonstrations"):
        DemoSet(moved).calibration("rgb")


def test_frames_are_read_in_the_order_asked(demos: DemoSet) -> None:
    everything = demos.read("rgb")
    rows = np.array([40, 0, 11, 12, 12, 47])
    assert np.array_equal(demos.frames("rgb", rows), everything[rows])


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
    words = [f"embedding.depth={fusion}", f"embedding.depth_head={depth_head}", "embedding.depth_epochs=1"]
    command = ["train_bc", f"demos={rgbd_file}", f"encoder={tiny_file}", *words, "out=run", "device=cpu"]
    assert cli.run([*command, "policy.layers=[32]", "policy.batch=64", "policy.epochs=2"]) == 0, capsys.readouterr().err
    checkpoint = Path("run/checkpoints/bc/last.safetensors")
    loaded = load_policy(checkpoint)
    assert not loaded.policy.needs_depth and loaded.policy.needs_colour and loaded.policy.takes_depth
    request = CameraRequest(width=64, render="fast", seed=5, depth=False)
    with find_camera("task:toy/reach", request) as camera:
        moments = [moment for moment, _ in zip(stream(Agent(loaded, tiny, CPU), camera), range(2), strict=False)]
    assert moments[0].action is not None and np.isfinite(moments[0].action).all()
    assert cli.run(["evaluate", f"checkpoint={checkpoint}", "episodes=1", "envs=1", "videos=false", "device=cpu"]) == 0
    rows = next(Path("runs/evaluate").glob("*/episodes.jsonl")).read_text()
    assert f"depth {fusion} predicted" in rows
    save_depth(
        DepthEstimator(tiny, make_head("linear", 32), DepthHead("linear", 32, "small", None, [64, 64], 2.0)), depth_head
    )
    with pytest.raises(CheckpointError, match="not the depth head"):
        Agent(loaded, tiny, CPU)


def test_predictions_are_made_once(demos: DemoSet, depth_head: Path, tmp_path: Path) -> None:
    embedding = EmbeddingSettings(depth="late", depth_head=str(depth_head))
    first = predicted_depth(tmp_path / "cache", embedding, demos, CPU)
    assert first is not None and first.shape == (48, 64, 64) and first.dtype == np.float16 and (first > 0).all()
    file = next((tmp_path / "cache").glob("depth-*.npy"))
    written = file.stat().st_mtime_ns
    again = predicted_depth(tmp_path / "cache", embedding, demos, CPU)
    assert again is not None and np.array_equal(first, again) and file.stat().st_mtime_ns == written
    assert predicted_depth(tmp_path / "cache", EmbeddingSettings(depth="late"), demos, CPU) is None


def test_points_of_another_camera_of_the_same_scene_are_the_same_points(rgbd_file: Path, tiny_file: Path) -> None:
    """A policy of points takes the source's own intrinsics and pose, not those of its training."""
    command = ["train_bc", f"demos={rgbd_file}", f"encoder={tiny_file}", "obs=rgbd", "embedding.depth=points"]
    box = "embedding.depth_box=[-0.3,0.3,-0.3,0.3,0.05,0.4]"
    assert cli.run([*command, box, "policy.layers=[32]", "policy.batch=64", "policy.epochs=1", "out=run"]) == 0
    loaded = load_policy("run/checkpoints/bc/last.safetensors")
    clouds = []
    for name in ("task:toy/reach@front", "task:toy/reach@top"):
        with find_camera(name, CameraRequest(width=64, render="fast", seed=2)) as camera:
            seen = observation_of(camera.read(), loaded)
        cloud = loaded.policy.depth_input(seen["depth"], seen["points"])[0]
        clouds.append(cloud[cloud[:, 3] > 0, :3])
    apart = np.linalg.norm(clouds[0][:, None] - clouds[1][None], axis=-1).min(axis=1)
    assert np.quantile(apart, 0.5) < 0.1, "each sees other sides of the same hand and ball, in units of the box"


def test_training_leaves_out_depth_of_some_and_colour_of_others_and_feeling_of_none(demos: DemoSet) -> None:
    """One sample many times: three answers in the asked shares while training, one otherwise."""
    embedding = EmbeddingSettings(frames="single", depth="points", depth_dropout=0.2, depth_points=16)
    settings = PolicySettings(layers=[32], batch_norm=False, output_init_scale=1.0)
    view = PointView(demos.calibration("rgb"), (-1, 1, -1, 1, -1, 1))
    policy = new_policy(TokenShape(8, (4, 4), 32), embedding, demos.widths, settings, 0, view=view)
    tokens, proprio, cloud = torch.rand(1, 1, 8, 32), torch.rand(1, demos.widths["proprio"]), torch.rand(1, 1, 16, 4)
    many = [each.expand(2000, *each.shape[1:]) for each in (tokens, proprio, cloud)]
    with seeded(5, 0), torch.no_grad():
        answers, counts = torch.unique(policy.train()(*many).round(decimals=4), dim=0, return_counts=True)
        alone = policy.eval()(tokens, proprio, cloud)
        blind = policy(torch.zeros_like(tokens), proprio, cloud)
    shares = {tuple(answer.tolist()): count / 2000 for answer, count in zip(answers, counts.tolist(), strict=True)}
    assert len(shares) == 3
    for expected, share in ((alone, 0.6), (blind, 0.2)):
        nearest = min(shares, key=lambda answer: float((torch.tensor(answer) - expected[0]).abs().max()))
        assert torch.allclose(torch.tensor(nearest), expected[0], atol=2e-4)
        assert shares[nearest] == pytest.approx(share, abs=0.04)
