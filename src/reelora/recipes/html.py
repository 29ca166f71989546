"""Self-contained pages: text, tables, plots and pictures in one file that needs no other."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

__all__ = ["figure", "heat_map", "line_plot", "page", "paragraph", "preformatted", "row", "section", "table"]

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
table { border-collapse: collapse; } td, th { border-bottom: 1px solid #ddd; padding: .25rem .8rem .25rem 0; text-align: left; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.row { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 1rem 0; } img, svg, video { max-width: 100%; height: auto; image-rendering: pixelated; }
figcaption, footer { color: #666; font-size: .9rem; } pre { background: #f5f5f5; padding: 1rem; overflow: auto; }
"""


def page(title: str, sections: Sequence[str], *, footer: str) -> str:
    """A whole page."""
    body = "\n".join(sections)
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>\n'
        f"<h1>{escape(title)}</h1>\n{body}\n<footer>{escape(footer)}</footer>\n</html>\n"
    )


def section(title: str, *parts: str) -> str:
    return f"<h2>{escape(title)}</h2>\n" + "\n".join(parts)


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def preformatted(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"


def row(title: str, *figures: str) -> str:
    """Figures side by side under a title."""
    return f'<h3>{escape(title)}</h3>\n<div class="row">{"".join(figures)}</div>'


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """One row each; the keys of the first are the heads. Numbers stand on the right."""
    heads = "".join(f"<th>{escape(str(name))}</th>" for name in rows[0])
    lines = ["".join(_cell(value) for value in row.values()) for row in rows]
    return "<table><tr>" + heads + "</tr>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def figure(content: bytes, *, kind: str, caption: str) -> str:
    """A picture or video of a MIME type such as ``image/png``, inside the page."""
    source = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    shown = (
        f'<video src="{source}" autoplay loop muted controls></video>' if kind.startswith("video/") else f'<img src="{source}">'
    )
    return f"<figure>{shown}<figcaption>{escape(caption)}</figcaption></figure>"


def line_plot(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x: str,
    y: str,
    band: Sequence[tuple[float, float, float]] = (),
    percent: bool = False,
) -> str:
    """Points ``(x, y)`` by the name of their line, as SVG; a long noisy line is drawn faint under its running mean.

    ``band`` is an area around the first line, as ``(x, low, high)``; with ``percent`` the axis of shares is marked in percent.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    drawing = Figure(figsize=(8, 3.2), layout="constrained")
    axes = drawing.add_subplot(xlabel=x, ylabel=y)
    if band:
        places, low, high = zip(*band, strict=True)
        axes.fill_between(places, low, high, color="C0", alpha=0.15, linewidth=0)
    if percent:
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        axes.axhline(0, color="black", linewidth=0.8)
    for index, (name, points) in enumerate(series.items()):
        places, values = zip(*points, strict=True)
        is_long = len(values) > 60
        axes.plot(places, values, color=f"C{index}", alpha=0.25 if is_long else 1, marker="" if is_long else ".", label=name)
        if is_long:
            axes.plot(places, _running_mean(values), color=f"C{index}")
    axes.legend()
    axes.grid(alpha=0.3)
    buffer = io.StringIO()
    FigureCanvasSVG(drawing).print_svg(buffer, metadata={"Creator": None, "Date": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    return f"<figure>{text[text.index('<svg') :]}</figure>"


def heat_map(grid: Mapping[str, Mapping[str, float]], *, label: str) -> str:
    """Values by row and column as cells, coloured relative to the largest; the number is in each cell's title."""
    columns = list(dict.fromkeys(column for row in grid.values() for column in row))
    top = max((value for row in grid.values() for value in row.values()), default=0.0) or 1.0
    lines = []
    for name, row in grid.items():
        cells = "".join(
            f'<td title="{escape(f"{name} {column}: {row[column]:.4g}")}" '
            f'style="background: rgba(200, 60, 20, {row[column] / top:.3f}); width: .9rem"></td>'
            if column in row
            else "<td></td>"
            for column in columns
        )
        lines.append(f"<tr><td>{escape(name)}</td>{cells}</tr>")
    caption = escape(f"{label}; the darkest is {top:.4g}")
    return f"<figure><table>{''.join(lines)}</table><figcaption>{caption}</figcaption></figure>"


def _running_mean(values: Sequence[float], share: float = 0.05) -> list[float]:
    mean, result = values[0], []
    for value in values:
        mean += share * (value - mean)
        result.append(mean)
    return result


def _cell(value: object) -> str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return f'<td class="number">{escape(text)}</td>' if is_number else f"<td>{escape(text)}</td>"
