"""The commands export, verify, serve, latency and stream."""

from dataclasses import dataclass

from ..cameras.settings import CameraSettings
from ..command import Command
from ..settings import MISSING, Device, key
from .settings import BUNDLE_PRECISIONS, TARGETS, Gate


@dataclass
class Export(Gate):
    """Export a policy, or an encoder alone, as one program for a robot, and compare it with the eager one."""

    checkpoint: str | None = key(None, "policy checkpoint, e.g. runs/.../checkpoints/bc/last.safetensors")
    encoder: str | None = key(None, "instead of a checkpoint: an encoder, as load_encoder takes it; tokens come out")
    target: str = key("onnx", f"what runs it: {', '.join(TARGETS)}")
    precision: str = key("fp32", f"arithmetic: {', '.join(BUNDLE_PRECISIONS)}")
    batch: int | None = key(1, "observations a call; null is any number", least=1)
    image_size: int | None = key(None, "side of the images of an encoder [px]; null is its own", least=16)
    calibration: str | None = key(None, "demonstrations or recording whose frames give int8 its ranges; null is demos")
    calibration_frames: int = key(256, "frames of these", least=8)
    device: str = key("cpu", "where an aoti program will run: cpu, cuda")
    gate: bool = key(True, "compare with the eager policy before the bundle is put in place")
    force: bool = key(False, "put a bundle in place that does not pass", free=True)
    out: str | None = key(None, "folder of the bundle; null means runs/export/<digest of the settings>", free=True)
    debug: bool = key(False, "show tracebacks", free=True)


@dataclass
class Verify(Gate):
    """Compare an existing bundle with the eager policy it was exported from; exits with 0 if it passes."""

    bundle: str = key(MISSING, "folder that pixio-robot export wrote")
    checkpoint: str | None = key(None, "policy checkpoint that it was exported from")
    debug: bool = key(False, "show tracebacks", free=True)


@dataclass
class Serve:
    """Serve a policy to robots on this or another machine; give one of bundle, checkpoint and replay."""

    bundle: str | None = key(None, "folder that pixio-robot export wrote")
    checkpoint: str | None = key(None, "policy checkpoint, run by torch")
    allow_unverified: bool = key(False, "serve an int8 bundle that did not pass the gate")
    replay: str | None = key(
        None, "demonstration file: answer with the actions of one of its episodes, without a model"
    )
    episode: int = key(0, "replay: which of its episodes", least=0)
    chunk: int = key(1, "replay: actions in an answer", least=1)
    stride: int = key(1, "replay: control steps between two questions", least=1)
    host: str = key("127.0.0.1", "address to listen on; any but a loopback address needs token_file")
    port: int = key(8770, "port; 0 is any free one", least=0)
    token_file: str | None = key(None, "file whose first line clients must know")
    clients: int = key(4, "clients at a time, each with a history of its own", least=1)
    idle: float = key(300.0, "longest wait for a client's next observation [s]")
    threads: int | None = key(None, "CPU threads; null is the library's choice", least=1)
    device: str = key("auto", "checkpoint: auto, cpu, cuda, mps")
    debug: bool = key(False, "show tracebacks", free=True)


@dataclass
class Latency:
    """Measure how fast bundles and encoders are at batch 1, beside PyTorch, transformers and the machine's limit."""

    bundle: list[str] = key([], "bundles to time, of one encoder")
    encoder: str | None = key(None, "encoder that they are compared with, as load_encoder takes it; null is theirs")
    baselines: list[str] = key(
        ["eager", "compile", "transformers"], "what else is timed: eager, compile, transformers, graph (CUDA graphs)"
    )
    precision: str = key("fp32", "arithmetic of these: fp32, bf16, fp16")
    device: str = key("cpu", "auto, cpu, cuda")
    threads: int = key(1, "CPU threads of each", least=1)
    rounds: int = key(5, "turns of each", least=1)
    calls: int = key(5, "calls a turn", least=1)
    out: str | None = key(None, "run folder; null means runs/latency/<digest of the settings>", free=True)
    debug: bool = key(False, "show tracebacks", free=True)


@dataclass
class Stream(Device, CameraSettings):
    """Run a trained policy on a camera, live, recorded or simulated; tell how long it takes and how old frames are."""

    checkpoint: str = key(MISSING, "policy checkpoint, e.g. runs/.../checkpoints/bc/last.safetensors")
    frames: int = key(200, "control steps", least=1)
    rate: float | None = key(None, "control steps a second; null is as fast as frames come")
    max_age: float | None = key(
        None, "oldest frame to act on [s]; null is 0.1 for a live camera, else every frame in turn"
    )
    max_skew: float | None = key(None, "most that colour and depth may be apart [s]; null is half a frame period")
    real_time: bool = key(False, "play a recording at its own pace, as a live camera")
    zeros: bool = key(False, "give zeros for proprioception that the camera does not know, to time a policy")
    out: str | None = key(None, "file of the actions (.jsonl); null writes none", free=True)


def _stream(command: Stream) -> int:
    from ..policies.runs import run_stream

    moments, table = run_stream(command)
    for name, times in table.items():
        what = {"prepare": "register, crop, resize", "act": "encoder and policy", "age": "frame's age at the action"}
        print(f"{what[name]:<26}" + "  ".join(f"{at} {value:7.1f} ms" for at, value in times.items()))
    stale = sum(each.action is None for each in moments)
    print(f"{command.camera}: {len(moments) - stale} actions, {stale} steps without a frame that was new enough")
    return int(stale == len(moments))


def _export(command: Export) -> int:
    from ..report.tables import print_parity
    from .export.run import run_export

    result = run_export(command)
    if result.parity is not None:
        print_parity(result.parity.as_json())
    if not result.placed:
        print(f"refused: the bundle was not kept, {result.out} says why; force=true would keep it")
        return 1
    state = ", reused" if result.reused else ", not compared with the eager policy" if result.parity is None else ""
    print(f"{result.out}: {command.target} {command.precision}{state}")
    return int(result.parity is not None and not result.parity.passed)


def _verify(command: Verify) -> int:
    from ..report.tables import print_parity
    from .export.run import run_verify

    parity = run_verify(command)
    print_parity(parity.as_json())
    return int(not parity.passed)


def _serve(command: Serve) -> int:
    from .serve.command import new_server

    with new_server(command) as server:
        print(f"{server.card.task or server.card.kind} at {server.host}:{server.port}; stop it with Ctrl-C", flush=True)
        server.wait()
    return 0


def _latency(command: Latency) -> int:
    from .latency.run import run_latency
    from .latency.table import lines

    print("\n".join(lines(*run_latency(command))))
    return 0


COMMANDS = {
    "stream": Command(Stream, _stream),
    "export": Command(Export, _export),
    "verify": Command(Verify, _verify),
    "serve": Command(Serve, _serve),
    "latency": Command(Latency, _latency),
}
