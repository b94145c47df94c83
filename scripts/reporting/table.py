"""The report's rows, the choice among them, and how they are shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reporting.measure import Speed

__all__ = ["Recommendation", "Row", "markdown_notes", "markdown_table", "recommend", "save_plot"]

_WORTH = 1.05  # times the base's throughput: less is within what a machine drifts
_COLOURS = {"onnxruntime": "#4c78a8", "openvino": "#f58518", "tensorrt": "#54a24b"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One variant of the detector in one engine.

    Attributes:
        variant: What was done to the detector.
        engine: What runs it, by the name of Triton's backend.
        size_mb: Size of the file in MB (10^6 bytes).
        accuracy: mAP over IoU 0.50 to 0.95.
        drop: How much less that is than the base's.
        speed: Medians over the rounds; None where it does not run.
        speedup: Images a second over the base's in the same round, median over the rounds.
        notes: What a reader has to know, such as which layers stayed in float.
    """

    variant: str
    engine: str
    size_mb: float | None = None
    accuracy: float | None = None
    drop: float | None = None
    speed: Speed | None = None
    speedup: float | None = None
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The row as nested dictionaries."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """The variant to serve on this machine.

    Attributes:
        row: It.
        reason: Why, in one sentence.
    """

    row: Row
    reason: str


def recommend(rows: Sequence[Row], max_drop: float) -> Recommendation:
    """The fastest variant among those that lose at most `max_drop` of the base's accuracy.

    Args:
        rows: The first is the base: the detector as it was given.
        max_drop: Greatest mAP that may be lost.
    """
    base = rows[0]
    usable = [row for row in rows if row.speedup is not None and row.drop is not None]
    accurate = [row for row in usable if row.drop is not None and row.drop <= max_drop]
    best = max(accurate, key=lambda row: row.speedup or 0, default=base)
    if (best.speedup or 0) < _WORTH:
        best = base
    faster = [
        row
        for row in usable
        if (row.speedup or 0) > (best.speedup or 0) and (row.drop or 0) > max_drop
    ]
    if best is base:
        reason = f"nothing within {max_drop:g} of its accuracy is {_WORTH:g} times as fast"
    else:
        drop = best.drop or 0.0
        change = f"loses {drop:.4f}" if drop > 0 else "loses nothing"
        reason = (
            f"{best.speedup:.2f} times the images a second of {base.variant} in {base.engine},"
            f" and it {change} of the accuracy"
        )
    if faster:
        names = ", ".join(f"{row.variant} in {row.engine} (-{row.drop:.3f})" for row in faster)
        reason += f"; faster, but losing more than {max_drop:g}: {names}"
    return Recommendation(row=best, reason=reason)


def markdown_table(rows: Sequence[Row], chosen: Row, accuracy_name: str) -> str:
    """The rows as a table in Markdown, the chosen one in bold."""
    lines = [
        f"| variant | engine | MB | {accuracy_name} | change | detector ms | p50 ms | p99 ms"
        " | images/s | of base | peak MiB |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        cells = [row.variant, row.engine, "" if row.size_mb is None else f"{row.size_mb:.1f}"]
        cells.append("" if row.accuracy is None else f"{row.accuracy:.4f}")
        cells.append("" if row.drop is None else f"{0.0 - row.drop:+.4f}")
        if row.speed is not None and row.speedup is not None:
            speed = row.speed
            cells += [f"{v:.1f}" for v in (speed.detector_ms, speed.p50_ms, speed.p99_ms)]
            cells += [f"{speed.images_per_s:.1f}", f"{row.speedup:.2f}"]
            cells.append(f"{speed.peak_memory_mb:.0f}")
        else:
            cells += [""] * 6
        if row is chosen:
            cells = [f"**{cell}**" if cell else "" for cell in cells]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def markdown_notes(rows: Sequence[Row]) -> str:
    """What there is to say of each row, as a list in Markdown; once where engines share it."""
    lines = []
    for notes in dict.fromkeys(row.notes for row in rows if row.notes):
        named = [f"{row.variant} in {row.engine}" for row in rows if row.notes == notes]
        lines += [f"- {', '.join(named)}:", *(f"  - {note}" for note in notes)]
    return "\n".join(lines)


def save_plot(
    rows: Sequence[Row], chosen: Row, max_drop: float, accuracy_name: str, path: Path
) -> None:
    """Draw accuracy against throughput, the chosen variant ringed."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    shown = [row for row in rows if row.speed is not None and row.accuracy is not None]
    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    for engine in dict.fromkeys(row.engine for row in shown):
        points = [row for row in shown if row.engine == engine]
        axes.scatter(
            [row.speed.images_per_s for row in points if row.speed],
            [row.accuracy for row in points],
            s=55, label=engine, color=_COLOURS.get(engine, "#9d9da1"), zorder=3,
        )  # fmt: skip
    for index, row in enumerate(
        sorted(shown, key=lambda r: r.speed.images_per_s if r.speed else 0)
    ):
        if row.speed is not None and row.accuracy is not None:
            axes.annotate(
                row.variant, (row.speed.images_per_s, row.accuracy), fontsize=8,
                xytext=(0, 9 if index % 2 else -14), textcoords="offset points", ha="center",
            )  # fmt: skip
    if chosen.speed is not None and chosen.accuracy is not None:
        axes.scatter(
            [chosen.speed.images_per_s], [chosen.accuracy], s=220, facecolors="none",
            edgecolors="black", linewidths=1.5, label="recommended", zorder=4,
        )  # fmt: skip
    if shown and rows[0].accuracy is not None:
        axes.axhline(rows[0].accuracy - max_drop, color="#9d9da1", linestyle="--", linewidth=1)
        axes.text(
            0.995, rows[0].accuracy - max_drop, f"base - {max_drop:g}", fontsize=8, va="bottom",
            ha="right", color="#6b6b70", transform=axes.get_yaxis_transform(),
        )  # fmt: skip
    axes.set_xlabel("images/s, whole pipeline, all cores")
    axes.set_ylabel(accuracy_name)
    axes.margins(0.12)
    axes.set_ylim(bottom=min(0, *axes.get_ylim()) if not shown else None)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
