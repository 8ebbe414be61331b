"""Learning curves over seeds."""

import json
from pathlib import Path

from pixio_robot import cli
from pixio_robot.policies.rl.commands import TrainRL


def _run_folder(folder: Path, seed: int, obs: str, scores: dict[int, float]) -> str:
    from pixio_robot.run_folder import open_run

    open_run(folder, TrainRL(task="toy/reach", obs=obs, seed=seed, out=str(folder)))
    rows = [
        {
            "policy": "sac",
            "epoch": 0,
            "step": step,
            "eval/score": score,
            "eval/success": score / 100,
            "eval/return": -score,
        }
        for step, score in scores.items()
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def test_learning_curves_join_what_differs_in_its_seed_alone(tmp_path: Path) -> None:
    runs = [
        _run_folder(
            tmp_path / f"{obs}{seed}", seed, obs, {0: 0.0, 100: 10.0 * seed + bonus, **({200: 1.0} if seed else {})}
        )
        for obs, bonus in (("tokens", 0), ("state", 50))
        for seed in range(4)
    ]
    assert cli.run(["learning_curves", f"runs=[{','.join(runs)}]", f"out={tmp_path / 'curves'}"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "curves/metrics.jsonl").read_text().splitlines()]
    assert [(row["policy"], row["step"], row["eval/score"]) for row in rows] == [
        ("obs=tokens", 0, 0.0),
        ("obs=tokens", 100, 15.0),
        ("obs=state", 0, 0.0),
        ("obs=state", 100, 65.0),
    ]
    assert rows[1]["eval/score_low"] < 15 < rows[1]["eval/score_high"] and rows[0]["eval/score_low"] == 0
    page = (tmp_path / "curves/report.html").read_text()
    assert "obs=tokens" in page and "fill-opacity" in page
    assert cli.run(["learning_curves", f"runs=[{runs[0]},{runs[0]}]"]) == 1
    assert cli.run(["learning_curves", f"runs=[{tmp_path}]"]) == 1
