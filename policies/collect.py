"""Collect demonstrations from a task's expert with several workers; an interrupted collection resumes."""

import json
import logging
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from ..datasets.dataset import EpisodeDataset, open_dataset
from ..datasets.writer import (
    Demo,
    EpisodeFacts,
    Provenance,
    Splits,
    demo_outcome,
    disk_key,
    merge_demos,
    write_demo,
)
from ..envs.registry import TaskSpec, check_task, new_task
from ..envs.rendering import check_rendering
from ..envs.rollout import default_width, in_workers
from ..envs.state_actor import expert_of
from ..envs.task import TaskEnv
from ..errors import BadInput, DataError, MissingExtra
from ..files import replacing, sha256_of
from ..progress import stage

log = logging.getLogger(__name__)


@dataclass
class CollectReport:
    """The result of a collection."""

    path: Path
    reused: bool
    attempts: int  # episodes run or found, failures among them
    seconds: dict[str, float]  # rendering, physics and storing, mean over workers [s]


def collect(
    request: TaskSpec,
    demos: int,
    valid: int,
    first_seed: int,
    out: Path,
    workers: int | None = None,
    expert: str | None = None,
) -> CollectReport:
    """Record successful expert episodes into one robomimic file.

    Seeds count up from `first_seed`; the first `demos` successful ones become the train split, the next `valid` the
    valid split, so the result does not depend on the number of workers. `expert` is the file of an expert: a
    policy on the privileged state, or for Adroit a DAPG policy.

    Raises:
        DataError: if `out` holds other demonstrations, or the expert fails too often.
        BadInput: if no demonstration is requested.
    """
    check_task(request.task)
    if demos < 1 or valid < 0:
        raise BadInput(f"demos={demos}, valid={valid}: at least one demonstration is needed, and no negative number")
    wanted = demos + valid
    asked: dict[str, Any] = dict(demos=demos, valid=valid, first_seed=first_seed)
    if expert is not None:
        if not Path(expert).is_file():
            raise DataError(f"no file {expert} for expert=")
        asked["expert"] = sha256_of(Path(expert))
    if out.is_dir():
        raise BadInput(f"out={out} is a folder; give the name of a file, e.g. {out}/demos.hdf5")
    if out.exists():
        _check_same(open_dataset(out), request, asked)
        return CollectReport(out, reused=True, attempts=wanted, seconds={})
    if {"rgb", "depth"} & set(request.observe):
        check_rendering()
    cameras = _try_out(request, expert)
    parts = out.with_name(out.name + ".parts")
    _claim(parts, request)
    workers = workers or default_width()
    seconds: dict[str, float] = {"rendering": 0.0, "physics": 0.0, "storing": 0.0}
    good: list[Path] = []
    attempts = 0
    with stage(f"collect {request.task}", wanted) as bar:
        while len(good) < wanted:
            if attempts > 20 and len(good) * 10 < attempts:
                raise DataError(
                    f"the expert of {request.task} succeeded in {len(good)} of {attempts} episodes; giving up"
                )
            seeds = range(first_seed + attempts, first_seed + attempts + max(wanted - len(good), 2))
            attempts += len(seeds)
            record = partial(_record, request, parts, expert)
            for seed, spent in in_workers(record, seeds, workers):
                for key, value in spent.items():
                    seconds[key] += value / min(workers, wanted)
                path = _part(parts, seed)
                if demo_outcome(path) and len(good) < wanted:
                    good.append(path)
                    bar.advance(1)
    provenance = Provenance(request.task, asdict(request), cameras)
    merge_demos(out, Splits(good[:demos], good[demos:]), provenance, asked)
    shutil.rmtree(parts)
    if attempts > wanted:
        log.warning("the expert failed in %d of %d episodes; they were left out", attempts - wanted, attempts)
    return CollectReport(out, reused=False, attempts=attempts, seconds=seconds)


def has_privileged_state(task: str) -> bool:
    """Return whether a task provides the privileged state; True if its suite's package is not installed.

    Raises:
        UnknownName: for a task that does not exist.
    """
    try:
        with closing(new_task(task)) as made:
            return made.capabilities.privileged_state
    except MissingExtra:  # demonstrations that exist can be reused without it
        return True


def _part(parts: Path, seed: int) -> Path:
    return parts / f"seed_{seed}.hdf5"


def _try_out(request: TaskSpec, expert: str | None) -> tuple[str, ...]:
    """Return the cameras; refuse impossible settings and tasks without an expert before any work."""
    env = replace(request, observe=("proprio",)).make()
    act = expert_of(env, expert)
    env.reset(seed=0)
    act()
    env.close()
    return env.cameras


def _claim(parts: Path, request: TaskSpec) -> None:
    """Make the folder of parts, or accept one left by an interrupted collection with the same settings."""
    for left in parts.glob(".*.tmp"):  # by a worker that was ended while it wrote
        left.unlink()
    settings = parts / "request.json"
    text = json.dumps(asdict(request), sort_keys=True)
    if settings.is_file() and settings.read_text() != text:
        raise DataError(f"{parts} was left by a collection with other settings; delete it or choose another out=")
    with replacing(settings) as temporary:
        temporary.write_text(text)


def _check_same(found: EpisodeDataset, request: TaskSpec, asked: dict[str, Any]) -> None:
    recorded, collection = found.provenance.get("environment"), found.provenance.get("collection")
    wanted = json.loads(json.dumps(asdict(request)))
    if recorded != wanted or collection != asked:
        raise DataError(
            f"{found.source} holds other demonstrations: {collection} of {recorded}; asked for {asked} of "
            f"{wanted}; delete it or choose another out="
        )


def _record(request: TaskSpec, parts: Path, expert: str | None, seed: int) -> dict[str, float]:
    """Run one expert episode in a worker and write its part; return where the time went."""
    path = _part(parts, seed)
    if path.is_file():
        return {}
    env = request.make()
    try:
        demo = _run(env, expert_of(env, expert), seed)
        started = perf_counter()
        write_demo(path, demo)
        return {**env.seconds, "storing": perf_counter() - started}
    finally:
        env.close()


def _run(env: TaskEnv, act: Callable[[], np.ndarray], seed: int) -> Demo:
    observation, info = env.reset(seed=seed)
    cameras = env.calibration()
    seen: dict[str, list[np.ndarray]] = {key: [] for key in observation}
    actions, rewards, success, states = [], [], [], []
    ended = False
    while not ended:
        action = act().astype(np.float32)
        for key, value in observation.items():
            seen[key].append(value)
        states.append(env.task.state())
        actions.append(action)
        observation, reward, terminated, truncated, outcome = env.step(action)
        ended = terminated or truncated
        rewards.append(reward)
        success.append(outcome["success"])
    score = outcome["score"]
    return Demo(
        observations={disk_key(key, env.cameras): np.stack(values) for key, values in seen.items()},
        actions=np.stack(actions),
        rewards=np.array(rewards),
        success=np.array(success),
        states=np.stack(states),
        facts=EpisodeFacts(seed, info["initial_state_hash"], score, score >= env.task.demo_min_score, cameras),
    )
