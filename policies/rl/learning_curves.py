"""Learning curves over seeds: runs that differ only in their seed become one curve with an interval."""

import json
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

from ...errors import BadInput, DataError
from ...files import replacing
from ...metrics import interquartile_mean
from ...report.page import write_report
from ...run_folder import read_json, write_json

_VALUES = ("eval/score", "eval/success", "eval/return")
Curve = dict[int, dict[str, float]]  # from environment steps to the evaluation there


def write_learning_curves(runs: list[Path], out: Path, free: Set[str]) -> Path:
    """Write metrics and a report of the runs' curves into a folder; return the report.

    Args:
        runs: run folders of train_rl.
        free: names of settings that may differ between runs of one curve.

    Raises:
        BadInput: if a run is named twice, or two runs of a curve have the same seed.
        DataError: if a folder is not of train_rl, or runs of a curve have no evaluation at the same step.
    """
    groups = _groups(runs, free)
    rows, table = [], []
    for label, curves in groups.items():
        shared = sorted(set.intersection(*(set(curve) for curve in curves)))
        if not shared:
            raise DataError(f"the runs of {label} have no evaluation at the same step; train them with one eval_every=")
        for step in shared:
            row: dict[str, Any] = {"policy": label, "step": step}
            for tag in _VALUES:
                mean = interquartile_mean(curve[step][tag] for curve in curves)
                row |= {tag: mean.value, f"{tag}_low": mean.low, f"{tag}_high": mean.high}
            rows.append(row)
        last = {tag: interquartile_mean(curve[shared[-1]][tag] for curve in curves) for tag in _VALUES}
        table.append({"runs": label, "seeds": len(curves), "steps": shared[-1], **{k: str(v) for k, v in last.items()}})
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / "metrics.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
    notes = [
        "Lines are interquartile means over seeds; bands their 95 % bootstrap intervals, wide where seeds are few."
    ]
    write_json(out / "result.json", {"title": "Learning curves", "notes": notes, "tables": {"At the end": table}})
    return write_report(out)


def _groups(runs: list[Path], free: Set[str]) -> dict[str, list[Curve]]:
    """Return curves by the settings that distinguish their runs from those of other curves."""
    if len(set(runs)) != len(runs) or not runs:
        raise BadInput(f"runs={[str(run) for run in runs]} must name each run folder once, and at least one")
    settings = [_settings(run, free) for run in runs]
    differing = [key for key in settings[0] if key != "seed" and len({str(each.get(key)) for each in settings}) > 1]
    groups: dict[str, list[Curve]] = {}
    seeds: dict[str, set[int]] = {}
    for run, each in zip(runs, settings, strict=True):
        label = ", ".join(f"{key}={each.get(key)}" for key in differing) or str(each["task"])
        if each["seed"] in seeds.setdefault(label, set()):
            raise BadInput(f"{run} is a second run of seed {each['seed']} with the same settings ({label})")
        seeds[label].add(each["seed"])
        groups.setdefault(label, []).append(_curve(run, str(each["algorithm.name"])))
    return groups


def _settings(run: Path, free: Set[str]) -> dict[str, Any]:
    """Return a run's settings by dotted key, without those that are free to change."""
    from omegaconf import OmegaConf

    if read_json(run / "identity.json").get("command") != "TrainRL":
        raise DataError(f"{run} is not a run folder of train_rl")
    values = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    if not isinstance(values, dict):
        raise DataError(f"{run / 'config.yaml'} holds no settings")
    return dict(_flat({str(key): value for key, value in values.items() if key not in free}, ""))


def _flat(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _curve(run: Path, policy: str) -> Curve:
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True) if (run / "metrics.jsonl").is_file() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return {int(row["step"]): row for row in rows if row["policy"] == policy and _VALUES[0] in row}
