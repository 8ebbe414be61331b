"""Export: the program acts as the eager policy for all kinds of observations, and the bundle describes itself."""

import importlib.util
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from pixio_robot import cli
from pixio_robot.cameras.camera import CameraSpec
from pixio_robot.datasets.dataset import Feature, open_dataset
from pixio_robot.deploy.eager import EagerPolicy, eager_policies
from pixio_robot.deploy.export.describe import control_of
from pixio_robot.deploy.export.pixels import DepthImages, Pixels, SmallDepth, SmallImages
from pixio_robot.deploy.export.precision import to_half
from pixio_robot.deploy.export.program import EncoderProgram, PolicyProgram, program_of
from pixio_robot.deploy.manifest import STARTS, Manifest
from pixio_robot.deploy.runtime import Runtime
from pixio_robot.deploy.targets.onnx import in_blocks, quantise_onnx, write_onnx
from pixio_robot.depth.encoding import depth_images, small_depth
from pixio_robot.encoders.load import Backbone
from pixio_robot.encoders.preprocessing import Preprocessing, preprocess
from pixio_robot.envs.registry import TaskSpec
from pixio_robot.errors import BadInput
from pixio_robot.policies.build import PolicyDesign, build_policy
from pixio_robot.policies.commands import TrainBC, train_bc
from pixio_robot.policies.loaded import LoadedPolicy, load_policy
from pixio_robot.policies.mlp import MlpConfig
from pixio_robot.policies.pixel_network import downsample
from pixio_robot.policies.settings import ObservationSettings, TrainingSettings
from pixio_robot.robots.fit import check_fit
from pixio_robot.robots.robot import RobotRequest
from pixio_robot.robots.simulated import TaskRobot

CPU = torch.device("cpu")
SIZE = 64


FEATURES = {
    **{key: Feature("image", (SIZE, SIZE, 3), "uint8") for key in ("rgb", "rgb_wrist")},
    "depth": Feature("depth", (SIZE, SIZE)),
    **{key: Feature("vector", (5,)) for key in ("proprio", "state")},
    "action": Feature("vector", (3,)),
}


def _policy(
    encoder: Backbone | str,
    cameras: tuple[str, ...] = ("rgb",),
    config: MlpConfig = MlpConfig(),
    **observation: Any,
) -> LoadedPolicy:
    """An untrained policy whose numbers are all in play: batch statistics away from 0 and 1, actions within limits.

    Args:
        encoder: an encoder, or the name of a baseline.
        observation: for `ObservationSettings`.
    """
    name, backbone = (encoder, None) if isinstance(encoder, str) else (encoder.name, encoder)
    config = replace(config, layers=[16], output_init_scale=0.5)
    design = PolicyDesign(name, config, ObservationSettings(**observation))
    model = build_policy(design, FEATURES, cameras, backbone, seed=0).eval()
    generator = torch.Generator().manual_seed(0)
    for buffer_name, buffer in model.named_buffers():
        if "running" in buffer_name:
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    request = TaskSpec("toy/reach", observe=("rgb", "proprio"), image_size=SIZE, render="fast")
    return LoadedPolicy(model, {"task": "toy/reach", "environment": asdict(request)}, {}, 0)


def _episode(steps: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    depth = rng.uniform(0.1, 5, (steps, SIZE, SIZE)).astype(np.float32)
    depth[rng.random(depth.shape) < 0.2] = 0
    whole = {key: rng.integers(0, 256, (steps, SIZE, SIZE, 3), np.uint8) for key in ("rgb", "rgb_wrist")}
    whole |= {"depth": depth, "proprio": rng.normal(size=(steps, 5)).astype(np.float32)}
    whole["state"] = whole["proprio"]
    return [{key: values[step] for key, values in whole.items()} for step in range(steps)]


def _played(program: PolicyProgram, episode: list[dict[str, np.ndarray]]) -> np.ndarray:
    """Act as `Runtime` does, with torch: what a call gives of this frame goes into the next as history."""
    kept: dict[str, torch.Tensor] = {}
    actions = []
    for step, observation in enumerate(episode):
        values = []
        for tensor in program.inputs:
            if tensor.name in observation:
                values.append(torch.from_numpy(observation[tensor.name])[None])
            elif tensor.name == STARTS:
                values.append(torch.tensor([step == 0]))
            else:
                values.append(kept.get(tensor.name, torch.full((1, *tensor.shape), torch.nan)))
        action, *latest = program(*values)
        for memory, value in zip(program.memory, latest, strict=True):
            past = kept.get(memory.history.name, value[:, None].expand(-1, memory.frames - 1, *value.shape[1:]))
            kept[memory.history.name] = torch.cat([past, value[:, None]], dim=1)[:, 1:]
        actions.append(action[0, 0].numpy())
    return np.stack(actions)


@pytest.mark.parametrize(
    ("encoder", "cameras", "config", "observation"),
    [
        ("tiny", ("rgb",), dict(fusion="mean"), {}),
        ("tiny", ("rgb",), dict(fusion="concat"), dict(steps=1, proprio=False)),
        ("tiny", ("rgb",), dict(fusion="first", frames="stack"), dict(steps=2, normed=False)),
        ("tiny", ("rgb", "rgb_wrist"), dict(fusion="attention"), {}),
        ("tiny", ("rgb",), dict(fusion="spatial", frames="stack"), {}),
        ("tiny", ("rgb",), dict(fusion="mean"), dict(depth="channels", depth_code="colours")),
        ("tiny", ("rgb",), dict(fusion="mean"), dict(depth="late", depth_code="log")),
        ("none", (), {}, {}),
        ("none", ("rgb",), {}, dict(depth="late")),
        ("cnn", ("rgb",), {}, {}),
        ("cnn", ("rgb", "rgb_wrist"), {}, {}),
        ("state", (), {}, {}),
    ],
)
def test_a_program_acts_as_the_eager_policy(
    encoder: str, cameras: tuple[str, ...], config: dict[str, Any], observation: dict[str, Any], tiny: Backbone
) -> None:
    loaded = _policy(tiny if encoder == "tiny" else encoder, cameras, MlpConfig(**config), **observation)
    episode = _episode(4)
    eager = EagerPolicy(loaded)
    expected = np.stack([eager.act(observation)[0] for observation in episode])
    with torch.inference_mode():
        played = _played(program_of(loaded), episode)
    assert np.ptp(expected, axis=0).min() > 1e-3, "the policy must react, or nothing is compared"
    assert np.abs(played - expected).max() < 2e-3 * np.ptp(expected)


@pytest.mark.parametrize(
    ("size", "preprocessing"),
    [
        ((64, 64), Preprocessing(size=(64, 64))),
        ((64, 64), Preprocessing(size=(96, 96))),
        ((100, 100), Preprocessing(size=(64, 48), interpolation="bilinear")),
        ((80, 120), Preprocessing(size=(64, 64), resize="crop", shorter=72)),
    ],
)
def test_pixels_are_those_of_preprocess(size: tuple[int, int], preprocessing: Preprocessing) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, *size, 3), dtype=torch.uint8, generator=generator)
    difference = (Pixels(preprocessing, size)(images) - preprocess(images, preprocessing)).abs()
    level = 1 / 255 / min(preprocessing.std)
    assert difference.max() < 1.01 * level, "sums in another order may round to the next grey level"
    assert (difference > 1e-4).float().mean() < 1e-3, "and seldom do"


@pytest.mark.parametrize("code", ["inverse", "log", "metres", "colours"])
def test_exported_depth_encoding_equals_training(code: str) -> None:
    depth = np.stack([each["depth"] for each in _episode(2)])
    depth[0, :8] = 1.0
    images = DepthImages(code, 0.25, 4.0)(torch.from_numpy(depth)).numpy()
    difference = np.abs(images - depth_images(depth, code, 0.25, 4.0))
    assert (difference > 0).mean() < 1e-3 and (code == "colours" or difference.max() <= 1)
    if code != "colours":
        small = SmallDepth((SIZE, SIZE), 24, code, 0.25, 4.0)(torch.from_numpy(depth)).numpy()
        expected = small_depth(depth, (24, 24), code, 0.25, 4.0)
        known = np.minimum(expected[..., 1], small[..., 1]) > 128  # at half a validity either side of it is right
        assert np.abs(small - expected)[known].max() <= 1 and np.abs(small - expected)[..., 1].max() <= 1


@pytest.mark.parametrize("size", [64, 128, 100])
def test_small_images_are_area_means(size: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8)
    small = SmallImages((size, size), 64)(torch.from_numpy(images)).numpy()
    assert np.abs(small - downsample(images)).max() <= 1 and (small == downsample(images)).mean() > 0.7


def _types(path: Path) -> tuple[Any, dict[str, int]]:
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load(str(path)), strict_mode=True, data_prop=True)
    graph = model.graph
    known = {each.name: each.type.tensor_type.elem_type for each in [*graph.input, *graph.output, *graph.value_info]}
    return model, known | {each.name: each.data_type for each in graph.initializer}


@pytest.mark.parametrize("precision", [pytest.param("fp32", marks=pytest.mark.slow), "fp16"])
def test_types_are_written_into_the_graph(precision: str, tiny: Backbone, tmp_path: Path) -> None:
    """What TensorRT needs: uint8 is cast and nothing else; in half precision products are half, norms are not."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    program = program_of(_policy(tiny, config=MlpConfig(fusion="attention")))
    if precision == "fp16":
        to_half(program, precision)
    (name,) = write_onnx(program, tmp_path / "program.onnx", None)
    model, types = _types(tmp_path / name)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 20)]
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    for node in model.graph.node:
        if "rgb" in node.input:
            assert node.op_type in ("Cast", "Shape"), "of an image only the open batch's size is asked, besides a cast"
        if node.op_type == "LayerNormalization":
            assert {types[each] for each in node.input} == {single}
        if node.op_type in ("MatMul", "Gemm", "Conv") and in_blocks(node):
            assert {types[each] for each in node.input} == {half if precision == "fp16" else single}
    assert {types[each.name] for each in model.graph.output} == {single}
    assert not {"Resize", "BatchNormalization"} & {node.op_type for node in model.graph.node}

    import onnxruntime

    session = onnxruntime.InferenceSession(str(tmp_path / name))
    feed = {tensor.name: value.numpy() for tensor, value in zip(program.inputs, program.example(3), strict=True)}
    together = session.run(None, feed)[0]
    alone = [session.run(None, {key: value[row : row + 1] for key, value in feed.items()})[0] for row in range(3)]
    assert np.abs(together - np.concatenate(alone)).max() < 1e-3, "any batch, and rows do not mix"
    assert np.abs(together - program(*program.example(3))[0].numpy()).max() < 1e-2


def test_int8_for_tensorrt_is_symmetric(tiny: Backbone, tmp_path: Path) -> None:
    """It takes no zero point but 0, and no int32 that is scaled for a bias."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    program = EncoderProgram(tiny, SIZE).eval()
    write_onnx(program, tmp_path / "fp32.onnx", 1)
    inputs = [{"rgb": each["rgb"][None]} for each in _episode(4)]
    quantise_onnx(tmp_path / "fp32.onnx", tmp_path / "int8.onnx", inputs, symmetric=True)
    model = onnx.load(str(tmp_path / "int8.onnx"))
    values = {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}
    pairs = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pairs) > 8 and all(not values[node.input[2]].any() for node in pairs if len(node.input) > 2)
    scaled = [values[node.input[0]] for node in pairs if node.input[0] in values and node.op_type[0] == "D"]
    assert scaled and {each.dtype for each in scaled} == {np.dtype(np.int8)}


def test_a_bundle_is_complete_reused_and_not_overwritten(
    toy_bundle: Path, toy_checkpoint: Path, toy_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = Manifest.read(toy_bundle)
    assert (manifest.kind, manifest.task, manifest.horizon, manifest.actions, manifest.batch) == (
        "policy",
        "toy/reach",
        1,
        3,
        1,
    )
    assert manifest.control_period == pytest.approx(0.05) and manifest.action_low == [-1.0] * 3
    assert manifest.action_names == ["x", "y", "z"] and manifest.action_meanings == ["set point + 0.02 a m"] * 3
    assert [(each.name, each.shape) for each in manifest.observation] == [("rgb", (256, 256, 3)), ("proprio", (3,))]
    assert manifest.memory[0].frames == 3 and json.loads((toy_bundle / "verification.json").read_text())["passed"]
    words = [f"checkpoint={toy_checkpoint}", f"demos={toy_file}", "frames=16", "episodes=0", f"out={toy_bundle}"]
    assert cli.run(["export", *words]) == 0 and "reused" in capsys.readouterr().out
    assert cli.run(["export", *words, "precision=fp16"]) == 1
    assert "another bundle (onnx, fp32)" in capsys.readouterr().err
    assert not [each for each in toy_bundle.parent.iterdir() if each.name != "toy"], "nothing half-written is left"


def test_a_policy_trained_on_a_robot_recording_keeps_axes_and_rate(
    toy_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its task is no simulation, so the recording is asked."""
    demos = tmp_path / "arm.hdf5"
    shutil.copy(toy_file, demos)
    with h5py.File(demos, "r+") as file:
        known = json.loads(file["data"].attrs["env_args"])
        known["robot"] = {"name": "ros:arm", "axes": ["base", "elbow", "wrist"], "control_hz": 12.5}
        known["robot"] |= {"action_low": [-2.5, 0.0, -1.0], "action_high": [2.5, 2.0, 1.0]}
        known["env_name"] = known["env_kwargs"]["task"] = "ros:arm"
        file["data"].attrs["env_args"] = json.dumps(known)
    policy, training = MlpConfig(layers=[8]), TrainingSettings(batch=64, epochs=1)
    command = TrainBC(demos=str(demos), encoder="none", policy=policy, training=training, device="cpu", out="robot")
    checkpoint = train_bc(command)[1].last
    manifest, _, _ = eager_policies(str(checkpoint), CPU)
    assert (manifest.task, manifest.control_period, manifest.action_names) == (
        "ros:arm",
        0.08,
        ["base", "elbow", "wrist"],
    )
    assert (manifest.action_low, manifest.action_high) == ([-2.5, 0.0, -1.0], [2.5, 2.0, 1.0])
    toy = TaskRobot("toy/reach", RobotRequest(stepped=True))
    with toy, pytest.raises(BadInput, match="actions are base, elbow, wrist, task:toy/reach takes x, y, z"):
        check_fit(manifest, toy.spec, {"rgb": CameraSpec("cam", "test", True, (64, 64), None, 30.0)}, 12.5)
    assert cli.run(["export", f"checkpoint={checkpoint}", f"demos={demos}"]) == 1
    assert "ros:arm cannot be simulated" in capsys.readouterr().err
    loaded = load_policy(checkpoint)
    loaded.provenance["robot"] = None  # recorded by an older version
    assert control_of(loaded) == {"control_period": None, "action_names": None, "action_meanings": None}


@pytest.mark.parametrize("target", ["openvino", pytest.param("aoti", marks=pytest.mark.slow)])
def test_other_targets_act_as_the_eager_policy(target: str, toy_checkpoint: Path, toy_file: Path) -> None:
    if target == "openvino":
        pytest.importorskip("openvino")
    words = [f"checkpoint={toy_checkpoint}", f"demos={toy_file}", f"target={target}", "frames=16", "episodes=0"]
    assert cli.run(["export", *words, "threads=1", "out=bundle"]) == 0
    runtime, eager = Runtime.load("bundle", threads=1), EagerPolicy.load(toy_checkpoint)
    for observation in _recorded(toy_file, 5):
        assert np.abs(runtime.act(observation) - eager.act(observation)).max() < 1e-2


def _recorded(file: Path, frames: int) -> list[dict[str, np.ndarray]]:
    demos = open_dataset(file)
    images, proprio = next(demos.batches("rgb", 0, frames)), demos.column("proprio")
    return [{"rgb": images[row], "proprio": proprio[row]} for row in range(frames)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "export one thing"),
        (["checkpoint=CHECKPOINT", "encoder=random:ti"], "export one thing"),
        (["checkpoint=CHECKPOINT", "target=onx"], "did you mean 'onnx'"),
        (["checkpoint=CHECKPOINT", "precision=fp8"], "there are: fp32, fp16, bf16, int8"),
        (["checkpoint=CHECKPOINT"], "give demos=FILE"),
        (["checkpoint=CHECKPOINT", "precision=int8", "verify=false"], "int8 takes its ranges from recorded frames"),
        (["checkpoint=CHECKPOINT", "precision=bf16", "verify=false"], "use target=openvino"),
        (
            ["checkpoint=CHECKPOINT", "target=aoti", "precision=int8", "verify=false"],
            "int8 is not supported for AOT",
        ),
        (["checkpoint=CHECKPOINT", "image_size=99", "verify=false"], "trained on 256 px"),
        (["encoder=random:ti", "demos=DEMOS", "image_size=128"], "holds 'rgb' of shape (256, 256, 3)"),
    ],
)
def test_impossible_exports_are_refused(
    words: list[str], message: str, toy_checkpoint: Path, toy_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [each.replace("CHECKPOINT", str(toy_checkpoint)).replace("DEMOS", str(toy_file)) for each in words]
    assert cli.run(["export", *words]) == 1
    assert message in capsys.readouterr().err and not Path("runs").exists()


def test_missing_tensorrt_is_explained(toy_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec("tensorrt"):
        pytest.skip("TensorRT is installed")
    assert cli.run(["export", f"checkpoint={toy_checkpoint}", "target=tensorrt", "verify=false"]) == 1
    assert "run this command on the machine that will use it" in capsys.readouterr().err


def test_policies_without_an_encoder_stay_in_single_precision() -> None:
    with pytest.raises(BadInput, match="this policy has none"):
        to_half(program_of(_policy("cnn")), "fp16")
