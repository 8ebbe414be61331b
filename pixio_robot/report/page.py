"""The report of a run: one HTML file that needs no network; the same run folder gives the same bytes.

The page shows what the run folder holds. Success rates, returns and lengths come from the rows of ``episodes.jsonl``,
and from ``result.json`` for policies without rows there.
"""

import base64
import json
import math
import urllib.parse
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from markupsafe import Markup

from ..errors import DataError
from ..files import replacing
from ..metrics import EpisodeRecord, Mean, Rate, mean_score, paired_test, read_episodes, success_rate
from ..video import filmstrip, read_video
from .curves import curve_panels, number

RULES = {"last": "at the last step", "any": "at any step"}
PROPRIO_ONLY = "none"  # name of the policy of encoder=none
REFERENCES = (PROPRIO_ONLY, "expert")  # shown for comparison, never as the headline
STRIP_IMAGES = 6
STRIP_HEIGHT = 112  # [px]


class Policy(NamedTuple):
    """The results of one policy."""

    name: str
    rates: dict[str, Rate]  # by rule
    score: Mean | None  # the suite's score, 0 to 100
    mean_return: float | None
    mean_length: float | None  # [steps]


class Stage(NamedTuple):
    """One stage of the run and how its time is divided."""

    name: str
    seconds: float
    reused: bool
    width: float  # share of the longest stage
    shares: list[tuple[str, float]]


class Film(NamedTuple):
    """A video that the result names, embedded in the page."""

    title: str
    caption: str
    video: Markup  # data URI
    strip: Markup  # data URI of a filmstrip, "" if the video cannot be decoded


class Clip(NamedTuple):
    """The video of an episode, embedded in the page."""

    row: EpisodeRecord
    outcome: str
    anchor: str
    video: Markup  # data URI
    strip: Markup  # data URI of a filmstrip, "" if the video cannot be decoded


def write_report(run: Path) -> Path:
    """Write ``report.html`` into a run folder and return its path.

    Args:
        run: holds ``result.json`` or ``episodes.jsonl``, and optionally ``metrics.jsonl``, ``config.yaml``,
            ``environment.json`` and the videos that the episodes name.

    Raises:
        DataError: if the folder holds neither result nor episodes, or one of its files is damaged.
    """
    result = _read_json(run / "result.json")
    try:
        episodes = read_episodes(run / "episodes.jsonl")
    except (ValueError, TypeError) as error:
        raise DataError(f"{run / 'episodes.jsonl'} has a row that is not an episode record: {error}") from error
    if not result and not episodes:
        raise DataError(
            f"{run} has neither a result.json nor an episode in episodes.jsonl, so there is nothing to report; "
            f"`pixio-robot quickstart out={run}` or `pixio-robot evaluate out={run}` writes them"
        )
    policies, notes = _policies(result, episodes)
    headline = policies[0] if policies else None
    rule = result.get("success_rule", "last")
    if headline and rule not in headline.rates:
        rule = next(iter(headline.rates), "last")
    if headline:
        order = [policy.name for policy in policies]
        episodes = sorted(episodes, key=lambda row: order.index(row.policy))
    headline_rows = [row for row in episodes if headline and row.policy == headline.name]
    facts = {
        key: result.get(key) or (getattr(headline_rows[0], key) if headline_rows else "")
        for key in ("encoder", "weights", "fusion", "render")
    }
    facts["observation steps"] = result.get("observation_steps", "")
    facts |= result.get("facts") or {}
    clips = _clips(run, episodes, rule)
    config = run / "config.yaml"
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(percent=_percent, number=number, duration=_duration)
    template = resources.files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8")
    page = environment.from_string(template).render(
        title=result.get("title") or (episodes[0].task if episodes else run.resolve().name),
        task=result.get("task", ""),
        facts={key: value for key, value in facts.items() if value},
        random=facts["weights"] == "random" or any(row.weights == "random" for row in headline_rows),
        notes=[*(result.get("notes") or []), *notes],
        policies=policies,
        headline=headline,
        rule=rule,
        rules={key: words for key, words in RULES.items() if any(key in policy.rates for policy in policies)},
        comparison=_against_proprio_only(policies, rule, episodes),
        numbers=result.get("numbers") or {},
        tables=result.get("tables") or {},
        images_title=result.get("images_title", "Reconstructions"),
        images=_images(run, result.get("images") or []),
        panels=curve_panels(run / "metrics.jsonl", headline.name if headline else ""),
        stages=_stages(result.get("stages") or {}),
        peak_memory_mb=result.get("peak_memory_mb"),
        cosine=result.get("class_token_cosine"),
        clips=clips,
        strips=result.get("strips") or [],
        films=_films(run, result.get("films") or []),
        several_tasks=len({row.task for row in episodes}) > 1,
        rows=[(row, *_link(run, row, clips)) for row in episodes],
        config=config.read_text(encoding="utf-8") if config.is_file() else "",
        environment=list(_flat(_read_json(run / "environment.json"))),
    )
    path = run / "report.html"
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); run the command that wrote it again") from error
    if not isinstance(values, dict):
        raise DataError(f"{path} must hold a JSON object; it holds a {type(values).__name__}")
    return values


def _policies(result: dict[str, Any], episodes: list[EpisodeRecord]) -> tuple[list[Policy], list[str]]:
    """Return the policies, headline first and references last, and notes where the two sources disagree."""
    written = {name: _written_policy(name, values) for name, values in (result.get("policies") or {}).items()}
    counted = {name: _counted_policy(name, episodes) for name in dict.fromkeys(row.policy for row in episodes)}
    notes = [
        f"result.json has {written[name].rates[rule]} for {name} {RULES[rule]}, episodes.jsonl has {rate}; "
        "this report uses episodes.jsonl."
        for name, policy in counted.items()
        for rule, rate in policy.rates.items()
        if name in written and rule in written[name].rates and written[name].rates[rule][:2] != rate[:2]
    ]
    policies = {**written, **counted}
    headline = result.get("headline") or next((name for name in policies if name not in REFERENCES), "")
    return sorted(policies.values(), key=lambda each: (each.name != headline, each.name in REFERENCES)), notes


def _written_policy(name: str, values: dict[str, Any]) -> Policy:
    rates = {rule: values[rule] for rule in RULES if set(Rate._fields) <= set(values.get(rule) or {})}
    return Policy(
        name,
        {rule: Rate(*(rate[field] for field in Rate._fields)) for rule, rate in rates.items() if rate["trials"]},
        Mean(**values["score"]) if values.get("score") else None,
        values.get("mean_return"),
        values.get("mean_length"),
    )


def _counted_policy(name: str, episodes: list[EpisodeRecord]) -> Policy:
    rows = [row for row in episodes if row.policy == name]
    rates = {rule: success_rate(getattr(row, f"success_{rule}") for row in rows) for rule in RULES}
    returns, lengths = zip(*((row.episode_return, row.length) for row in rows), strict=True)
    score = mean_score(row.score for row in rows)
    if score.value and not any(row.success_any for row in rows):  # the suite has rewards only
        rates = {}
    return Policy(name, rates, score, math.fsum(returns) / len(rows), sum(lengths) / len(rows))


def _against_proprio_only(policies: list[Policy], rule: str, episodes: list[EpisodeRecord]) -> str:
    """Compare the headline policy with the proprioception-only policy, in one sentence or two."""
    reference = next((policy for policy in policies[1:] if policy.name == PROPRIO_ONLY), None)
    if reference is None or rule not in reference.rates or rule not in policies[0].rates:
        return ""
    theirs = reference.rates[rule]
    fact = f"The proprioception-only policy succeeds in {theirs.successes} of {theirs.trials}. "
    ours = [row for row in episodes if row.policy == policies[0].name]
    test = paired_test(ours, [row for row in episodes if row.policy == PROPRIO_ONLY], rule)
    if test is None:
        return fact
    pairs = (
        f"On the same episodes, only {policies[0].name} succeeds in {test.only_first} and only the proprioception-only "
        f"policy in {test.only_second} (exact McNemar test, p = {test.p:.2g}): "
    )
    if test.p > 0.05:
        return fact + pairs + "the difference is not significant."
    better = policies[0].name if test.only_first > test.only_second else "the proprioception-only policy"
    return fact + pairs + f"{better} is better."


def _stages(stages: dict[str, dict[str, Any]]) -> list[Stage]:
    """Return the stages with their shares scaled to at most one and the rest called other."""
    longest = max((stage.get("seconds") or 0.0 for stage in stages.values()), default=0.0) or 1.0
    found = []
    for name, stage in stages.items():
        shares = {part: float(share) for part, share in (stage.get("shares") or {}).items()}
        total = max(1.0, sum(shares.values()))
        shares = {part: share / total for part, share in shares.items()}
        rest = 1 - sum(shares.values())
        if shares and rest > 0.005:
            shares["other"] = shares.get("other", 0.0) + rest
        seconds = stage.get("seconds") or 0.0
        found.append(Stage(name, seconds, bool(stage.get("reused")), seconds / longest, list(shares.items())))
    return found


def _clips(run: Path, episodes: list[EpisodeRecord], rule: str) -> list[Clip]:
    """Return the first success and the first failure whose video exists, of the headline policy if it has both."""
    clips = []
    for outcome in ("success", "failure"):
        for row in episodes:
            path = _video(run, row)
            if path and getattr(row, f"success_{rule}") == (outcome == "success"):
                video = _data_uri("video/mp4", path.read_bytes())
                clips.append(Clip(row, outcome, f"video-{outcome}", video, _strip(path)))
                break
    return clips


def _films(run: Path, listed: list[dict[str, str]]) -> list[Film]:
    """Return the videos that exist."""
    paths = [(each, run / each["file"]) for each in listed]
    return [
        Film(each["title"], each["caption"], _data_uri("video/mp4", path.read_bytes()), _strip(path))
        for each, path in paths
        if path.is_file() and path.resolve().is_relative_to(run.resolve())
    ]


def _images(run: Path, listed: list[dict[str, str]]) -> list[tuple[str, Markup]]:
    """Return captions and data URIs of the images that exist."""
    paths = [(each["caption"], run / each["file"]) for each in listed]
    return [(caption, _data_uri("image/png", path.read_bytes())) for caption, path in paths if path.is_file()]


def _video(run: Path, row: EpisodeRecord) -> Path | None:
    """Return the row's video if it is a file inside the run folder."""
    path = run / row.video
    inside = bool(row.video) and path.resolve().is_relative_to(run.resolve())
    return path if inside and path.is_file() else None


def _strip(path: Path) -> Markup:
    import cv2

    try:
        strip = filmstrip(read_video(path), STRIP_IMAGES)
    except DataError:
        return Markup("")
    width = round(strip.shape[1] * STRIP_HEIGHT / strip.shape[0])
    strip = cv2.resize(strip, (width, STRIP_HEIGHT), interpolation=cv2.INTER_AREA)
    return _data_uri("image/png", cv2.imencode(".png", np.ascontiguousarray(strip[..., ::-1]))[1].tobytes())


def _data_uri(kind: str, data: bytes) -> Markup:
    return Markup(f"data:{kind};base64,{base64.b64encode(data).decode()}")


def _link(run: Path, row: EpisodeRecord, clips: list[Clip]) -> tuple[str, str]:
    """Return the link to a row's video and its text: inside the page, a file beside it, or empty."""
    for clip in clips:
        if clip.row is row:
            return f"#{clip.anchor}", "in this page"
    return (urllib.parse.quote(row.video), "file") if _video(run, row) else ("", "")


def _flat(values: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key} / ")
        else:
            yield prefix + key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _percent(value: float) -> str:
    return f"{value:.0%}"


def _duration(seconds: float) -> str:
    """Format a duration in seconds, minutes or hours.

    >>> _duration(0.42), _duration(80.1), _duration(7260)
    ('0.4 s', '1 min 20 s', '2 h 1 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
