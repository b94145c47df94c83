"""The progress of a build."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm

__all__ = ["make_progress"]


def make_progress(trt: Any, *, show: bool) -> Any:
    """A progress monitor of the module's kind that draws a bar on a terminal.

    Returns:
        An object with `close()`, `stop()`, which ends the build, and `stopped`.
    """

    class Progress(trt.IProgressMonitor):  # type: ignore[misc]
        """Counts the steps of all phases, which TensorRT nests and announces as it goes."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.stopped = False
            self._total = 0
            self._left: dict[str, int] = {}
            self._bar = tqdm(
                total=0, desc="building", unit="step", disable=None if show else True, leave=False
            )

        def phase_start(self, phase_name: str, _parent: str | None, num_steps: int) -> None:
            self._left[phase_name] = num_steps
            self._total += num_steps
            self._bar.total = self._total
            self._bar.set_description(phase_name)

        def step_complete(self, phase_name: str, _step: int) -> bool:
            self._left[phase_name] = max(0, self._left.get(phase_name, 0) - 1)
            self._bar.update()
            return not self.stopped  # False asks TensorRT to give up

        def phase_finish(self, phase_name: str) -> None:
            self._bar.update(self._left.pop(phase_name, 0))

        def stop(self) -> None:
            self.stopped = True

        def close(self) -> None:
            self._bar.close()

    return Progress()
