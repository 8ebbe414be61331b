"""The runtime: needs no torch, allocates no memory per step, and starts its history with each episode."""

import json
import re
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from pixio_robot import cli
from pixio_robot.datasets.dataset import open_dataset
from pixio_robot.deploy.eager import EagerPolicy
from pixio_robot.deploy.manifest import Manifest, check_verified
from pixio_robot.deploy.runtime import RunningPolicy, Runtime, open_program
from pixio_robot.errors import BadInput, CheckpointError

Observation = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def frames(toy_file: Path) -> list[Observation]:
    demos = open_dataset(toy_file)
    images, proprio = next(demos.batches("rgb", 0, 12)), demos.column("proprio")
    return [{"rgb": images[row], "proprio": proprio[row]} for row in range(12)]


@pytest.fixture(scope="module")
def runtime(toy_bundle: Path) -> Runtime:
    return Runtime.load(toy_bundle, threads=1)


def _actions(policy: RunningPolicy, frames: list[Observation]) -> np.ndarray:
    policy.reset()
    return np.stack([policy.act(each) for each in frames])


def test_the_runtime_acts_as_the_eager_policy(
    runtime: Runtime, toy_checkpoint: Path, frames: list[Observation]
) -> None:
    eager = EagerPolicy.load(toy_checkpoint)
    for episode in (frames[:6], frames[4:]):
        expected = _actions(eager, episode)
        assert expected.shape == (len(episode), 1, 3) and expected.dtype == np.float32
        assert np.abs(_actions(runtime, episode) - expected).max() < 1e-3


def test_sessions_share_a_program_and_no_history(runtime: Runtime, frames: list[Observation]) -> None:
    alone = _actions(runtime, frames[:4])
    other = runtime.session()
    runtime.reset()
    mixed = []
    for mine, others in zip(frames[:4], reversed(frames), strict=False):
        mixed.append(runtime.act(mine))
        other.act(others)
    assert np.array_equal(alone, np.stack(mixed))
    assert not np.array_equal(runtime.act(frames[5]), other.act(frames[5])), "the past counts"


def test_returned_actions_are_copies(runtime: Runtime, frames: list[Observation]) -> None:
    runtime.reset()
    first = runtime.act(frames[0])
    kept = first.copy()
    runtime.act(frames[8])
    assert np.array_equal(first, kept)


def test_steps_allocate_no_memory(runtime: Runtime, frames: list[Observation]) -> None:
    _actions(runtime, frames)
    tracemalloc.start()
    try:
        _actions(runtime, frames)
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        for _ in range(20):
            runtime.reset()
            for observation in frames:
                runtime.act(observation)
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 1024, "after 240 steps"
    assert peak - before < 16384, "an observation has 196,620 bytes, and none is made again"


WITHOUT_TORCH = """
import json, sys
import numpy as np

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "cv2", "scipy", "h5py", "hydra", "mujoco", "onnx", "safetensors"):
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Blocked())
import pixio_robot
runtime = pixio_robot.Runtime.load(sys.argv[1], threads=1)
with np.load(sys.argv[2]) as file:
    frames = {key: file[key] for key in file.files}
actions = [runtime.act({key: each[row] for key, each in frames.items()}).tolist() for row in range(len(frames["rgb"]))]
print(json.dumps(actions))
assert "torch" not in sys.modules
"""


def test_the_runtime_needs_no_torch(runtime: Runtime, toy_bundle: Path, frames: list[Observation]) -> None:
    np.savez("frames.npz", **{key: np.stack([each[key] for each in frames[:4]]) for key in frames[0]})
    command = [sys.executable, "-c", WITHOUT_TORCH, str(toy_bundle), "frames.npz"]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    assert np.array_equal(np.array(json.loads(outcome.stdout), np.float32), _actions(runtime, frames[:4]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rgb": None}, "the observation lacks 'rgb': uint8 (256, 256, 3), RGB; it has: proprio"),
        ({"rgb": np.zeros((1, 256, 256, 3), np.uint8)}, "got uint8 (1, 256, 256, 3)"),
        ({"rgb": np.zeros((256, 256, 3), np.float32)}, "'rgb': uint8 (256, 256, 3), RGB is needed; got float32"),
        (
            {"proprio": np.zeros(3)},
            "'proprio': float32 (3,), proprioception, as in training is needed; got float64",
        ),
        ({"proprio": [0.0, 0.0, 0.0]}, "got list"),
    ],
)
def test_wrong_observations_are_refused(
    change: dict[str, object], message: str, runtime: Runtime, frames: list[Observation]
) -> None:
    before = _actions(runtime, frames[:2])
    wrong = {key: value for key, value in {**frames[0], **change}.items() if value is not None}
    with pytest.raises(BadInput) as error:
        runtime.act(wrong)  # type: ignore[arg-type]
    assert message in str(error.value)
    assert np.array_equal(_actions(runtime, frames[:2]), before)
    runtime.reset()
    runtime.act({**frames[0], "depth": np.zeros(1)})  # what is not asked for may be there


def test_damaged_bundles_are_refused(toy_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no bundle"):
        Runtime.load(tmp_path)
    changed = tmp_path / "changed"
    shutil.copytree(toy_bundle, changed)
    with (changed / "program.onnx").open("ab") as file:
        file.write(b" ")
    with pytest.raises(CheckpointError, match=r"program\.onnx is not the file that was exported"):
        Runtime.load(changed)
    manifest = json.loads((changed / "manifest.json").read_text())
    for wrong, message in (
        ({**manifest, "format": "x/9"}, "format 'x/9'"),
        ({"format": manifest["format"]}, "damaged"),
    ):
        (changed / "manifest.json").write_text(json.dumps(wrong))
        with pytest.raises(CheckpointError, match=message):
            Manifest.read(changed)


def test_a_bundle_that_did_not_pass_verification_is_warned_about(
    toy_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    Runtime.load(toy_bundle, threads=1)
    assert not caplog.records
    edited = tmp_path / "edited"
    shutil.copytree(toy_bundle, edited)
    verification = json.loads((edited / "verification.json").read_text())
    manifest = json.loads((edited / "manifest.json").read_text())
    for text, words in (
        (json.dumps({**verification, "passed": False}), "did not pass verification"),
        ("{", "cannot be read"),
        (None, "was never compared"),
    ):
        (edited / "verification.json").unlink(missing_ok=True)
        if text is not None:
            (edited / "verification.json").write_text(text)
        caplog.clear()
        Runtime.load(edited, threads=1)
        assert words in caplog.text
        check_verified(edited, allow_unverified=False)
        (edited / "manifest.json").write_text(json.dumps({**manifest, "precision": "int8"}))
        check_verified(edited, allow_unverified=True)
        for command in (["serve"], ["run", "robot=task:toy/reach"]):
            assert cli.run([*command, f"bundle={edited}"]) == 1
            assert re.search(f"is int8 and .*{words}.*allow_unverified=true", capsys.readouterr().err)
        (edited / "manifest.json").write_text(json.dumps(manifest))


def test_an_encoder_alone_gives_tokens(toy_file: Path, tiny_file: Path, frames: list[Observation]) -> None:
    pytest.importorskip("onnxscript")
    import torch

    from pixio_robot.encoders.load import load_encoder

    words = [f"encoder={tiny_file}", f"demos={toy_file}", "frames=8", "out=tokens", "threads=1"]
    assert cli.run(["export", *words]) == 0
    runtime, backbone = Runtime.load("tokens", threads=1), load_encoder(str(tiny_file))
    tokens = runtime.encode(frames[0]["rgb"])
    with torch.inference_mode():
        expected = backbone(backbone.preprocess(torch.from_numpy(frames[0]["rgb"][None])))
    assert np.abs(tokens["cls"] - expected.cls[0].numpy()).max() < 1e-4
    assert np.abs(tokens["patches"] - expected.patches[0].numpy()).max() < 1e-4
    with pytest.raises(BadInput, match="an encoder alone"):
        runtime.act(frames[0])


@pytest.mark.parametrize("target", ["onnx", "openvino", pytest.param("aoti", marks=pytest.mark.slow)])
def test_an_open_batch_takes_any_number(
    target: str, toy_file: Path, tiny_file: Path, frames: list[Observation]
) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip({"onnx": "onnxruntime", "openvino": "openvino", "aoti": "torch"}[target])
    import torch

    from pixio_robot.encoders.load import load_encoder

    words = [f"encoder={tiny_file}", f"demos={toy_file}", f"target={target}", "batch=null", "frames=8", "out=tokens"]
    assert cli.run(["export", *words, "threads=1"]) == 0
    manifest, backbone = Manifest.read(Path("tokens")), load_encoder(str(tiny_file))
    program = open_program(manifest, Path("tokens"), threads=1)
    for rows in (1, 3):
        images = np.stack([frame["rgb"] for frame in frames[:rows]])
        outputs = {tensor.name: np.zeros((rows, *tensor.shape), tensor.dtype) for tensor in manifest.outputs}
        program.bind({"rgb": images}, outputs).run()
        with torch.inference_mode():
            expected = backbone(backbone.preprocess(torch.from_numpy(images)))
        assert np.abs(outputs["cls"] - expected.cls.numpy()).max() < 1e-3
