"""What is known of all servers at one moment, and the page that shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from status_page.latency import Latency
from status_page.summary import Gateway, Server, Stage

__all__ = ["HEALTHY", "UNHEALTHY", "UNREACHABLE", "Status", "show"]

HEALTHY, UNHEALTHY, UNREACHABLE = 0, 1, 2
_WORDS = {
    HEALTHY: ("healthy", "bold green"),
    UNHEALTHY: ("unhealthy", "bold red"),
    UNREACHABLE: ("not all can be reached", "bold red"),
}
_NONE = "-"


@dataclass(frozen=True)
class Status:
    """Everything at one moment.

    Attributes:
        time: Of day, as text.
        seconds: Over which rates and means are.
        servers: Tritons and launchers.
        stages: Models, over all servers.
        gateways: Those that answer.
        unreachable: What has not answered and should have, in words.
        notes: What else the reader should know.
    """

    time: str
    seconds: float
    servers: Sequence[Server]
    stages: Sequence[Stage]
    gateways: Sequence[Gateway]
    unreachable: Sequence[str]
    notes: Sequence[str] = ()

    @property
    def exit_status(self) -> int:
        """0 if all is well, 1 if a server is unhealthy, 2 if something cannot be reached."""
        if self.unreachable:
            return UNREACHABLE
        well = all(server.healthy is not False for server in self.servers)
        return HEALTHY if well and all(gateway.ready for gateway in self.gateways) else UNHEALTHY

    def as_json(self) -> dict[str, Any]:
        """As a document; `status` says in a word what the exit status does."""
        word = {HEALTHY: "healthy", UNHEALTHY: "unhealthy", UNREACHABLE: "unreachable"}
        return {"status": word[self.exit_status], **asdict(self)}


def show(status: Status) -> RenderableType:
    """The page."""
    word, style = _WORDS[status.exit_status]
    head = Text.assemble(
        "DetServe ", (word, style), f"  {status.time}  rates and means over {status.seconds:.1f} s"
    )
    parts: list[RenderableType] = [head]
    parts += [Text(problem, style="red") for problem in status.unreachable]
    if status.servers:
        parts.append(_servers(status.servers))
    if status.stages:
        parts.append(_stages(status.stages))
    if status.gateways:
        parts.append(_gateways(status.gateways))
    parts += [Text(note, style="dim") for note in status.notes]
    return Group(*parts)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    return table


def _servers(servers: Sequence[Server]) -> Table:
    table = _table(
        "Servers", "address", "models", "restarts", "reloads", "memory", "/dev/shm", "host CPU",
        "host memory", "GPU", "GPU memory",
    )  # fmt: skip
    for server in servers:
        table.add_row(
            server.address,
            _health(server),
            _count(server.restarts),
            _count(server.reloads),
            _bytes(server.own_memory),
            _of(server.shm_used, server.shm_total),
            _NONE if server.cpu is None else f"{server.cpu:.0%}",
            _of(server.memory_used, server.memory_total),
            "\n".join(f"{gpu.utilization:.0%}" for gpu in server.gpus) or "n/a",
            "\n".join(_of(gpu.memory_used, gpu.memory_total) for gpu in server.gpus) or "n/a",
        )
    return table


def _health(server: Server) -> Text:
    if server.healthy is None:
        return Text("not watched", style="yellow")
    if server.healthy:
        return Text("all answer", style="green")
    failing = ", ".join(server.failing) or "Triton"
    return Text(f"failing: {failing}", style="red")


def _stages(stages: Sequence[Stage]) -> Table:
    table = _table(
        "Stages, over all servers", "model", "answered", "failed", "rejected", "req/s", "img/s",
        "mean ms", "p50", "p90", "p99", "queue ms", "waiting", "batch",
    )  # fmt: skip
    for stage in stages:
        latency = stage.latency
        table.add_row(
            stage.model,
            _count(stage.answered),
            _count(stage.failed),
            _count(stage.rejected),
            f"{stage.requests_per_s:.1f}",
            f"{stage.images_per_s:.1f}",
            _number(stage.mean_ms),
            *(_number(value) for value in _quantiles(latency)),
            _number(stage.queue_ms),
            _count(stage.waiting),
            _number(stage.batch),
        )
    if sources := {stage.latency.source for stage in stages if stage.latency}:
        table.caption = f"p50, p90 and p99 in ms: {', '.join(sorted(sources))}"
    return table


def _gateways(gateways: Sequence[Gateway]) -> Table:
    table = _table(
        "Gateways", "address", "answered", "4xx", "errors", "refused", "req/s", "p50", "p90", "p99",
        "at Triton", "open", "cache hits",
    )  # fmt: skip
    for gateway in gateways:
        latency = gateway.latency
        table.add_row(
            gateway.address if gateway.ready else f"{gateway.address} (not ready)",
            _count(gateway.answered),
            _count(gateway.bad),
            _count(gateway.errors),
            _count(gateway.shed),
            f"{gateway.requests_per_s:.1f}",
            *(_number(value) for value in _quantiles(latency)),
            _count(gateway.in_flight),
            _count(gateway.open),
            _NONE if gateway.cache_hits is None else f"{gateway.cache_hits:.0%}",
        )
    if sources := {gateway.latency.source for gateway in gateways if gateway.latency}:
        table.caption = f"p50, p90 and p99 in ms: {'; '.join(sorted(sources))}"
    return table


def _quantiles(latency: Latency | None) -> tuple[float | None, float | None, float | None]:
    return (None, None, None) if latency is None else (latency.p50, latency.p90, latency.p99)


def _count(value: int | None) -> str:
    return _NONE if value is None else f"{value:,}"


def _number(value: float | None) -> str:
    return _NONE if value is None else f"{value:.1f}"


def _bytes(value: float | None) -> str:
    if value is None:
        return _NONE
    return f"{value / 2**30:.1f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"


def _of(used: float | None, total: float | None) -> str:
    if used is None or total is None:
        return _NONE
    return f"{_bytes(used).removesuffix(_bytes(total)[-4:])}/{_bytes(total)}"
