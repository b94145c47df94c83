"""What happens around a run: readings of Triton's statistics, the windows, the verdict."""

from __future__ import annotations

import logging
import time
from typing import Any

import gevent
from locust.runners import WorkerRunner

from loadtest.analysis import Window, agreement, cpu_share, knee_of, missed_slo, summary
from loadtest.options import LoadOptions
from loadtest.plan import Phase
from loadtest.records import Recorder
from loadtest.report import Report, write_report
from loadtest.shapes import PhaseShape
from loadtest.triton_statistics import Counters, StatisticsError, StatisticsReader, gained

__all__ = ["EXIT_DISAGREES", "EXIT_SLO", "Session"]

EXIT_SLO, EXIT_DISAGREES = 1, 3
_CPU_EVERY_S = 1.0
_log = logging.getLogger("loadtest")


class Session:
    """One process's part in a load test: a worker measures, a master or a lone process reports."""

    def __init__(self, environment: Any, recorder: Recorder, protocols: list[str]) -> None:
        self._environment = environment
        self._recorder = recorder
        self._protocols = protocols
        self._reader: StatisticsReader | None = None
        self._before: dict[str, Counters] = {}
        self._readings: list[tuple[Window, dict[str, Counters]]] = []
        self._windows: list[Window] = []
        self._begin = 0.0
        events = environment.events
        events.request.add_listener(recorder.on_request)
        if isinstance(environment.runner, WorkerRunner):
            events.report_to_master.add_listener(self._on_report_to_master)
        else:
            events.test_start.add_listener(self._on_start)
            events.test_stop.add_listener(self._on_stop)
            events.worker_report.add_listener(self._on_worker_report)
        self._cpu = gevent.spawn(self._sample_cpu)

    def on_phase(self, phase: Phase | None) -> None:
        """Begin the next phase, or none: the load ends."""
        now = time.time()
        self._close_window(now)
        if phase is not None:
            window = Window(phase.name, phase.level, now + phase.settle, 0.0)
            self._windows.append(window)
            gevent.spawn_later(phase.settle, self._open_window, window)

    def _open_window(self, window: Window) -> None:
        if window is self._windows[-1] and not window.end and (counters := self._read()):
            window.begin = time.time()
            self._readings.append((window, counters))

    def _close_window(self, now: float) -> None:
        if not self._windows or self._windows[-1].end:
            return
        window = self._windows[-1]
        window.end = now
        before = next((counters for other, counters in self._readings if other is window), None)
        if before and (after := self._read()):
            window.end = time.time()
            window.triton = gained(before, after)

    def _on_start(self, **_: Any) -> None:
        options = LoadOptions.from_namespace(self._environment.parsed_options)
        self._recorder.clear()
        self._windows = self._windows[-1:]  # the shape's first phase has begun already
        self._readings = []
        asked = {"grpc": options.grpc_server, "http": options.http_server}
        default = next((asked[name] for name in self._protocols if name in asked), asked["grpc"])
        try:
            self._reader = StatisticsReader(options.statistics or (default,), options.model)
            self._before = self._reader.read()
        except StatisticsError as error:
            _log.error("%s: the report will not have them", error)
            self._reader, self._before = None, {}
        self._begin = time.time()

    def _on_stop(self, **_: Any) -> None:
        """Make the report: users have stopped, and no request is in flight."""
        self._close_window(time.time())
        if isinstance(self._environment.shape_class, PhaseShape):
            self._environment.shape_class.restart()
        options = LoadOptions.from_namespace(self._environment.parsed_options)
        recorder = self._recorder
        counted = gained(self._before, after) if self._before and (after := self._read()) else {}
        for window in self._windows:
            rows = [row for row in recorder.rows if window.begin <= row[0] < window.end]
            window.figures = summary(rows, max(window.end - window.begin, 1e-9))
            window.generator_cpu = cpu_share(recorder, window.begin, window.end)
        through_gateway = "rest" in self._protocols
        checks = []
        if counted:
            outside = [took for _, took in recorder.outside]
            checks = agreement(
                recorder, counted[options.model], outside, through_gateway=through_gateway
            )
        report = Report(
            options=options,
            protocols=self._protocols,
            begin=self._begin,
            windows=self._windows,
            rows=list(recorder.rows),
            total=counted,
            outside_s=[took for _, took in recorder.outside],
            checks=checks,
            missed=missed_slo(options, self._windows),
            knee=knee_of(self._windows) if options.scenario == "ramp" else None,
        )
        self._windows = []
        path = write_report(report, options.output)
        for line in report.verdict():
            _log.info("%s", line)
        _log.info("Report: %s", path)
        code = EXIT_DISAGREES if report.disagrees() else EXIT_SLO if report.missed else 0
        self._environment.process_exit_code = code
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _read(self) -> dict[str, Counters] | None:
        try:
            return self._reader.read() if self._reader else None
        except StatisticsError as error:
            _log.error("%s", error)
            return None

    def _sample_cpu(self) -> None:
        while True:
            self._recorder.sample_cpu(str(getattr(self._environment.runner, "client_id", "master")))
            gevent.sleep(_CPU_EVERY_S)

    def _on_report_to_master(self, data: dict[str, Any], **_: Any) -> None:
        data["loadtest"] = self._recorder.take()

    def _on_worker_report(self, data: dict[str, Any], **_: Any) -> None:
        if "loadtest" in data:
            self._recorder.add(data["loadtest"])
