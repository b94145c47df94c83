"""A plain Flask service: one queue, and one worker thread that owns the detector's session.

Requests are taken by Werkzeug's threaded server, as `Flask.run` does. A thread a request reads the
body, queues it, waits, and answers; the worker decodes, detects and suppresses overlaps.
"""

from __future__ import annotations

import logging
import queue
import threading
from concurrent.futures import Future
from typing import Any

from flask import Flask, request
from werkzeug.serving import make_server

from detserve.decoding import ImageError
from detserve.detections import Detections
from peers.service import Parts, as_json, end_with_parent, service_arguments

__all__ = ["make_app"]

_ANSWER_TIMEOUT_S = 60

Job = tuple[bytes, Future[Detections]]


def _work(jobs: queue.Queue[Job], parts: Parts) -> None:
    while True:
        image, answer = jobs.get()
        try:
            pixels, geometry = parts.decode(image)
            answer.set_result(parts.select(parts.infer(pixels[None])[0], geometry))
        except ImageError as error:
            answer.set_exception(error)


def make_app(parts: Parts) -> Flask:
    """The service; its worker thread has started."""
    app = Flask(__name__)
    jobs: queue.Queue[Job] = queue.Queue()
    threading.Thread(target=_work, args=(jobs, parts), daemon=True).start()

    @app.post("/predict")
    def predict() -> tuple[dict[str, Any], int]:
        answer: Future[Detections] = Future()
        jobs.put((request.get_data(), answer))
        try:
            return as_json(answer.result(_ANSWER_TIMEOUT_S)), 200
        except ImageError as error:
            return {"error": str(error)}, 400

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    return app


def main() -> None:
    """Serve until this process is ended."""
    arguments = service_arguments(__doc__).parse_args()
    end_with_parent()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line a request costs it time
    app = make_app(Parts.load(arguments.model_repository, arguments.threads))
    make_server("127.0.0.1", arguments.port, app, threaded=True).serve_forever()


if __name__ == "__main__":
    main()
