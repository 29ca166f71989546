"""The demo's ``report.html``."""

from pathlib import Path

from reelora import __version__
from reelora.generate import contact_sheet, to_png_bytes
from reelora.lora import AttachSummary
from reelora.recipes import html
from reelora.recipes.files import write_text
from reelora.recipes.run_report import held_out_sections, loss_section

from .answers import Answer, Trial

__all__ = ["write_demo_report"]

_ROWS_SHOWN = 10


def write_demo_report(folder: Path, summary: AttachSummary, stars: Trial, known: Trial, lines: list[str]) -> None:
    """Write the page that shows what happened: the figures, the pictures side by side, the loss."""
    trials = (stars, known)
    figures = [
        {"right, by the pixel judge": f"{trial.question.name}: {part}", "before": f"{before:.0%}", "after": f"{after:.0%}"}
        for trial in trials
        for part, (before, after) in trial.shares().items()
    ]
    sections = [
        *map(html.paragraph, lines),
        html.section("In figures", html.table(figures)),
        *(html.section(f"Before and after: {trial.question.name}", _pictures(trial)) for trial in trials),
        html.section(
            "The videos",
            *(
                html.figure((folder / f"{name}.mp4").read_bytes(), kind="video/mp4", caption=f"{name} training, same seeds")
                for name in ("before", "after")
            ),
        ),
        *held_out_sections(folder),
        loss_section(folder),
        html.section("What was trained", html.table([{"": label, "value": text} for label, text in summary.rows()])),
    ]
    page = html.page("Reelora demo: a new shape", sections, footer=f"Written by Reelora {__version__}.")
    write_text(folder / "report.html", page)


def _pictures(trial: Trial) -> str:
    """Base on the left, adapter on the right; the label says what the judge saw."""
    pairs = list(zip(*(_labelled(answer) for answer in (trial.before, trial.after)), strict=True))[:_ROWS_SHOWN]
    shown = [cell for pair in pairs for cell in pair]
    sheet = contact_sheet([clip for clip, _ in shown], [label for _, label in shown], columns=2)
    caption = f"The first {len(pairs)} of {len(trial.question.prompts)} prompts, before (left) and after (right) training."
    return html.figure(to_png_bytes(sheet), kind="image/png", caption=caption)


def _labelled(answer: Answer) -> list[tuple]:
    """Each clip with its prompt and what the judge saw."""
    rows = zip(answer.clips, answer.question.prompts, answer.verdicts, strict=True)
    return [(clip, f"{prompt.split(' on a ')[0]}: seen {verdict.colour} {verdict.shape}") for clip, prompt, verdict in rows]
