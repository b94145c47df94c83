"""The walk of a model from its file to the public name of a running server."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from assembly import Serving
from detserve.repository import DetectorRepository
from local_server import find_control
from promotion.bundle import build
from promotion.errors import PromotionError
from promotion.exam import Exam, Images
from promotion.gates import Limits
from promotion.generations import Generations
from promotion.model_server import ModelServer
from promotion.prepare import import_model, optimize_model
from promotion.stages import Stages
from promotion.switch import Switch, repository_of

__all__ = ["Order", "Outcome", "promote", "roll_back"]


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be done, and where.

    Attributes:
        server: Address of the running server.
        repository: Its model repository; None for what a server of ours says.
        ensemble: Its public name.
        control_header: Name and value of the header that another Triton wants.
        load_timeout: How long loading a model may take, in seconds.
        images: What to examine with.
        limits: What passes.
        in_process: Whether the file is evaluated before it gets near the server.
        family: Of a file as it was exported.
        source: Where the model comes from, for its metadata.
        optimize: `none`, `clean`, `fp16` or `int8`.
        calibration: Folder of images for int8.
        engine: What serves it; None for what serves the current version.
        serving: How; what is None stays as it is.
        dry_run: Stop before anything is changed, on the server or on disk.
        confirm: Asked before the switch; None for no question.
    """

    server: str = "grpc://127.0.0.1:8001"
    repository: Path | None = None
    ensemble: str = "detection"
    control_header: tuple[str, str] | None = None
    load_timeout: float = 120.0
    images: Images = field(default_factory=Images)
    limits: Limits = field(default_factory=Limits)
    in_process: bool = True
    family: str | None = None
    source: str = ""
    optimize: str = "none"
    calibration: Path | None = None
    engine: str | None = None
    serving: Serving = field(default_factory=Serving)
    dry_run: bool = False
    confirm: Callable[[str], bool] | None = None


@dataclass
class Outcome:
    """How it went; filled while it goes, so that it tells of a failure too.

    Attributes:
        stages: What was done.
        serving: Generation that the public name means; None before that is known.
        models: Its models.
        changed: Whether that is another than at the beginning.
    """

    stages: Stages = field(default_factory=Stages)
    serving: int | None = None
    models: list[str] = field(default_factory=list)
    changed: bool = False

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "changed": self.changed,
            "serving": {"generation": self.serving, "models": self.models},
            "stages": self.stages.to_list(),
        }

    def note(self, generations: Generations, served: int) -> None:
        """Note what is served."""
        self.changed = self.serving is not None and self.serving != served
        self.serving = served
        self.models = generations.models(served)


@contextlib.contextmanager
def _at_work(order: Order, outcome: Outcome) -> Iterator[tuple[ModelServer, Generations, Switch]]:
    """The server and its repository, for us alone, and nothing left of an interrupted promotion."""
    control = find_control(order.server)
    repository = repository_of(control.model_repository if control else None, order.repository)
    header = order.control_header
    if header is None and control is not None and control.secret is not None:
        header = (control.header, control.secret)
    with (
        ModelServer(order.server, header, order.load_timeout) as server,
        Generations.exclusive(repository, order.ensemble) as generations,
    ):
        with outcome.stages.stage("connect") as stage:
            server.check_control(generations.candidate, control)
            outcome.note(generations, generations.current)
            stage.say(
                f"{order.server} serves {order.ensemble} of {repository}:"
                f" generation {generations.current}"
            )
        switch = Switch(server, generations, outcome.stages)
        if not order.dry_run:
            switch.tidy()
        yield server, generations, switch


def promote(model: Path, order: Order, outcome: Outcome) -> None:
    """Make a model what a server answers with, if it is good enough.

    Args:
        model: The detector's file.
        order: How and where.
        outcome: Takes how it goes.

    Raises:
        GateError: The model is not good enough; the server goes on with what it had.
        PromotionError: It cannot be done; likewise.
        RepositoryError: The model cannot be served so.
        EngineError: It does not run here.
        DatasetError: The images or labels cannot be used.
        EvaluationError: The versions cannot be compared.
        DetectionClientError: The server cannot be asked.
    """
    with (
        tempfile.TemporaryDirectory(prefix="detserve-promotion-") as scratch,
        _at_work(order, outcome) as (server, generations, switch),
    ):
        stages = outcome.stages
        exam = Exam(order.server, order.ensemble, order.images, order.limits, stages)
        file, info = import_model(model, order.family, order.source, Path(scratch), stages)
        current = DetectorRepository(generations.repository, order.ensemble)
        engine = order.engine or current.backend
        if info is not None:
            file = optimize_model(
                file, order.optimize, order.calibration, engine, Path(scratch), stages
            )
        exam.ask_current()
        if order.in_process and info is not None:
            exam.in_process(file, engine)
        proven = False
        try:
            number = _build(file, order, engine, server, generations, stages)
            if order.dry_run:
                return
            with stages.stage("load") as stage:
                switch.try_out(number)
                stage.say(f"loaded beside the current one, as {generations.candidate}")
            exam.candidate(generations.candidate)
            if order.confirm is not None and not order.confirm(
                f"Make generation {number} what {order.ensemble} answers with?"
            ):
                raise PromotionError("not confirmed")
            switch.to(number, exam.public)
            proven = True
        finally:
            if not order.dry_run:
                _end(generations, switch, outcome, "clear up" if proven else "discard")


def roll_back(order: Order, outcome: Outcome) -> None:
    """Make the generation before the current one what a server answers with again.

    Args:
        order: How and where.
        outcome: Takes how it goes.

    Raises:
        PromotionError: There is none, or it does not do well; the server goes on with what it had.
        DetectionClientError: The server cannot be asked.
    """
    with _at_work(order, outcome) as (_, generations, switch):
        number = generations.previous
        if number is None:
            raise PromotionError(
                f"{order.ensemble} has no generation before {generations.current} to go back to"
            )
        exam = Exam(order.server, order.ensemble, order.images, order.limits, outcome.stages)
        if order.dry_run:
            with outcome.stages.stage("dry run") as stage:
                stage.say(f"would go back to generation {number}: {generations.models(number)}")
            return
        try:
            with outcome.stages.stage("load") as stage:
                switch.try_out(number)
                stage.say(f"generation {number} beside the current one")
            exam.candidate(generations.candidate)
            switch.to(number, exam.public)
        finally:
            _end(generations, switch, outcome, "clear up", is_return=True)


def _build(
    file: Path,
    order: Order,
    engine: str,
    server: ModelServer,
    generations: Generations,
    stages: Stages,
) -> int:
    with stages.stage("build") as stage, generations.staging() as folder:
        served = max(server.states().get(order.ensemble, {}), default=0)
        number = generations.next_number(served)
        bundle = build(generations, file, number, folder, engine=engine, serving=order.serving)
        stage.say(
            f"generation {number}: {', '.join(bundle.made)}"
            + (f"; as before: {', '.join(bundle.shared)}" if bundle.shared else ""),
            generation=number,
            models=list(bundle.made),
        )
        if not order.dry_run:
            about = {"file": file.name, "engine": engine}
            generations.stage(number, bundle.config, bundle.made, folder, about)
    return number


def _end(
    generations: Generations,
    switch: Switch,
    outcome: Outcome,
    name: str,
    *,
    is_return: bool = False,
) -> None:
    """Leave loaded what is served, and on disk that and the generation before it."""
    with outcome.stages.stage(name) as stage:
        outcome.note(generations, generations.current)
        still: list[str] = []
        try:
            served = switch.served()
            if served not in (generations.current, generations.said):
                stage.say(
                    f"the server still has generation {served}, and the repository"
                    f" {generations.current}: nothing is unloaded or removed"
                )
                if served is not None and generations.knows(served):
                    outcome.note(generations, served)
                return
            still = switch.unload_unused()
        except PromotionError as error:  # what it was that went wrong before counts more
            stage.say(f"nothing was unloaded: {error}")
        generations.hide_candidate()
        if not is_return:  # where it is, what was given up stays for another look
            generations.clear_up()
        for model in still:
            stage.say(f"{model} still answers requests; it goes with the last of them")
        stage.say(f"{generations.ensemble} is generation {generations.current}")
