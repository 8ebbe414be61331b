"""Every extra installs beside the others and does something real; what is not installed is skipped by name."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pixio_robot.doctor import extras

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # third parties' own, at import; ours are errors in every other test
    pytest.mark.timeout(240),
]


def _metaworld(folder: Path) -> None:
    from pixio_robot.envs.contract import check_contract

    check_contract("metaworld/drawer-open")


def _dmc(folder: Path) -> None:
    from pixio_robot.envs.rendering import use_headless_gl

    use_headless_gl()
    from dm_control import suite

    env = suite.load("reacher", "easy", task_kwargs={"random": 0})
    env.reset()
    assert env.step(env.action_spec().maximum).reward is not None
    assert env.physics.render(64, 64, camera_id=0).std() > 1


def _adroit(folder: Path) -> None:
    import gymnasium
    import gymnasium_robotics

    gymnasium.register_envs(gymnasium_robotics)
    env = gymnasium.make("AdroitHandPen-v1")
    observation, _ = env.reset(seed=0)
    assert observation.shape == (45,)
    env.close()


def _trifinger(folder: Path) -> None:
    from pixio_robot.envs.registry import make

    env = make("trifinger/reach_cube", observe=("rgb", "proprio"), image_size=36, horizon=2)
    observation, _ = env.reset(seed=0)
    assert observation["rgb"].shape == (36, 36, 3)
    env.close()


def _rl(folder: Path) -> None:
    from stable_baselines3.common.env_checker import check_env

    from pixio_robot.envs.registry import make

    env = make("toy/reach", observe=("rgb", "proprio"), render="fast", horizon=3)
    check_env(env)
    env.close()


def _robomimic(folder: Path) -> None:
    from pixio_robot.encoders.torchvision_guard import declare_missing_operators

    declare_missing_operators()
    from robomimic.algo import algo_name_to_factory_func
    from robomimic.config import config_factory

    assert algo_name_to_factory_func("bc") and config_factory("bc").algo_name == "bc"


def _hf(folder: Path) -> None:
    from pixio_robot.encoders.load import export_transformers, load_encoder
    from pixio_robot.encoders.pixio import PixioEncoder
    from pixio_robot.encoders.torchvision_guard import declare_missing_operators

    declare_missing_operators()
    from transformers import AutoModel

    encoder = PixioEncoder(32, 2, 2).eval()
    export_transformers(encoder, folder / "model")
    pixels = torch.randn(1, 3, 256, 256)
    with torch.inference_mode():
        theirs = AutoModel.from_pretrained(folder / "model").eval()(pixels).last_hidden_state[:, :8]
        assert torch.allclose(theirs, encoder(pixels).cls, atol=1e-5)
        assert torch.allclose(theirs, load_encoder(folder / "model")(pixels).cls, atol=1e-5)


def _timm(folder: Path) -> None:
    from pixio_robot.encoders.load import load_encoder

    encoder = load_encoder("random:timm:vit_tiny_patch16_224")
    height, width = encoder.preprocessing.size
    tokens = encoder(torch.zeros(1, 3, height, width))
    assert tokens.cls.shape == (1, 1, 192) and tokens.patches.shape == (1, 196, 192)


def _realsense(folder: Path) -> None:
    from pixio_robot.cameras.drivers.realsense_frames import realsense_library

    device = realsense_library().software_device()
    assert device.add_sensor("Depth").get_stream_profiles() is not None


def _oak(folder: Path) -> None:
    """The library is there, and without a camera the driver says so."""
    from pixio_robot.cameras.registry import find_camera
    from pixio_robot.errors import CameraError

    with pytest.raises(CameraError, match="no Luxonis camera"):
        find_camera("oak:127.0.0.9").open()


def _export(folder: Path) -> None:
    import onnxruntime

    class Double(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    torch.onnx.export(
        Double(), (torch.ones(2, 3),), folder / "double.onnx", dynamo=True, opset_version=20, verbose=False
    )
    session = onnxruntime.InferenceSession(folder / "double.onnx")
    (result,) = session.run(None, {session.get_inputs()[0].name: np.ones((2, 3), np.float32)})
    assert (result == 2).all()


def _openvino(folder: Path) -> None:
    import nncf
    import openvino as ov

    model = ov.convert_model(torch.nn.Linear(3, 2).eval(), example_input=torch.ones(1, 3))
    exact = ov.Core().compile_model(model, "CPU")(np.ones((1, 3), np.float32))[0]
    small = nncf.quantize(model, nncf.Dataset([np.ones((1, 3), np.float32)]), subset_size=1)
    assert np.abs(ov.Core().compile_model(small, "CPU")(np.ones((1, 3), np.float32))[0] - exact).max() < 0.05


def _scores(folder: Path, engine: str) -> Path:
    """Score a shard of drawn images through the command line."""
    import io
    import tarfile

    from PIL import Image

    from pixio_robot.cli import run
    from pixio_robot.pretrain.images.procedural import draw
    from pixio_robot.pretrain.networks import AutoencoderConfig, new_autoencoder, save_autoencoder

    config = AutoencoderConfig(encoder="32x2x2", decoder="32x2x2", patch=8, image_size=64)
    save_autoencoder(
        folder / "model.safetensors", new_autoencoder(config, seed=0), {"mask_ratio": 0.75, "mask_block": 2}
    )
    (folder / "data").mkdir(exist_ok=True)
    with tarfile.open(folder / "data/0.tar", "w") as archive:
        for number in range(8):
            buffer = io.BytesIO()
            Image.fromarray(draw(0, number)).save(buffer, "PNG")
            info = tarfile.TarInfo(f"{number}.png")
            info.size = len(buffer.getvalue())
            archive.addfile(info, io.BytesIO(buffer.getvalue()))
    words = [f"images={folder / 'data'}", f"model={folder / 'model.safetensors'}", f"out={folder / engine}"]
    assert run(["score", *words, f"engine={engine}", "workers=1", "device=cpu"]) == 0
    return folder / engine / "data/0.parquet"


def _curation(folder: Path) -> None:
    from pixio_robot.cli import run

    _scores(folder, "local")
    words = [f"scores={folder / 'local'}", "least_side=0", "entropy=null", f"out={folder / 'curated'}"]
    assert run(["curate", *words]) == 0
    words = ["encoder=32x2x2", "decoder=32x2x2", "batch=2", "steps=2", "val_images=2", "workers=0", "device=cpu"]
    words += [f"images={folder / 'data'}", f"weights={folder / 'curated/weights.parquet'}", f"out={folder / 'run'}"]
    assert run(["pretrain", *words]) == 0


def _remote(folder: Path) -> None:
    from pixio_robot.deploy.manifest import Manifest, TensorSpec
    from pixio_robot.deploy.replay import ReplayPolicy
    from pixio_robot.deploy.serve.client import RemotePolicy
    from pixio_robot.deploy.serve.served import Served
    from pixio_robot.deploy.serve.server import PolicyServer

    action = TensorSpec("action", (1, 2), "float32")
    manifest = Manifest("policy", "replay", "fp32", "", [], [action], action_low=[-1.0] * 2, action_high=[1.0] * 2)
    actions = np.arange(8, dtype=np.float32).reshape(4, 2)
    with (
        PolicyServer(Served(manifest, lambda: ReplayPolicy(actions))) as server,
        RemotePolicy(f"127.0.0.1:{server.port}") as policy,
    ):
        assert policy.act({}).tolist() == [[0.0, 1.0]] and policy.act({}).tolist() == [[2.0, 3.0]]


def _ray(folder: Path) -> None:
    """Actors of Ray Data on this machine score to the same bytes as this process."""
    import ray

    try:
        assert _scores(folder, "ray").read_bytes() == _scores(folder, "local").read_bytes()
    finally:
        ray.shutdown()


def _recordings(folder: Path) -> None:
    from rosbags.rosbag2 import Writer
    from rosbags.typesys import Stores, get_typestore

    from pixio_robot.pretrain.images.sources import open_images

    types = get_typestore(Stores.ROS2_HUMBLE)
    header = types.types["std_msgs/msg/Header"](types.types["builtin_interfaces/msg/Time"](0, 0), "camera")
    image = types.types["sensor_msgs/msg/Image"](header, 2, 3, "rgb8", 0, 9, np.arange(18, dtype=np.uint8))
    with Writer(folder / "bag", version=8) as writer:
        connection = writer.add_connection("/camera/color/image_raw", image.__msgtype__, typestore=types)
        writer.write(connection, 1, types.serialize_cdr(image, image.__msgtype__))
    read = open_images(str(folder / "bag"), folder / "cache").read(0)
    assert isinstance(read, np.ndarray) and np.array_equal(read.ravel(), np.arange(18))


def _slurm(folder: Path) -> None:
    import submitit

    executor = submitit.AutoExecutor(folder=folder, cluster="local")
    executor.update_parameters(timeout_min=1)
    assert executor.submit(abs, -3).result() == 3


def _viz(folder: Path) -> None:
    import rerun

    rerun.init("test", spawn=False)
    rerun.save(str(folder / "log.rrd"))
    rerun.log("image", rerun.Image(np.zeros((4, 4, 3), np.uint8)))
    rerun.disconnect()
    assert (folder / "log.rrd").is_file()


def _wandb(folder: Path) -> None:
    """A pre-training run that logs there too, offline."""
    import os

    from pixio_robot.cli import run

    os.environ["WANDB_MODE"] = "offline"
    words = ["encoder=32x2x2", "decoder=32x2x2", "batch=8", "steps=4", "val_images=8", "workers=0", "wandb=test"]
    assert run(["pretrain", "images=procedural:32", f"out={folder / 'run'}", *words]) == 0
    assert list(folder.rglob("*.wandb"))


def _dev(folder: Path) -> None:
    import subprocess
    import sys

    (folder / "bad.py").write_text("import os\n")
    command = [sys.executable, "-m", "ruff", "check", str(folder / "bad.py")]
    assert "F401" in subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _ros(folder: Path) -> None:
    import rclpy

    rclpy.init()
    node = rclpy.create_node("pixio_test")
    assert node.get_name() == "pixio_test"
    node.destroy_node()
    rclpy.shutdown()


EXERCISES: dict[str, Callable[[Path], None]] = {
    "metaworld": _metaworld,
    "dmc": _dmc,
    "adroit": _adroit,
    "trifinger": _trifinger,
    "rl": _rl,
    "robomimic": _robomimic,
    "hf": _hf,
    "timm": _timm,
    "curation": _curation,
    "recordings": _recordings,
    "realsense": _realsense,
    "oak": _oak,
    "export": _export,
    "openvino": _openvino,
    "remote": _remote,
    "ros": _ros,
    "ray": _ray,
    "slurm": _slurm,
    "viz": _viz,
    "wandb": _wandb,
    "dev": _dev,
}


def test_every_extra_has_an_exercise() -> None:
    assert set(extras()) == set(EXERCISES)


@pytest.mark.parametrize("extra", EXERCISES)
def test_extra(extra: str, tmp_path: Path) -> None:
    from importlib import metadata

    for name in extras()[extra]:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            pytest.skip(f"needs the extra {extra}")
    EXERCISES[extra](tmp_path)
