"""The report as one HTML file that needs no other."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

__all__ = ["render"]

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem;
       color: #1b1f24; }
h1 { margin-bottom: 0 } h2 { margin-top: 2rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #d8dee4; text-align: right }
th:first-child, td:first-child { text-align: left; white-space: nowrap }
.scroll { overflow-x: auto } img { max-width: 100% }
.verdict { border-left: 5px solid #2da44e; padding: .4rem 1rem; background: #f6f8fa }
.verdict.bad { border-color: #cf222e } .note { color: #57606a }
"""
_TABLES = (
    ("steps", "Steps", "What the load generator measured of the requests that ended in a window."),
    ("requests", "Requests", "The whole run, settling included."),
    ("failures", "Failures", "Refused: the server had more work than it takes."),
    (
        "triton",
        "Triton's own statistics",
        "Milliseconds a request. The times of the steps are within the ensemble's total.",
    ),
)


def render(data: dict[str, Any], plots: Sequence[Path], *, disagrees: bool) -> str:
    """The page.

    Args:
        data: The report as JSON.
        plots: Pictures to embed.
        disagrees: Whether the figures differ from Triton's.
    """
    options = data["options"]
    machine = data["machine"]
    bad = " bad" if disagrees or data["missed_slo"] else ""
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8">',
        f"<title>Load test: {escape(options['scenario'])}</title><style>{_STYLE}</style>",
        f"<h1>Load test: {escape(options['scenario'])}, {escape(options['arrival'])} arrival</h1>",
        f'<p class="note">{escape(data["begun"])}; {escape(", ".join(data["protocols"]))};'
        f" load generator on {machine['cores']} cores of {escape(machine['processor'])}</p>",
        f'<div class="verdict{bad}">',
        *(f"<p>{escape(line)}</p>" for line in data["verdict"]),
        "</div>",
    ]
    for plot in plots:
        encoded = base64.b64encode(plot.read_bytes()).decode()
        parts.append(f'<p><img alt="{plot.stem}" src="data:image/png;base64,{encoded}"></p>')
    for key, title, note in _TABLES:
        if data[key]:
            parts += [f'<h2>{title}</h2><p class="note">{note}</p>', _table(data[key])]
    settings = [{"option": f"--{k.replace('_', '-')}", "value": v} for k, v in options.items()]
    parts += ["<h2>Options</h2>", _table(settings), "</html>"]
    return "\n".join(parts)


def _table(rows: Sequence[dict[str, Any]]) -> str:
    head = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(_cell(value))}</td>" for value in row.values()) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _cell(value: Any) -> str:
    return (
        f"{value:.4g}"
        if isinstance(value, float) and abs(value) < 1000
        else (f"{value:.0f}" if isinstance(value, float) else str(value))
    )
