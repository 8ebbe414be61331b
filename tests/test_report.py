"""Laws of the report: it says what the rows say, loads nothing, repeats byte for byte, leaves out what is missing."""

import base64
import html
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pixio_robot.errors import DataError
from pixio_robot.metrics import EpisodeRecord, append_episode, read_episodes, success_rate
from pixio_robot.report.page import PROPRIO_ONLY, write_report
from pixio_robot.video import VideoWriter

VOID = {"meta", "link", "img", "br", "line", "circle"}


def episode(policy: str, index: int, success: bool, **changes: Any) -> EpisodeRecord:
    row = EpisodeRecord(
        task="toy/reach",
        policy=policy,
        encoder="random:ti:0",
        weights="trained",
        fusion="mean",
        render="fast",
        index=index,
        seed=100 + index,
        start=f"digest{index}",
        episode_return=12.5 + index,
        success_any=success,
        success_last=success,
        success_count=7 if success else 0,
        score=100.0 if success else 0.0,
        length=40,
        wall_s=1.5,
    )
    return replace(row, **changes)


def write_rows(run: Path, rows: list[EpisodeRecord]) -> None:
    (run / "episodes.jsonl").unlink(missing_ok=True)
    for row in rows:
        append_episode(run / "episodes.jsonl", row)


def write_result(run: Path, **changes: Any) -> None:
    result = {
        "title": "toy/reach, 2 demonstrations",
        "task": "a finger reaches for a ball",
        "headline": "bc",
        "success_rule": "last",
        "encoder": "random:ti:0",
        "weights": "trained",
        "observation_steps": 3,
        "stages": {
            "collect": {"seconds": 80.1, "reused": False, "shares": {"rendering": 0.9, "physics": 0.05}},
            "train": {"seconds": 3.25, "reused": True},
        },
        "peak_memory_mb": 2150.0,
        "class_token_cosine": (0.25 + 0.75 * np.eye(8)).tolist(),
        "notes": ["a note in plain words"],
    }
    (run / "result.json").write_text(json.dumps({**result, **changes}))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a run folder with two episodes of bc, two of the proprioception-only policy, and every optional file."""
    run = tmp_path / "run"
    run.mkdir()
    for name, grey in (("bc-000-success.mp4", 60), ("bc-001-failure.mp4", 200)):
        with VideoWriter(run / "videos" / name, 10) as video:
            for step in range(4):
                video.add(np.full((32, 48, 3), grey + 10 * step, np.uint8))
    write_rows(
        run,
        [
            episode("bc", 0, True, video="videos/bc-000-success.mp4"),
            episode("bc", 1, False, video="videos/bc-001-failure.mp4"),
            episode(PROPRIO_ONLY, 0, False, encoder="none", weights="none"),
            episode(PROPRIO_ONLY, 1, False, encoder="none", weights="none"),
        ],
    )
    write_result(run)
    losses = [{"step": 10 * n, "policy": "bc", "train/loss": 1 / n, "valid/loss": 2 / n} for n in range(1, 5)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in losses))
    (run / "config.yaml").write_text("task: toy/reach\nseed: 3\n")
    (run / "environment.json").write_text(json.dumps({"commit": "abc123", "packages": {"torch": "9.8.7"}}))
    return run


def page(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


class Outline(HTMLParser):
    """Collects what the laws ask about: open tags, ids, addresses, headings and images."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.headings: list[int] = []
        self.unnamed: list[str] = []  # images without words
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        self.ids += [values["id"] or ""] if "id" in values else []
        self.addresses += [value or "" for key, value in attrs if key in ("src", "href", "xlink:href", "poster")]
        if re.fullmatch(r"h\d", tag):
            self.headings.append(int(tag[1]))
        words = values.get("alt") or values.get("aria-label")
        if "img" in (tag, values.get("role")) and not words:
            self.unnamed.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_named(run: Path) -> None:
    outline = Outline(page(run))
    assert outline.open == []
    assert len(outline.ids) == len(set(outline.ids))
    assert {address[1:] for address in outline.addresses if address.startswith("#")} <= set(outline.ids)
    assert outline.headings[0] == 1 and outline.headings.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(outline.headings, outline.headings[1:], strict=False))
    assert outline.unnamed == []


def test_the_page_loads_nothing(run: Path) -> None:
    text = page(run)
    assert all(re.match(r"#|data:|videos/", address) for address in Outline(text).addresses)
    assert not re.search(r"""(?:src|href|url\(|@import)\s*[=(]?\s*["']?\s*(?:https?:)?//""", text)
    assert "<script" not in text
    assert "default-src 'none'" in text


def test_the_same_folder_gives_the_same_bytes_wherever_it_lies(run: Path, tmp_path: Path) -> None:
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first
    assert write_report(Path(shutil.copytree(run, tmp_path / "elsewhere"))).read_bytes() == first
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"seed": 98761}, "98761"),
        ({"start": "5eed5eed"}, "5eed5eed"),
        ({"episode_return": 98762.0}, "98,762"),
        ({"success_count": 98763}, "98763"),
        ({"length": 98764}, "98764"),
        ({"wall_s": 47.3}, "47.3 s"),
        ({"policy": "bc-large"}, "bc-large"),
    ],
)
def test_a_row_that_changes_changes_the_page(run: Path, changes: dict[str, Any], shown: str) -> None:
    assert shown not in page(run)
    rows = read_episodes(run / "episodes.jsonl")
    write_rows(run, [replace(rows[0], **changes), *rows[1:]])
    assert shown in page(run)


@pytest.mark.parametrize("outcomes", [[True, False], [True, True], [False] * 5, [True] * 20 + [False] * 5])
def test_rates_and_intervals_are_those_of_the_rows(run: Path, outcomes: list[bool]) -> None:
    write_rows(run, [episode("bc", index, outcome) for index, outcome in enumerate(outcomes)])
    rate, text = success_rate(outcomes), page(run)
    assert f"{rate.successes}/{rate.trials} = {rate.value:.0%}" in text
    assert f"{rate.successes} of {rate.trials} episodes succeed" in text
    assert f"between <strong>{rate.low:.0%}</strong> and <strong>{rate.high:.0%}</strong>" in text
    assert f'x1="{100 * rate.low:.2f}%" x2="{100 * rate.high:.2f}%"' in text


def test_means_are_those_of_the_rows(run: Path) -> None:
    write_rows(run, [episode("bc", index, True, episode_return=value) for index, value in enumerate((10.0, 11.5))])
    assert "<td>10.8</td><td>40</td>" in page(run)


def test_the_rule_chooses_the_headline(run: Path) -> None:
    write_rows(run, [episode("bc", index, True, success_last=False) for index in range(3)])
    assert '<p class="big">0%</p>' in page(run)
    write_result(run, success_rule="any")
    assert '<p class="big">100%</p>' in page(run)


def test_rows_outrank_the_result_and_the_page_says_so(run: Path) -> None:
    claimed = {"successes": 25, "trials": 25, "rate": 1.0, "low": 0.87, "high": 1.0}
    write_result(run, policies={"bc": {"last": claimed}})
    text = page(run)
    assert "result.json has 25/25 = 100% [87%, 100%] for bc at the last step, episodes.jsonl has 1/2" in text
    assert '<p class="big">50%</p>' in text


def test_a_result_without_episodes_is_enough(run: Path) -> None:
    (run / "episodes.jsonl").unlink()
    rate = {"successes": 18, "trials": 25, "rate": 0.72, "low": 0.524, "high": 0.857}
    write_result(run, policies={"expert": {"last": {**rate, "successes": 25}}, "bc": {"last": rate, "mean_return": 31}})
    text = page(run)
    assert '<p class="big">72%</p>' in text and "18/25 = 72%" in text and "<td>31</td>" in text
    assert "Success at any step" not in text and "episodes to watch" not in text.lower()


def test_episodes_without_a_result_are_enough(run: Path) -> None:
    (run / "result.json").unlink()
    text = page(run)
    assert "<h1>toy/reach</h1>" in text and '<p class="big">50%</p>' in text


def test_a_title_alone_is_enough(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"title": "nothing yet"}')
    text = page(tmp_path)
    assert "<h1>nothing yet</h1>" in text and "<section" not in text and "<h2" not in text


@pytest.mark.parametrize(
    ("take", "heading"),
    [
        ("metrics.jsonl", "Learning curves"),
        ("config.yaml", "Settings"),
        ("environment.json", "Versions, commit and hardware"),
        ("episodes.jsonl", "All 4 episodes"),
        ("videos", "Episodes to watch"),
        ("stages", "collect"),
        ("class_token_cosine", "Similarity of class tokens"),
        ("peak_memory_mb", "Peak memory"),
        ("notes", "a note in plain words"),
    ],
)
def test_what_is_missing_is_left_out(run: Path, take: str, heading: str) -> None:
    assert heading in page(run)
    if (run / take).is_dir():
        shutil.rmtree(run / take)
    elif (run / take).exists():
        (run / take).unlink()
    else:
        write_result(run, **{take: None})
    assert heading not in page(run)


@pytest.mark.parametrize(
    ("successes", "words"),
    [(8, "not significant"), (0, "bc is better"), (20, "the proprioception-only policy is better")],
)
def test_the_proprioception_only_policy_is_compared_in_words(run: Path, successes: int, words: str) -> None:
    ours = [episode("bc", index, index < 10) for index in range(20)]
    write_rows(run, ours + [episode(PROPRIO_ONLY, index, index < successes) for index in range(20)])
    text = page(run)
    assert words in text and f"succeeds in {successes} of 20" in text


def test_a_suite_without_success_is_reported_by_its_score(run: Path) -> None:
    write_rows(run, [episode("bc", index, False, score=40.0 + index) for index in range(5)])
    text = page(run)
    assert "bc: mean score" in text and ">42<" in text and "Success at" not in text
    write_rows(run, [episode("bc", index, index > 2) for index in range(5)])
    assert "bc: success at the last step" in page(run)


def test_random_weights_are_said_loudly(run: Path) -> None:
    assert "random weights" not in page(run)
    write_result(run, weights="random")
    assert "The encoder has random weights" in page(run)
    write_result(run, weights=None)
    write_rows(run, [episode("bc", 0, True, weights="random")])
    assert "The encoder has random weights" in page(run)


def test_videos_are_inside_the_page(run: Path) -> None:
    text = page(run)
    for name, words in (("bc-000-success", "First success: bc, seed 100"), ("bc-001-failure", "First failure: bc")):
        assert base64.b64encode((run / "videos" / f"{name}.mp4").read_bytes()).decode() in text
        assert words in text
    assert text.count("data:image/png;base64,") == 2
    assert '<a href="#video-success">' in text and '<a href="#video-failure">' in text


def test_a_video_that_cannot_be_decoded_is_said(run: Path) -> None:
    (run / "videos" / "bc-000-success.mp4").write_bytes(b"broken")
    text = page(run)
    assert "This video cannot be decoded" in text and text.count("data:image/png;base64,") == 1


@pytest.mark.parametrize("video", ["../secret.mp4", "javascript:alert(1)", "videos", "gone.mp4"])
def test_only_files_of_the_run_are_shown(run: Path, video: str) -> None:
    (run.parent / "secret.mp4").write_bytes(b"secret")
    write_rows(run, [episode("bc", 0, True, video=video)])
    text = page(run)
    assert "<video" not in text and video not in text.replace("videos/", "")


@pytest.mark.parametrize("values", [(1.0, 0.02, True), (1.0, 0.5, False), (1.0, -1.0, False)])
def test_a_wide_range_gets_a_logarithmic_axis(run: Path, values: tuple[float, float, bool]) -> None:
    first, last, logarithmic = values
    rows = [{"step": 1, "valid/loss": first}, {"step": 2, "valid/loss": last}, {"step": 3, "valid/loss": float("nan")}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4, "val')
    text = page(run)
    ticks = {">0.02<", ">0.05<", ">0.1<", ">0.2<", ">0.5<", ">1<"}
    assert all(tick in text for tick in ticks) == logarithmic
    assert f"ends at {last:.3g}, step 2" in text


def test_a_resumed_run_counts_its_last_word(run: Path) -> None:
    rows = [{"step": step, "valid/loss": loss} for step, loss in ((1, 0.9), (2, 0.8), (2, 0.7123))]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "ends at 0.712, step 2" in page(run)


def test_names_are_escaped(run: Path) -> None:
    evil = "<img src=x onerror=\"alert('1')\">&"
    rows = [episode(evil, 0, True, start=evil, task=evil), episode("bc", 0, True, encoder=evil)]
    write_rows(run, rows)
    shares = {"collect" + evil: {"seconds": 1.0, "shares": {evil: 0.5}}}
    write_result(run, title=evil, task="task " + evil, notes=[evil], headline=evil, stages=shares, fusion=evil)
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "policy": evil, evil: 3.0}) + "\n")
    (run / "config.yaml").write_text(evil)
    (run / "environment.json").write_text(json.dumps({evil: {evil: evil}}))
    text = page(run)
    assert "<img src=x" not in text
    assert html.unescape(text).count(evil) >= 12
    assert Outline(text).open == []


def test_an_empty_folder_says_what_it_lacks(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "gone"):
        with pytest.raises(DataError, match=r"neither a result\.json nor .*episodes\.jsonl.*pixio-robot quickstart"):
            write_report(folder)
    assert list(tmp_path.iterdir()) == []


def damage_row(run: Path) -> None:
    (run / "episodes.jsonl").write_text(json.dumps({**asdict(episode("bc", 0, True)), "unknown": 1}) + "\n")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "result.json").write_text("{"), r"result\.json is not JSON"),
        (lambda run: (run / "environment.json").write_text("[]"), r"environment\.json must hold a JSON object"),
        (lambda run: (run / "metrics.jsonl").write_text('{"loss": 1}\n'), r"metrics\.jsonl line 1"),
        (damage_row, r"episodes\.jsonl has a row that is not an episode record"),
    ],
)
def test_a_damaged_file_is_named_and_the_older_report_stays(
    run: Path, damage: Callable[[Path], Any], message: str
) -> None:
    before = write_report(run).read_bytes()
    damage(run)
    with pytest.raises(DataError, match=message):
        write_report(run)
    assert (run / "report.html").read_bytes() == before
