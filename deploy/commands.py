"""The commands export, verify, serve, latency and stream."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..cameras.settings import CameraSettings
from ..command import Command
from ..settings import MISSING, Device, key

if TYPE_CHECKING:
    from pathlib import Path

    from .serve.server import PolicyServer
    from .stream import StreamStep
    from .verify import Comparison

PRECISIONS = ("fp32", "fp16", "bf16", "int8")


@dataclass
class ComparisonSettings:
    """What an exported program is compared with, and on what."""

    demos: str | None = key(None, "demonstration file or recording to compare on, e.g. what the policy was trained on")
    frames: int = key(128, "frames of demos to compare tokens and actions on, in clips evenly spaced", least=8)
    episodes: int = key(100, "closed-loop episodes that it and the eager policy both run; 0 runs none", least=0)
    first_seed: int = key(10_000, "seed of the first of these", least=0)
    envs: int | None = key(None, "environments in parallel; null means twice the cores", least=1, free=True)
    cache: str = key("runs/cache", "folder where the eager policy's episodes are kept for the next bundle", free=True)
    threads: int | None = key(None, "CPU threads of the program; null is the library's choice", least=1, free=True)


@dataclass
class Export(ComparisonSettings):
    """Export a policy, or an encoder alone, as one program for a robot, and compare it with the eager one."""

    checkpoint: str | None = key(None, "policy checkpoint, e.g. runs/.../checkpoints/mlp/last.safetensors")
    encoder: str | None = key(None, "instead of a checkpoint: an encoder, as load_encoder takes it; tokens come out")
    target: str = key("onnx", "what runs it: onnx, openvino, aoti, tensorrt, or another package's target")
    precision: str = key("fp32", f"arithmetic: {', '.join(PRECISIONS)}")
    batch: int | None = key(1, "observations per call; null is any number", least=1)
    image_size: int | None = key(None, "side of the images of an encoder [px]; null is its own", least=16)
    calibration: str | None = key(None, "demonstrations or recording whose frames give int8 its ranges; null is demos")
    calibration_frames: int = key(256, "frames of these", least=8)
    device: str = key("cpu", "where an aoti program will run: cpu, cuda")
    verify: bool = key(True, "compare with the eager policy before the bundle is put in place")
    force: bool = key(False, "put a bundle in place that does not pass", free=True)
    out: str | None = key(None, "folder of the bundle; null means runs/export/<digest of the settings>", free=True)
    debug: bool = key(False, "show tracebacks", free=True)


@dataclass
class Verify(ComparisonSettings):
    """Compare an existing bundle with the eager policy it was exported from; exits with 0 if it passes."""

    bundle: str = key(MISSING, "folder that pixio-robot export wrote")
    checkpoint: str | None = key(None, "policy checkpoint that it was exported from")
    debug: bool = key(False, "show tracebacks", free=True)


@dataclass
class Serve:
    """Serve a policy to robots on this or another machine; give one of bundle, checkpoint and replay."""

    bundle: str | None = key(None, "folder that pixio-robot export wrote")
    checkpoint: str | None = key(None, "policy checkpoint, run by torch")
    allow_unverified: bool = key(False, "serve an int8 bundle that did not pass verification")
    replay: str | None = key(
        None, "demonstration file: answer with the actions of one of its episodes, without a model"
    )
    episode: int = key(0, "replay: which of its episodes", least=0)
    horizon: int = key(1, "replay: actions in a chunk", least=1)
    stride: int = key(1, "replay: control steps between two requests", least=1)
    host: str = key("127.0.0.1", "address to listen on; any but a loopback address needs token_file")
    port: int = key(8770, "port; 0 is any free one", least=0)
    token_file: str | None = key(None, "file whose first line clients must know")
    clients: int = key(4, "clients at a time, each with its own history", least=1)
    idle: float = key(300.0, "longest wait for a client's next observation [s]")
    threads: int | None = key(None, "CPU threads; null is the library's choice", least=1)
    device: str = key("auto", "checkpoint: auto, cpu, cuda, mps")
    debug: bool = key(False, "show tracebacks", free=True)


@dataclass
class Latency:
    """Measure the latency of bundles and encoders at batch 1, against PyTorch, transformers and the hardware limit."""

    bundle: list[str] = key([], "bundles to time, of one encoder")
    encoder: str | None = key(None, "encoder that they are compared with, as load_encoder takes it; null is theirs")
    baselines: list[str] = key(
        ["eager", "compile", "transformers"], "what else is timed: eager, compile, transformers, graph (CUDA graphs)"
    )
    precision: str = key("fp32", "arithmetic of these: fp32, bf16, fp16")
    device: str = key("cpu", "auto, cpu, cuda")
    threads: int = key(1, "CPU threads of each", least=1)
    rounds: int = key(5, "rounds; each program is timed once per round", least=1)
    calls: int = key(5, "calls per round", least=1)
    out: str | None = key(None, "run folder; null means runs/latency/<digest of the settings>", free=True)
    debug: bool = key(False, "show tracebacks", free=True)


@dataclass
class Stream(Device, CameraSettings):
    """Run a trained policy on a camera, live, recorded or simulated, and report latency and frame age."""

    checkpoint: str = key(MISSING, "policy checkpoint, e.g. runs/.../checkpoints/mlp/last.safetensors")
    frames: int = key(200, "control steps", least=1)
    rate: float | None = key(None, "control steps per second; null is as fast as frames come")
    max_age: float | None = key(
        None, "oldest frame to act on [s]; null is 0.1 for a live camera, else every frame in turn"
    )
    max_skew: float | None = key(None, "most that colour and depth may be apart [s]; null is half a frame period")
    real_time: bool = key(False, "play a recording at its own pace, as a live camera")
    cameras: Any = key(None, "further cameras of the policy by feature, e.g. {rgb_wrist: opencv:1}")
    zeros: bool = key(False, "give zeros for proprioception that the camera does not provide, to time a policy")
    out: str | None = key(None, "file of the actions (.jsonl); null writes none", free=True)


def stream_policy(settings: Stream) -> "tuple[list[StreamStep], dict[str, dict[str, float]]]":
    """Run a policy on cameras; return its steps and percentiles of their times [ms]."""
    import json
    import logging
    from contextlib import ExitStack
    from dataclasses import asdict, replace
    from itertools import islice
    from pathlib import Path

    from ..cameras.capture import Capture
    from ..cameras.playback import RealTimePlayback
    from ..cameras.settings import requested_camera
    from ..errors import DataError
    from ..files import replacing
    from ..hardware import choose_device
    from ..policies.loaded import load_policy
    from .stream import StreamTiming, percentiles, stream

    loaded = load_policy(settings.checkpoint)
    if settings.camera.startswith("task:"):  # as it was trained
        sizes = [feature.shape[0] for feature in loaded.spec.observation.values() if feature.kind == "image"]
        render = (loaded.provenance.get("environment") or {}).get("render")
        settings = replace(
            settings, width=settings.width or (sizes[0] if sizes else None), render=settings.render or render
        )
    names, live = {"rgb": settings.camera, **(settings.cameras or {})}, False
    with ExitStack() as opened:
        cameras = {}
        for name, source_name in names.items():
            source = requested_camera(replace(settings, camera=source_name))
            source.open()
            if source.spec.live or settings.real_time:
                live = True
                source = Capture(RealTimePlayback(source) if settings.real_time else source, settings.max_skew)
            cameras[name] = opened.enter_context(source)
        timing = StreamTiming(settings.max_age or (0.1 if live else None), settings.rate)
        stepping = stream(loaded, cameras, choose_device(settings.device), timing, settings.zeros)
        steps = list(islice(stepping, settings.frames))
        faults = "; ".join(each.counters().faults() for each in cameras.values() if isinstance(each, Capture))
    if not steps:
        raise DataError(f"{settings.camera} gave no frame to act on{faults and f'; of its frames {faults}'}")
    if faults:
        logging.getLogger(__name__).warning("of the frames of %s: %s", settings.camera, faults)
    if settings.out is not None:
        with replacing(Path(settings.out)) as temporary:
            rows = [{**asdict(each), "action": None if each.action is None else each.action.tolist()} for each in steps]
            temporary.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return steps, percentiles(steps)


def run_stream(settings: Stream) -> int:
    """Run a policy on cameras and print percentiles of its times."""
    steps, table = stream_policy(settings)
    for name, times in table.items():
        what = {"prepare": "register, crop, resize", "act": "encoder and policy", "age": "frame's age at the action"}
        print(f"{what[name]:<26}" + "  ".join(f"{at} {value:7.1f} ms" for at, value in times.items()))
    stale = sum(each.action is None for each in steps)
    print(f"{settings.camera}: {len(steps) - stale} actions, {stale} steps without a frame that was new enough")
    return int(stale == len(steps))


def run_export(settings: Export) -> int:
    """Export a bundle, and print the comparison."""
    from pathlib import Path

    from ..errors import BadInput, UnknownName, closest
    from ..plugins import find_plugin
    from ..report.tables import print_verification
    from ..run_folder import settings_digest
    from .export.bundle import Calibration, existing_bundle, export_bundle
    from .export.describe import BundleOptions
    from .export.source import ExportSource

    find_plugin("targets", settings.target)
    if settings.precision not in PRECISIONS:
        near = closest(settings.precision, PRECISIONS)
        raise UnknownName(f"no precision {settings.precision!r}{near}; there are: {', '.join(PRECISIONS)}")
    if settings.checkpoint is not None and settings.encoder is None:
        source = ExportSource.of_checkpoint(settings.checkpoint)
    elif settings.encoder is not None and settings.checkpoint is None:
        source = ExportSource.of_encoder(settings.encoder)
    else:
        raise BadInput("export one thing: checkpoint=FILE (a policy), or encoder=NAME (tokens out)")
    digest = settings_digest(settings, source.fingerprint)
    out = Path(settings.out or f"runs/export/{digest}")
    result = existing_bundle(out, digest)
    if result is None:
        result = export_bundle(
            source,
            BundleOptions(settings.target, settings.precision, settings.batch, settings.image_size, settings.device),
            out,
            digest,
            _comparison(settings) if settings.verify else None,
            Calibration(settings.calibration or settings.demos, settings.calibration_frames),
            settings.force,
        )
    if result.verification is not None:
        print_verification(result.verification.as_json())
    if not result.placed:
        print(f"refused: the bundle was not kept; {result.out} holds the comparison; force=true would keep it")
        return 1
    state = ", reused" if result.reused else ", not verified" if result.verification is None else ""
    print(f"{result.out}: {settings.target} {settings.precision}{state}")
    return int(result.verification is not None and not result.verification.passed)


def _comparison(settings: ComparisonSettings) -> "Comparison":
    from pathlib import Path

    from .verify import Comparison

    return Comparison(
        settings.demos,
        settings.frames,
        settings.episodes,
        settings.first_seed,
        settings.envs,
        Path(settings.cache),
        settings.threads,
    )


def run_verify(settings: Verify) -> int:
    """Compare a bundle, and print the comparison."""
    from pathlib import Path

    from ..report.tables import print_verification
    from .verify import verify_bundle

    checkpoint = None if settings.checkpoint is None else Path(settings.checkpoint)
    verification = verify_bundle(Path(settings.bundle), checkpoint, _comparison(settings))
    print_verification(verification.as_json())
    return int(not verification.passed)


def run_serve(settings: Serve) -> int:
    """Serve a policy until interrupted."""
    with new_server(settings) as server:
        what = server.manifest.task or server.manifest.kind
        print(f"{what} at {server.host}:{server.port}; stop it with Ctrl-C", flush=True)
        server.wait()
    return 0


def new_server(settings: Serve) -> "PolicyServer":
    """Return the server that the settings describe, not started.

    Raises:
        BadInput: unless one of bundle, checkpoint and replay is given.
    """
    from pathlib import Path

    from ..errors import BadInput
    from .serve.served import served_bundle, served_checkpoint, served_replay
    from .serve.server import ClientLimits, PolicyServer
    from .serve.token_file import read_token

    given = [name for name in ("bundle", "checkpoint", "replay") if getattr(settings, name) is not None]
    if len(given) != 1:
        raise BadInput(
            f"serve one thing: bundle=FOLDER, checkpoint=FILE or replay=FILE; got {', '.join(given) or 'none'}"
        )
    token = None if settings.token_file is None else read_token(Path(settings.token_file))
    if settings.bundle is not None:
        served = served_bundle(settings.bundle, settings.threads, settings.allow_unverified)
    elif settings.checkpoint is not None:
        served = served_checkpoint(settings.checkpoint, settings.threads, settings.device)
    else:
        served = served_replay(str(settings.replay), settings.episode, settings.horizon, settings.stride)
    limits = ClientLimits(settings.clients, settings.idle)
    return PolicyServer(served, settings.host, settings.port, token, limits)


def run_latency(settings: Latency) -> int:
    """Time programs, and print a table."""
    from .latency.table import lines

    print("\n".join(lines(*measure_latency(settings))))
    return 0


def measure_latency(settings: Latency) -> "tuple[Path, dict[str, Any]]":
    """Time programs; return the run folder and the contents of its ``result.json``."""
    from pathlib import Path

    from ..run_folder import open_run, settings_digest, write_json
    from .latency.run import Timing, plan_timing, time_programs

    timing = Timing(settings.precision, settings.device, settings.threads, settings.rounds, settings.calls)
    plan = plan_timing(settings.bundle, settings.baselines, settings.encoder, timing)
    out = Path(settings.out or f"runs/latency/{settings_digest(settings)}")
    open_run(out, settings)
    result = time_programs(plan, timing)
    write_json(out / "result.json", result)
    return out, result


COMMANDS = {
    "stream": Command(Stream, run_stream),
    "export": Command(Export, run_export),
    "verify": Command(Verify, run_verify),
    "serve": Command(Serve, run_serve),
    "latency": Command(Latency, run_latency),
}
