"""Latency: FLOPs equal torch's count, programs are timed in rounds, and targets are judged as stated."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pixio_robot import cli
from pixio_robot.deploy.commands import Latency, measure_latency
from pixio_robot.deploy.latency.contenders import Spec, opened
from pixio_robot.deploy.latency.floor import Products, Rates, multiplications
from pixio_robot.deploy.latency.run import speedups, targets
from pixio_robot.deploy.latency.table import lines
from pixio_robot.deploy.latency.workers import Call, time_contender
from pixio_robot.encoders.pixio import PixioEncoder
from pixio_robot.errors import BadInput, PixioError, UnknownName, WorkerLost
from pixio_robot.jobs.workers import Worker


@pytest.mark.parametrize("size", [(64, 64), (96, 64)])
def test_products_are_those_that_torch_counts(size: tuple[int, int]) -> None:
    encoder = PixioEncoder(dim=32, depth=3, heads=2)
    encoder.initialise(torch.Generator().manual_seed(0))
    products = Products.of(encoder.eval(), size)
    with FlopCounterMode(display=False) as counter, torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
        encoder(torch.zeros(1, 3, *size))
    assert products.flops == counter.get_total_flops()
    assert products.tokens == size[0] * size[1] // 256 + 8


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_all_matrix_products_agree(precision: str) -> None:
    found = {name: way() for name, way in multiplications(24, 32, 48, precision, "cpu").items()}
    assert len(found) >= (1 if precision == "int8" else 2)
    first, *others = found.values()
    first = torch.as_tensor(first).float()
    assert first.shape == (24, 48) and float(first.abs().max()) > 1
    for other in others:
        torch.testing.assert_close(torch.as_tensor(other).float(), first, rtol=2e-2, atol=0.3)


def test_rates_keep_the_best_of_all_rounds() -> None:
    rates = Rates(Products(24, 64, 2, 16, 16), ("fp32",), "cpu")
    rates.turn(2)
    before = rates.best["fp32"][0]
    rates.turn(2)
    assert rates.best["fp32"][0] >= before > 1e6


def test_speedups_are_ratios_of_medians_of_the_same_round() -> None:
    def rounds(*medians: float) -> list[list[Call]]:
        return [[Call(1.0, each), Call(1.0, each), Call(1.0, 100 * each)] for each in medians]

    assert speedups(rounds(4, 8, 12), rounds(2, 2, 2), "cpu") == [3, 4, 5]
    assert speedups(rounds(4, 8, 12), rounds(2, 2, 2), "cuda") == [1, 1, 1]


def _result(seconds: float, ratio: float, units: list[str]) -> dict[str, Any]:
    eager = {"label": "eager", "kind": "eager", "cpu": {"p50": 0.001}}
    bundles = [
        {"label": label, "kind": "bundle", "cpu": {"p50": each}, "times_as_fast": [0, ratio, 9]}
        for label, each in (("slow", 9.0), ("quick", seconds))
    ]
    return {"rows": [eager, *bundles], "floor": {"bf16": {"seconds": 0.6, "units": units}}}


def test_targets_are_judged_by_the_best_bundle() -> None:
    found = targets(_result(0.7, 4.5, ["avx512_bf16"]), "cpu")
    assert found["best"] == "quick" and found["times_as_fast"]["met"] and found["share_of_bf16_floor"]["met"]
    found = targets(_result(0.9, 3.9, ["avx512_bf16"]), "cpu")
    assert found["times_as_fast"]["met"] is False and found["share_of_bf16_floor"]["met"] is False
    assert targets(_result(0.1, 9, []), "cpu")["share_of_bf16_floor"]["met"] is None


def _sleeping(pipe: Connection, seconds: float) -> None:
    pipe.send(int(os.environ["OMP_NUM_THREADS"]))
    while True:
        calls = pipe.recv()
        time.sleep(seconds)
        pipe.send(calls)


def _dying(pipe: Connection, _: None) -> None:
    os._exit(1)


def _failing(pipe: Connection, _: None) -> None:
    raise ZeroDivisionError


def test_workers_compute_when_it_is_their_turn_and_say_what_went_wrong() -> None:
    with Worker(_sleeping, 0.01, threads=3) as worker:
        assert worker.receive() == 3
        worker.send(5)
        assert worker.receive() == 5
    spec = Spec("eager", "nowhere.safetensors")
    with pytest.raises(PixioError, match="nowhere"), Worker(time_contender, spec, 1) as worker:
        worker.receive()


@pytest.mark.slow
@pytest.mark.parametrize(("job", "message"), [(_dying, "ended"), (_failing, "ZeroDivisionError")])
def test_a_worker_s_end_is_noticed(job: Callable[[Connection, None], None], message: str) -> None:
    with pytest.raises(WorkerLost, match=message), Worker(job, None, 1) as worker:
        worker.receive()


def test_a_bundle_is_timed_without_torch_and_with_its_library_loaded(toy_bundle: Path) -> None:
    code = f"""
import sys
from pixio_robot.deploy.latency.contenders import Spec, import_library, opened
spec = Spec("bundle", {str(toy_bundle)!r})
import_library(spec)
assert "onnxruntime" in sys.modules
opened(spec)[0]()
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_peak_memory_keeps_the_maximum() -> None:
    """In a separate process: this one may have held more before."""
    code = """
from pixio_robot.deploy.latency.workers import peak_memory
before = peak_memory()
block = bytearray(256 * 2**20)
block[::4096] = b"x" * len(block[::4096])
with_it = peak_memory()
del block
assert before > 0 and with_it > before + 128 * 2**20
assert peak_memory() > with_it - 2**20  # the system counts in lots
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_transformers_gives_the_same_tokens(tiny_file: Path) -> None:
    pytest.importorskip("transformers")
    ours, size = opened(Spec("eager", str(tiny_file)))
    theirs, _ = opened(Spec("transformers", str(tiny_file)))
    tokens = torch.cat(ours(), dim=1)
    torch.testing.assert_close(theirs(), tokens, rtol=1e-4, atol=1e-4)
    assert size == sum(each.numel() for each in PixioEncoder(dim=32, depth=2, heads=2).parameters()) * 4


@pytest.mark.slow
def test_a_bundle_is_timed_against_its_encoder(tiny_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert cli.run(["export", f"encoder={tiny_file}", "out=bundle", "verify=false"]) == 0
    command = Latency(bundle=["bundle"], baselines=["eager"], rounds=2, calls=3, out="latency")
    out, result = measure_latency(command)
    assert [row["label"] for row in result["rows"]] == ["eager fp32", "bundle bundle"]
    assert result["encoder"] == str(tiny_file) and (out / "result.json").is_file()
    for row in result["rows"]:
        assert 0 < row["cpu"]["p25"] <= row["cpu"]["p50"] <= row["wall"]["p99"] and row["first"]["wall"] > 0
        assert row["peak_memory"] > 50e6 and 0 < row["share_of_floor"] < 1
    assert result["rows"][0]["times_as_fast"] == [1, 1, 1] and result["rows"][1]["size"] > 100_000
    text = "\n".join(lines(out, result))
    assert "| eager fp32 |" in text and "Best bundle: bundle bundle." in text and "of 4 aimed at" in text


@pytest.mark.parametrize(
    ("keys", "error", "message"),
    [
        ({}, BadInput, "no bundle holds an encoder; give encoder="),
        ({"encoder": "random:ti", "baselines": ["egaer"]}, UnknownName, "did you mean 'eager'"),
        ({"encoder": "random:ti", "precision": "fp8"}, UnknownName, "fp32, bf16, fp16"),
        ({"encoder": "random:ti", "baselines": ["graph"]}, BadInput, "CUDA graphs need device=cuda"),
    ],
)
def test_impossible_timings_are_refused(keys: dict[str, Any], error: type[PixioError], message: str) -> None:
    with pytest.raises(error, match=message):
        measure_latency(Latency(**keys))
