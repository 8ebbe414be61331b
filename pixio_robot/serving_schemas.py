"""The keys of the commands that serve a policy to robots and measure how fast programs are."""

from dataclasses import dataclass

from .keys import key


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
