"""The simulated depth sensor: its laws, and that it errs as the real camera it was fitted to does."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import pixio_robot
from pixio_robot.cameras.camera import CameraRequest, CameraSpec
from pixio_robot.cameras.frame import Frame, Intrinsics, metric
from pixio_robot.cameras.recording.writer import RecordingWriter
from pixio_robot.cameras.registry import find_camera
from pixio_robot.envs.contract import check_contract
from pixio_robot.envs.depth_noise import SENSORS, NoisyDepth, depth_sensor, edges
from pixio_robot.envs.registry import installed, make
from pixio_robot.errors import DataError, UnknownName

D435 = SENSORS["d435"]
NOISE_FIT = Path(pixio_robot.__file__).resolve().parent.parent / "benchmarks" / "noise_fit.py"
QUIET = replace(D435, sigma=0.0, edge_share=0.0, hole_share=0.0, margin=0.0)


@pytest.fixture(scope="module")
def noise_fit() -> ModuleType:
    """The tool that fits sensors, which is part of a checkout."""
    spec = importlib.util.spec_from_file_location("noise_fit", NOISE_FIT)
    if not NOISE_FIT.is_file() or spec is None or spec.loader is None:
        pytest.skip("runs in a checkout")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _wall(distance: float, shape: tuple[int, int] = (120, 160)) -> np.ndarray:
    return np.full(shape, distance, np.float32)


@pytest.mark.parametrize("distance", [0.5, 1.0, 2.0, 4.0])
def test_errors_are_uniform_in_disparity(distance: float) -> None:
    """Noise and steps grow with the square of the distance: sigma z^2 / (f b)."""
    camera = NoisyDepth(replace(D435, edge_share=1e-9, hole_share=1e-9), D435.focal, 0)
    seen = np.stack([camera.measure(_wall(distance)) for _ in range(20)])
    valid = seen > 0
    error = (seen - distance)[valid]
    expected = np.hypot(D435.sigma, D435.step / 12**0.5) * distance**2 / (D435.focal * D435.baseline)
    assert error.std() == pytest.approx(expected, rel=0.12) and abs(error.mean()) < 0.15 * expected
    steps = np.diff(np.unique(seen[valid]))
    assert np.median(steps) == pytest.approx(
        max(0.001, D435.step * distance**2 / (D435.focal * D435.baseline)), rel=0.25
    )


def test_holes_are_zero_persist_and_flicker() -> None:
    camera = NoisyDepth(replace(D435, hole_share=0.1), D435.focal, 1)
    seen = np.stack([camera.measure(_wall(1.2)) for _ in range(12)])
    inner = seen[:, :, 40:] == 0
    assert inner.mean() == pytest.approx(0.1, abs=0.03)
    changed = (inner[1:] != inner[:-1]).mean()
    assert 0.005 < changed < 0.12, "they flicker, but are no new holes in each frame (which would be 0.18)"
    still = NoisyDepth(replace(D435, hole_share=0.1, flicker=0.0), D435.focal, 1)
    frames = [still.measure(_wall(1.2)) == 0 for _ in range(3)]
    assert np.array_equal(frames[0], frames[2])


def test_the_left_border_and_occlusions_are_invalid() -> None:
    exact = _wall(2.0)
    exact[40:80, 80:120] = 0.5
    seen = NoisyDepth(QUIET, D435.focal, 0).measure(exact)
    near, far = (D435.focal * D435.baseline / z for z in (0.5, 2.0))
    assert (seen[:, : int(far)] == 0).all() and (seen[:, int(far) + 2 : 40] > 0).all()
    shadow = int(near - far)
    assert shadow == 29 and (seen[50:70, 80 - shadow + 1 : 79] == 0).all() and (seen[50:70, 82:118] > 0).all()
    assert (seen[:30, 40:] > 0).all(), "nothing is hidden where nothing stands before it"


def test_background_and_distances_out_of_range_are_invalid() -> None:
    exact = np.array([[0.0, 0.1, 1.0, 20.0]] * 40, np.float32).repeat(8, 1)
    seen = NoisyDepth(replace(QUIET, focal=10.0, baseline=0.05), 10.0, 0).measure(exact)
    assert (seen[:, :8] == 0).all() and (seen[:, 8:16] == 0).all() and (seen[:, 24:] == 0).all()
    assert not NoisyDepth(D435, 100.0, 0).measure(np.zeros((20, 20), np.float32)).any()
    assert edges(np.zeros((9, 9), np.float32), 2).sum() == 0


def test_a_task_can_use_the_sensor() -> None:
    settings = dict(observe=("rgb", "depth"), image_size=64, render="fast", horizon=5)
    exact, noisy = (make("toy/reach", depth_sensor=name, **settings) for name in ("exact", "d435"))  # type: ignore[arg-type]
    first, again = noisy.reset(seed=3)[0]["depth"], noisy.reset(seed=3)[0]["depth"]
    truth = exact.reset(seed=3)[0]
    assert np.array_equal(first, again), "a function of the start"
    assert np.array_equal(noisy.reset(seed=3)[0]["rgb"], truth["rgb"]), "colour is as it was"
    valid = (first > 0) & (truth["depth"] > 0)
    assert 0.5 < valid.sum() / (truth["depth"] > 0).sum() < 0.999
    error = np.abs(first - truth["depth"])[valid]
    assert 0 < np.median(error) < 0.02 and not first[truth["depth"] == 0].any()
    step = np.zeros(3, np.float32)
    assert not np.array_equal(noisy.step(step)[0]["depth"], first), "noise is new in every frame"
    assert noisy.spec is not None and noisy.spec.kwargs["depth_sensor"] == "d435"
    exact.close()
    noisy.close()
    with find_camera("task:toy/reach", CameraRequest(width=64, render="fast", seed=3, depth_sensor="d435")) as camera:
        assert np.array_equal(camera.read().depth, first)
    with pytest.raises(UnknownName, match="did you mean 'd435'"):
        make("toy/reach", depth_sensor="d436")
    assert depth_sensor("exact") is None
    check_contract("toy/reach")


@pytest.mark.parametrize("task", ["metaworld/hammer", "dmc/reacher_easy", "adroit/pen", "trifinger/reach_cube"])
def test_every_suite_can_use_the_sensor(task: str) -> None:
    if task not in installed():
        pytest.skip(f"needs the extra of {task.split('/')[0]}")
    env = make(task, observe=("rgb", "depth"), image_size=48, render="fast", depth_sensor="d435")
    seen = env.reset(seed=0)[0]["depth"]
    env.close()
    assert np.isfinite(seen).all() and 0.1 < (seen > 0).mean() < 1, "holes and a border without depth, but not only"
    assert np.allclose(seen, np.rint(seen / D435.unit) * D435.unit, atol=1e-6), "in the sensor's steps"


def test_fitting_finds_the_sensor_that_made_the_frames(noise_fit: ModuleType) -> None:
    """Frames of a made-up sensor in a made-up scene: the fit has their figures, whatever it began with."""
    rows, columns = np.mgrid[0:240, 0:320]
    scene = (1.4 + 0.002 * columns + 0.001 * rows).astype(np.float32)
    scene[80:160, 150:230] = 0.9
    truth = replace(D435, sigma=0.06, blob=(4.0, 3.0), margin=18.0, edge_share=0.2, hole_share=0.02, flicker=0.3)
    camera = NoisyDepth(truth, D435.focal, 5)
    frames = np.stack([camera.measure(scene) for _ in range(3)])
    known = Intrinsics(320, 240, D435.focal, D435.focal, 159.5, 119.5)
    found = noise_fit.fit_sensor(frames, known, D435.baseline, D435)
    assert found.sigma == pytest.approx(0.06, rel=0.1) and found.blob == pytest.approx((4.0, 3.0), rel=0.25)
    assert found.margin == pytest.approx(18, abs=4) and found.hole_share == pytest.approx(0.02, rel=0.5)
    with pytest.raises(DataError, match="two frames"):
        noise_fit.noise_figures(frames[:1], known.fx, D435.baseline)


def test_the_tool_fits_a_sensor_to_a_recording(
    noise_fit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = Intrinsics(320, 240, D435.focal, D435.focal, 159.5, 119.5)
    sensor = NoisyDepth(D435, D435.focal, 5)
    with RecordingWriter(Path("still"), CameraSpec("test", "test", False, None, (240, 320), 30.0, 0.001)) as writer:
        for number in range(3):
            depth, valid = metric(np.rint(sensor.measure(_wall(1.5, (240, 320))) * 1000).astype(np.uint16), 0.001)
            frame = Frame(None, depth, valid, None, known, unit=0.001, sensor_time=number / 30, depth_time=number / 30)
            writer.add(frame)
    monkeypatch.setattr("sys.argv", ["noise_fit.py", "still", "--baseline", "0.05"])
    noise_fit.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("recording NoiseFigures(") and lines[1].startswith("fitted    NoiseFigures(")
    assert lines[2].startswith("StereoSensor(focal=390.4, baseline=0.05, step=0.03125")


def test_frames_that_show_no_such_noise_are_refused(noise_fit: ModuleType) -> None:
    known = Intrinsics(160, 120, D435.focal, D435.focal, 79.5, 59.5)
    with pytest.raises(DataError, match="same in all frames"):
        noise_fit.fit_sensor(np.stack([_wall(1.5)] * 2), known, D435.baseline, D435)
    wide, waves = D435.focal * D435.baseline, np.cos(np.arange(160) * np.pi / 8)
    striped = wide / (wide / 1.5 + 0.1 * np.stack([_wall(1.0) * waves, _wall(-1.0) * waves]))
    with pytest.raises(DataError, match=r"8 px across is correlated by -1\.00"):
        noise_fit.fit_sensor(striped.astype(np.float32), known, D435.baseline, D435)
    noisy = NoisyDepth(replace(D435, margin=0.0), D435.focal, 0)
    seen = np.stack([noisy.measure(_wall(1.5)) for _ in range(2)])
    with pytest.raises(DataError, match=r"steps of start\.step=1 px"):
        noise_fit.fit_sensor(seen, known, D435.baseline, replace(D435, step=1))


def test_the_sensor_has_the_errors_of_the_real_camera(noise_fit: ModuleType, real_recording: str) -> None:
    with find_camera(real_recording, CameraRequest(color=False)) as camera:
        frames = list(camera)
    known, depths = frames[0].depth_intrinsics, np.stack([frame.depth for frame in frames if frame.depth is not None])
    assert len(depths) == 2 and known is not None
    real = noise_fit.noise_figures(depths, known.fx, D435.baseline)
    assert real.step == pytest.approx(1 / 32, rel=0.05) and real.invalid == pytest.approx(0.067, abs=0.001)
    for seed in range(3):
        ours = noise_fit.simulated_figures(replace(D435, focal=known.fx), depths, D435.baseline, seed)
        print(f"\nreal {real}\nours {ours}")
        assert ours.step == pytest.approx(real.step, rel=0.05)
        assert ours.sigma == pytest.approx(real.sigma, rel=0.05)
        assert ours.across_1 == pytest.approx(real.across_1, abs=0.02)
        assert ours.across_8 == pytest.approx(real.across_8, abs=0.06)
        assert ours.across_16 == pytest.approx(real.across_16, abs=0.12)
        assert ours.down_8 == pytest.approx(real.down_8, abs=0.08)
        assert ours.invalid == pytest.approx(real.invalid, abs=0.008)
        assert ours.border == pytest.approx(real.border, abs=0.03)
        assert ours.edge == pytest.approx(real.edge, abs=0.05)
        assert ours.inside == pytest.approx(real.inside, abs=0.005)
        assert ours.flicker == pytest.approx(real.flicker, abs=0.004)
