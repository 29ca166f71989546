"""``inspect``: what a file says of itself; nothing here needs diffusers."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from reelora.adapters import (
    Adapter,
    ModuleReport,
    advice_on,
    check_fits,
    content_hash,
    facts_of,
    read_adapter,
    report_modules,
)
from reelora.components import open_weights
from reelora.tensorio import webui_hashes

from . import html
from .listener import Listener

__all__ = ["Inspection", "inspect", "inspect_video", "inspection_page", "is_video", "strengths"]

VIDEO_SUFFIXES = {".mp4", ".gif", ".png"}


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """Everything that is known of an adapter."""

    facts: dict[str, object]
    """From the header alone, and the hashes if values were read."""
    modules: tuple[ModuleReport, ...]
    """From the values; empty unless they were read."""
    advice: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        """Plain values; ``modules`` is left out where nothing was read."""
        deep = {"values": [asdict(module) for module in self.modules]} if self.modules else {}
        return {**self.facts, "advice": list(self.advice), **deep}


def is_video(path: Path) -> bool:
    return path.suffix in VIDEO_SUFFIXES


def inspect_video(path: Path) -> dict[str, object]:
    """How a video that Reelora wrote was made."""
    from reelora.generate import read_video_metadata

    return read_video_metadata(path)


def inspect(
    path: str,
    *,
    deep: bool = False,
    base: str | None = None,
    alpha: float | None = None,
    producer: str | None = None,
    sat_config: Sequence[Path] = (),
    listener: Listener,
) -> Inspection:
    """An adapter's header; with ``deep`` its values too, with ``base`` also beside the weights of that model.

    Raises MismatchError where ``base`` has not the layers, and what `read_adapter` raises.
    """
    adapter = read_adapter(path, alpha=alpha, producer=producer, sat_config=tuple(sat_config))
    facts = facts_of(adapter)
    if not deep and base is None:
        return Inspection(facts=facts, modules=(), advice=tuple(advice_on(adapter, [])))
    facts |= {"content_hash": content_hash(adapter), **_webui(Path(path))}
    modules = _report(adapter, base, listener)
    return Inspection(facts=facts, modules=tuple(modules), advice=tuple(advice_on(adapter, modules)))


def _webui(path: Path) -> dict[str, str]:
    return webui_hashes(path) if path.is_file() and path.suffix == ".safetensors" else {}


def _report(adapter: Adapter, base: str | None, listener: Listener) -> list[ModuleReport]:
    role = next((role for role in ("transformer", "unet") if role in adapter.roles), "")
    weights = open_weights(base, role) if base else None
    if weights is not None:
        check_fits(adapter, weights, role)
    modules = []
    for module in report_modules(adapter, weights, role):
        modules.append(module)
        listener.progress("inspect", len(modules), len(adapter.pairs))
    return modules


def inspection_page(path: str, inspection: Inspection) -> str:
    """A self-contained page with all of it and the plots."""
    facts = [{"what": name.replace("_", " "), "value": str(value)} for name, value in inspection.facts.items()]
    sections = [html.section("What it is", html.table(facts))]
    if inspection.advice:
        sections.insert(0, html.section("Advice", *(html.paragraph(text) for text in inspection.advice)))
    if inspection.modules:
        rows = [{**asdict(module), "name": module.name.partition(".")[2]} for module in inspection.modules]
        curves = {
            "effective rank": [(float(i), float(m.effective_rank)) for i, m in enumerate(inspection.modules)],
            "rank": [(float(i), float(m.rank)) for i, m in enumerate(inspection.modules)],
        }
        sections.append(html.section("Strength over blocks", html.heat_map(strengths(inspection), label="norm of the update")))
        sections.append(html.section("Ranks", html.line_plot(curves, x="module", y="rank")))
        sections.append(html.section("Modules", html.table(rows)))
    return html.page(f"Adapter {Path(path).name}", sections, footer="Made by `reelora inspect --html`.")


def strengths(inspection: Inspection) -> dict[str, dict[str, float]]:
    """Norm of the update by kind of module and block; empty unless values were read."""
    grid: dict[str, dict[str, float]] = {}
    for module in inspection.modules:
        block, leaf = _block_and_leaf(module.name)
        grid.setdefault(leaf, {})[block] = module.norm or 0.0
    return grid


def _block_and_leaf(name: str) -> tuple[str, str]:
    """``transformer.transformer_blocks.3.attn1.to_q`` is block ``3`` of ``transformer_blocks.*.attn1.to_q``."""
    parts = name.split(".")[1:]
    numbers = [index for index, part in enumerate(parts) if part.isdigit() and index < len(parts) - 1]
    if not numbers:
        return "0", ".".join(parts)
    block = ".".join(parts[index] for index in numbers)
    return block, ".".join("*" if index in numbers else part for index, part in enumerate(parts))
