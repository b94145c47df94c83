"""Grafana's dashboard, as the tests read it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["DASHBOARD", "panels", "queries"]

DASHBOARD: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "deploy" / "grafana" / "dashboards" / "detserve.json").read_text()
)
_VARIABLES = {"$__rate_interval": "20s", "$ensemble": "detection"}


def panels() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every panel, with the title of the row that it is in."""
    row = ""
    for panel in DASHBOARD["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
        else:
            yield row, panel


def queries() -> list[tuple[str, str]]:
    """Every query of the dashboard, with its variables filled in, by where it stands."""
    found = []
    for row, panel in panels():
        for target in panel["targets"]:
            expression = target["expr"]
            for variable, value in _VARIABLES.items():
                expression = expression.replace(variable, value)
            found.append((f"{row}: {panel['title']} {target['refId']}", expression))
    for annotation in DASHBOARD["annotations"]["list"]:
        found.append((f"annotation: {annotation['name']}", annotation["expr"]))
    return found
