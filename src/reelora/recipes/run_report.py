"""``report.html`` of a training run."""

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any

from reelora import __version__
from reelora.data import CachedClips
from reelora.train import Gain, Verdict, read_metrics, read_verdicts

from . import html
from .config import TrainConfig
from .files import write_text
from .timesteps import timesteps_section

__all__ = ["held_out_sections", "loss_section", "write_run_report"]

Rows = Sequence[Mapping[str, Any]]


def write_run_report(
    config: TrainConfig,
    branches: Sequence[tuple[str, str]],
    seen: CachedClips,
    held_out: CachedClips,
    previews: list[str],
    *,
    name: str,
) -> Path:
    """Write the page ``name`` of the run in ``config.output``: verdict, losses, previews, figures, clips, settings.

    ``branches`` are label and text of what is said of those that were trained.
    """
    rows = read_metrics(config.output / "metrics.jsonl")
    trained = [{"": label, "value": text} for label, text in branches]
    sections = [
        *held_out_sections(config.output),
        loss_section(config.output),
        *([html.section("Previews: base first, then the adapter on its way", *previews)] if previews else []),
        html.section("Learning rate and gradients", _plot(rows, "learning_rate"), _plot(rows, "grad_norm")),
        html.section("Speed and memory", *_speed(rows)),
        html.section("What was trained", html.table(trained)),
        html.section("Clips", html.table([*_clip_rows(seen, "to learn from"), *_clip_rows(held_out, "held out")])),
        timesteps_section(config.loop.timesteps),
        html.section("Settings", html.preformatted(config.toml())),
    ]
    path = config.output / name
    title = f"Training run {config.output.name}"
    write_text(path, html.page(title, sections, footer=f"Written by Reelora {__version__}."))
    return path


def held_out_sections(folder: Path) -> list[str]:
    """What the held-out clips say: the verdict, the gain over the steps with its interval, and by noise."""
    verdicts = read_verdicts(folder)
    if not verdicts:
        return []
    last = verdicts[-1]
    bands = [{"noise in the clip": name, **_gain_cells(gain)} for name, gain in last.bands.items()]
    return [
        html.section(
            "Does it learn?",
            html.paragraph(f"After step {last.step}: {last}."),
            _gain_plot(verdicts),
            html.paragraph(
                f"By which share of it the error on {last.num_clips} held-out clips is lower with the adapter than without it, "
                "on the same noise and timesteps, with 95 % intervals over the clips. "
                f"The weights of step {last.best_step} did best: {last.best_gain:.1%}."
            ),
            html.table(bands),
        )
    ]


def loss_section(folder: Path) -> str:
    """Training and held-out loss of a run as a plot, with its speed."""
    rows = read_metrics(folder / "metrics.jsonl")
    series = {"training": _points(rows, "loss"), "held out": _points(rows, "held_out_loss")}
    seconds = [row["seconds"] for row in rows if "seconds" in row]
    held_out = series["held out"]
    parts = [html.line_plot({name: points for name, points in series.items() if points}, x="step", y="loss")]
    if held_out:
        parts.append(
            html.paragraph(
                f"Held-out loss from {held_out[0][1]:.4f} before training to {held_out[-1][1]:.4f} at step {held_out[-1][0]}, "
                "on the same noise and timesteps each time."
            )
        )
    if seconds:
        parts.append(html.paragraph(f"{len(seconds)} steps, {median(seconds):.2f} s each (median)."))
    return html.section("Loss", *parts)


def _points(rows: Rows, name: str) -> list[tuple[float, float]]:
    return [(row["step"], row[name]) for row in rows if name in row]


def _plot(rows: Rows, name: str) -> str:
    points = _points(rows, name)
    return html.line_plot({name.replace("_", " "): points}, x="step", y="") if points else ""


def _speed(rows: Rows) -> list[str]:
    steps = [row for row in rows if "clips_per_second" in row]
    if not steps:
        return []
    waited = sum(row["data_wait"] for row in steps) / sum(row["seconds"] for row in steps)
    text = (
        f"{median(row['clips_per_second'] for row in steps):.2f} clips per second (median), {waited:.1%} of the time waiting "
        f"for clips, {max(row['peak_memory_bytes'] for row in steps) / 1e9:.2f} GB of memory at most."
    )
    return [_plot(rows, "clips_per_second"), html.paragraph(text)]


def _gain_plot(verdicts: Sequence[Verdict]) -> str:
    """Over the steps; the area around the line is the interval, where there is one."""
    return html.line_plot(
        {"gain on held-out clips": [(verdict.step, verdict.gain.mean) for verdict in verdicts]},
        x="step",
        y="share of the base's error",
        band=[(v.step, v.gain.low, v.gain.high) for v in verdicts if isfinite(v.gain.high)],
        percent=True,
    )


def _gain_cells(gain: Gain) -> dict[str, str]:
    ends = {"from": gain.low, "to": gain.high}
    return {"gain": f"{gain.mean:.1%}"} | {name: f"{end:.1%}" if isfinite(end) else "" for name, end in ends.items()}


def _clip_rows(clips: CachedClips, use: str) -> list[dict[str, object]]:
    return [{"clip": name, "use": use, "caption": text} for name, text in zip(clips.sources, clips.captions, strict=True)]
