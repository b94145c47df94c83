"""The report's files."""

from __future__ import annotations

import json
from pathlib import Path

from reporting.run import Report
from reporting.table import markdown_notes, markdown_table, save_plot

__all__ = ["write_report"]


def write_report(report: Report, folder: Path) -> tuple[Path, Path, Path]:
    """Write Markdown, JSON and the plot; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    markdown, data, plot = (folder / f"report.{suffix}" for suffix in ("md", "json", "png"))
    save_plot(report.rows, report.recommendation.row, report.max_drop, report.accuracy_name, plot)
    data.write_text(json.dumps(report.as_json(), indent=2) + "\n", encoding="utf-8")
    markdown.write_text(_markdown(report), encoding="utf-8")
    return markdown, data, plot


def _markdown(report: Report) -> str:
    machine, chosen = report.machine, report.recommendation
    versions = ", ".join(
        f"{name} {machine[name]}" for name in ("onnxruntime", "openvino") if name in machine
    )
    meaning = (
        "mAP over IoU 0.50 to 0.95"
        if report.accuracy_name == "mAP"
        else "agreement is mAP against the detector's own detections of score 0.3 and more"
    )
    lines = [
        f"# {report.model}",
        "",
        f"{machine['cores']} cores of {machine['processor']}, {versions}. {report.images} images;"
        f" {meaning}. Speeds are of the whole pipeline, from encoded image to detections, but for"
        " 'detector ms' (batch 1, one thread): latencies of one process with one thread, images/s"
        " of one such process a core together, 'of base' within each round; medians over"
        f" {report.rounds} round{'s' if report.rounds > 1 else ''} of {report.seconds:g} s."
        " Memory is one process's. OpenVINO computes in bfloat16 where the processor can.",
        "",
        markdown_table(report.rows, chosen.row, report.accuracy_name),
        "",
        f"**Recommended on this machine: {chosen.row.variant} in {chosen.row.engine}**:"
        f" {chosen.reason}.",
        "",
        "![Accuracy against throughput](report.png)",
        "",
    ]
    if report.deployment:
        lines += [
            "## From base to production",
            "",
            f"| | what | {report.accuracy_name} | p50 ms | images/s | peak MiB |",
            "|---|---|--:|--:|--:|--:|",
            *(
                f"| {stage.name} | {stage.what} |"
                f" {'' if stage.accuracy is None else f'{stage.accuracy:.4f}'} |"
                f" {stage.p50_ms:.1f} | {stage.images_per_s:.1f} | {stage.peak_memory_mb:.0f} |"
                for stage in report.deployment
            ),
            "",
            "Memory is of all processes together: in process the peak of one a core, what they"
            " share counted for each; served what Triton's processes have at once, what they share"
            " counted once.",
            "",
        ]
    if notes := markdown_notes(report.rows):
        lines += [
            "## What was done",
            "",
            "A layer 'in float' is a convolution by the name of its output; its noise is what"
            " quantising it alone adds to the raw predictions.",
            "",
            notes,
            "",
        ]
    return "\n".join(lines)
