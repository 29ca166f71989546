"""``report.html`` of a training run."""

from pathlib import Path
from statistics import median

from reelora import __version__
from reelora.lora import AttachSummary
from reelora.train import read_metrics

from . import html
from .config import TrainConfig
from .files import write_text

__all__ = ["loss_section", "write_run_report"]


def write_run_report(config: TrainConfig, summary: AttachSummary, previews: list[str], *, name: str) -> Path:
    """Write the page ``name`` of the run in ``config.output``: losses, what was trained, previews, settings."""
    rows = [{"": label, "value": text} for label, text in summary.rows()]
    sections = [loss_section(config.output), html.section("What was trained", html.table(rows))]
    if previews:
        sections.append(html.section("Previews", *previews))
    sections.append(html.section("Settings", html.preformatted(config.toml())))
    path = config.output / name
    title = f"Training run {config.output.name}"
    write_text(path, html.page(title, sections, footer=f"Written by Reelora {__version__}."))
    return path


def loss_section(folder: Path) -> str:
    """Training and held-out loss of a run as a plot, with its speed."""
    rows = read_metrics(folder / "metrics.jsonl")
    series = {
        "training": [(row["step"], row["loss"]) for row in rows if "loss" in row],
        "held out": [(row["step"], row["held_out_loss"]) for row in rows if "held_out_loss" in row],
    }
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
