"""What each command does, a function a command: it imports what it needs, calls it, and prints what came of it."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from . import schemas
from .composition import compose, sweep_jobs
from .engine_schemas import EngineSettings
from .errors import BadInput

INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it


def _quickstart(command: schemas.Quickstart) -> int:
    from .policies.quickstart import run_quickstart
    from .report.tables import print_quickstart

    out, result = run_quickstart(command)
    print_quickstart(out, result)
    return 0


def _collect(command: schemas.Collect) -> int:
    from .policies.runs import run_collect

    report = run_collect(command)
    state = "reused" if report.reused else f"recorded in {report.attempts} episodes"
    print(f"{report.path}: {command.demos} + {command.valid} demonstrations of {command.task}, {state}")
    return 0


def _convert(command: schemas.Convert) -> int:
    from .cortexbench.released.convert import run_convert

    report = run_convert(command)
    counts = report.demos
    state = "reused" if report.reused else f"{counts['all']} in all"
    print(f"{report.path}: {counts['train']} + {counts['valid']} demonstrations of {command.task}, {state}")
    return 0


def _render_frames(command: schemas.RenderFrames) -> int:
    from .envs.frames import run_render_frames

    report = run_render_frames(command)
    print(f"{report.folder}: {command.frames} images in {report.shards} shards, {report.reused} of them reused")
    return 0


def _embed(command: schemas.Embed) -> int:
    from .policies.runs import run_embed

    cache = run_embed(command)
    shape = " x ".join(map(str, cache.cls.shape))
    print(f"{cache.folder}: class tokens {shape} float16{', reused' if cache.reused else ''}")
    return 0


def _train_bc(command: schemas.TrainBC) -> int:
    from .policies.runs import run_train_bc

    _, result = run_train_bc(command)
    state = ", reused" if result.reused else ""
    print(f"{result.last}: train loss {result.train_loss:.5f}, validation loss {result.valid_loss:.5f}{state}")
    print(f"evaluate it with: pixio-robot evaluate checkpoint={result.last}")
    return 0


def _train_rl(command: schemas.TrainRL) -> int:
    from .policies.rl.run import run_train_rl
    from .report.tables import print_evaluation

    for each in fields(EngineSettings):
        if getattr(command, each.name) != each.default:
            raise BadInput(f"{each.name}={getattr(command, each.name)} is for the jobs of a sweep; add -m")
    out, last, evaluation = run_train_rl(command)
    print_evaluation(out, evaluation.rows[0], evaluation.summary())
    print(f"evaluate it with: pixio-robot evaluate checkpoint={last}")
    return 0


def _sweep_train_rl(overrides: list[str]) -> int:
    from .policies.rl.sweep import run_sweep

    if hydra := [override for override in overrides if override.startswith("hydra")]:
        raise BadInput(f"{' '.join(hydra)}: sweeps of train_rl take engine=local, ray or slurm, not Hydra's launchers")
    runs, failures = run_sweep([compose("train_rl", job) for job in sweep_jobs(overrides)])
    for run in runs:
        print(f"{run}: {failures.get(run.name, 'trained')}")
    print(f"compare them with: pixio-robot learning_curves runs=[{','.join(map(str, runs))}]")
    return 1 if failures else 0


def _learning_curves(command: schemas.LearningCurves) -> int:
    from .policies.rl.learning_curves import run_learning_curves

    print(run_learning_curves(command))
    return 0


def _evaluate(command: schemas.Evaluate) -> int:
    from .policies.runs import run_evaluate
    from .report.tables import print_evaluation

    out, evaluation = run_evaluate(command)
    print_evaluation(out, evaluation.rows[0], evaluation.summary())
    return 0


def _benchmark(command: schemas.Benchmark) -> int:
    from .cortexbench.runs import run_benchmark, run_plan
    from .report.tables import print_benchmark, print_plan

    if command.plan:
        plan = run_plan(command)
        print_plan(plan.rows, plan.assumptions)
        return 0
    report = run_benchmark(command)
    print_benchmark(report.out, report.result, report.failures)
    return 1 if report.failures else 0


def _pretrain(command: schemas.Pretrain) -> int:
    from .pretrain.runs import run_plan, run_pretrain
    from .report.tables import print_plan
    from .training.distributed import is_first_process

    if command.plan:
        cost = run_plan(command)
        print_plan(cost.rows, cost.assumptions)
        return 0
    out, result = run_pretrain(command)
    if is_first_process():
        loss = result.numbers["valid/loss"]
        encoder = out / "encoder.safetensors"
        print(f"{encoder}: held-out loss {loss:.4f} after {result.position.samples} images")
        print(f"{out / 'report.html'}: curves and reconstructions; load it with encoder={encoder}")
    return 0


def _score(command: schemas.Score) -> int:
    from .pretrain.curation.score_run import run_score

    result = run_score(command)
    reused = f", {result.reused} were there" if result.reused else ""
    lost = f", {result.unreadable} unreadable" if result.unreadable else ""
    print(f"{result.out}: scores of {result.shards} shards{reused}; {result.images} images scored{lost}")
    print(f"weigh them with: pixio-robot curate scores={result.out} images=...")
    return 0


def _curate(command: schemas.Curate) -> int:
    from .pretrain.curation.curate_run import run_curate
    from .report.tables import print_curation

    out, result = run_curate(command)
    print_curation(out, result)
    return 0


def _distill(command: schemas.Distill) -> int:
    from .pretrain.distill_run import run_distill
    from .training.distributed import is_first_process

    out, result = run_distill(command)
    if is_first_process():
        for encoder in result.encoders:
            print(f"{encoder}: load it with encoder={encoder}")
        loss = result.trained.numbers["valid/loss"]
        print(f"{out / 'report.html'}: held-out loss {loss:.4f} after {result.trained.position.samples} images")
    return 0


def _probe(command: schemas.Probe) -> int:
    from .pretrain.probes.runs import run_probe
    from .report.tables import print_probes

    print_probes(*run_probe(command))
    return 0


def _record(command: schemas.Record) -> int:
    from .cameras.runs import run_record

    path, frames, missing = run_record(command)
    lost = f"; the camera left out {missing}" if missing else ""
    print(f"{path}: {frames} frames, lossless{lost}")
    print(f"look at it with: pixio-robot camera_view camera={path}")
    return 0


def _camera_view(command: schemas.CameraView) -> int:
    from .cameras.runs import run_view

    path, frames = run_view(command)
    print(f"{path or 'rerun'}: {frames} frames of {command.camera}")
    return 0


def _camera_check(command: schemas.CameraCheck) -> int:
    from .cameras.check import summary
    from .cameras.runs import run_check

    found = run_check(command)
    for finding in found:
        print(f"{'ok     ' if finding.fine else 'PROBLEM'} {finding.what:<10} {finding.detail}")
    print(f"{command.camera}: {summary(found)}")
    return int(not all(finding.fine for finding in found))


def _calibrate(command: schemas.Calibrate) -> int:
    from .cameras.runs import run_calibrate

    result, eye = run_calibrate(command)
    if result is None:
        side = 1000 * command.square
        print(f"{command.board}: print it so that a square's side is {side:g} mm, and measure it")
        return 0
    known = result.intrinsics
    print(f"focal lengths {known.fx:.2f} and {known.fy:.2f} px, centre ({known.cx:.2f}, {known.cy:.2f})")
    worst = max(result.view_errors)
    print(f"reprojection error {result.error:.3f} px over {len(result.used)} views, {worst:.3f} in the worst one")
    if result.covered < 0.6:
        print(f"corners cover {result.covered:.0%} of the image; hold the board into its corners too")
    if eye is not None:
        x, y, z = eye.camera_pose[:3, 3]
        print(f"camera at ({x:.4f}, {y:.4f}, {z:.4f}) m in the {'gripper' if command.mounting == 'hand' else 'base'}")
        print(f"the views disagree by {eye.turn_error:.2f} degrees and {1000 * eye.shift_error:.1f} mm (median)")
    print(f"{command.out}: written; use it with calibration={command.out}")
    return 0


def _stream(command: schemas.Stream) -> int:
    from .policies.runs import run_stream

    moments, table = run_stream(command)
    for name, times in table.items():
        what = {"prepare": "register, crop, resize", "act": "encoder and policy", "age": "frame's age at the action"}
        print(f"{what[name]:<26}" + "  ".join(f"{at} {value:7.1f} ms" for at, value in times.items()))
    stale = sum(each.action is None for each in moments)
    print(f"{command.camera}: {len(moments) - stale} actions, {stale} steps without a frame that was new enough")
    return int(stale == len(moments))


def _export(command: schemas.Export) -> int:
    from .deploy.export.run import run_export
    from .report.tables import print_parity

    result = run_export(command)
    if result.parity is not None:
        print_parity(result.parity.as_json())
    if not result.placed:
        print(f"refused: the bundle was not kept, {result.out} says why; force=true would keep it")
        return 1
    state = ", reused" if result.reused else ", not compared with the eager policy" if result.parity is None else ""
    print(f"{result.out}: {command.target} {command.precision}{state}")
    return int(result.parity is not None and not result.parity.passed)


def _verify(command: schemas.Verify) -> int:
    from .deploy.export.run import run_verify
    from .report.tables import print_parity

    parity = run_verify(command)
    print_parity(parity.as_json())
    return int(not parity.passed)


def _run(command: schemas.Run) -> int:
    from contextlib import ExitStack

    from .deploy.load import load_policy_source
    from .report.tables import print_run
    from .robots.runs import run_robot

    with ExitStack() as open_until_the_end:
        card, policy, inputs = load_policy_source(command, open_until_the_end)
        report = run_robot(command, card, policy, inputs)
    print_run(report)
    return 3 if report.stopped else INTERRUPTED if report.interrupted else 0


def _serve(command: schemas.Serve) -> int:
    from .deploy.serve.command import new_server

    with new_server(command) as server:
        print(f"{server.card.task or server.card.kind} at {server.host}:{server.port}; stop it with Ctrl-C", flush=True)
        server.wait()
    return 0


def _latency(command: schemas.Latency) -> int:
    from .deploy.latency.run import run_latency
    from .deploy.latency.table import lines

    print("\n".join(lines(*run_latency(command))))
    return 0


def _report(command: schemas.Report) -> int:
    from pathlib import Path

    from .report.page import write_report

    print(write_report(Path(command.run)))
    return 0


def _doctor(command: schemas.Doctor) -> int:
    from .doctor import examine

    return examine(command.system_only)


SWEEPS: dict[str, Callable[[list[str]], int]] = {"train_rl": _sweep_train_rl}  # all others run in this process

BRANCHES: dict[str, Callable[[Any], int]] = {
    "quickstart": _quickstart,
    "collect": _collect,
    "convert": _convert,
    "render_frames": _render_frames,
    "embed": _embed,
    "train_bc": _train_bc,
    "train_rl": _train_rl,
    "learning_curves": _learning_curves,
    "evaluate": _evaluate,
    "benchmark": _benchmark,
    "pretrain": _pretrain,
    "distill": _distill,
    "score": _score,
    "curate": _curate,
    "probe": _probe,
    "record": _record,
    "camera_view": _camera_view,
    "camera_check": _camera_check,
    "calibrate": _calibrate,
    "stream": _stream,
    "run": _run,
    "export": _export,
    "serve": _serve,
    "verify": _verify,
    "latency": _latency,
    "report": _report,
    "doctor": _doctor,
}
