"""The dashboard and its provisioning, as far as they can be checked without Grafana."""

from __future__ import annotations

import re
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import yaml

from tests.dashboard import DASHBOARD, panels, queries

GRAFANA = Path(__file__).resolve().parents[2] / "deploy" / "grafana"
COLUMNS = 24


def area(panel: dict[str, Any]) -> tuple[int, int, int, int]:
    place = panel["gridPos"]
    return place["x"], place["y"], place["x"] + place["w"], place["y"] + place["h"]


def test_the_ids_are_unique() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids)) > 30
    assert isinstance(DASHBOARD["schemaVersion"], int)
    assert DASHBOARD["uid"] == "detserve"


def test_no_panel_covers_another_or_leaves_the_grid() -> None:
    for one, other in combinations(DASHBOARD["panels"], 2):
        left, top, right, bottom = area(one)
        x, y, x_end, y_end = area(other)
        apart = right <= x or x_end <= left or bottom <= y or y_end <= top
        assert apart, (one["title"], other["title"])
    assert all(0 <= area(panel)[0] < area(panel)[2] <= COLUMNS for panel in DASHBOARD["panels"])


def test_the_rows_are_those_of_the_documentation() -> None:
    rows = list(dict.fromkeys(row for row, _ in panels()))
    assert rows == [
        "Overview", "Traffic", "Errors", "Latency", "Queues and batches by stage", "Gateway",
        "Launcher", "Host", "GPU",
    ]  # fmt: skip


def test_every_panel_asks_the_provisioned_prometheus() -> None:
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["current"]["value"] == source["uid"]
    expected = {"type": source["type"], "uid": "${datasource}"}
    for _, panel in panels():
        assert panel["datasource"] == expected
        assert panel["targets"]
        assert all(target["datasource"] == expected for target in panel["targets"])
        letters = [target["refId"] for target in panel["targets"]]
        assert all(before < after for before, after in pairwise(letters))


def test_every_variable_of_a_query_is_known() -> None:
    """What is left of the dollars after the substitution is one that nobody fills in."""
    assert [where for where, expression in queries() if "$" in expression] == []
    used = set(re.findall(r"\$(\w+)", " ".join(str(panel["targets"]) for _, panel in panels())))
    assert used == {"__rate_interval", "ensemble"}


def test_dashboards_are_looked_for_where_the_containers_have_them() -> None:
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/detserve.yml").read_text())[
        "providers"
    ]
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"
