"""A live window with the annotated frames, where there is a display."""

from __future__ import annotations

import math
from typing import Any

import numpy.typing as npt
from PIL import Image

__all__ = ["NoDisplayError", "Window"]


class NoDisplayError(Exception):
    """There is no display, or Python has no Tk."""


class Window:
    """One window for all the streams, side by side; to be used in the main thread.

    Raises:
        NoDisplayError: No window can be opened here.
    """

    def __init__(self, streams: int) -> None:
        try:
            import tkinter

            from PIL import ImageTk
        except ImportError as error:
            raise NoDisplayError(
                "a window needs Python's tkinter (Debian: python3-tk); leave --show out,"
                " or write the video with --save"
            ) from error
        try:
            self._root = tkinter.Tk()
        except tkinter.TclError as error:
            raise NoDisplayError(
                f"there is no display for a window ({error}); leave --show out,"
                " or write the video with --save"
            ) from error
        self.closed = False
        self._error = tkinter.TclError
        self._make_photo = ImageTk.PhotoImage
        self._photos: dict[int, Any] = {}
        columns = math.ceil(math.sqrt(streams))
        self._root.title("detect")
        self._root.protocol("WM_DELETE_WINDOW", self.close)
        self._root.bind("<Escape>", lambda _: self.close())
        self._labels = [tkinter.Label(self._root) for _ in range(streams)]
        for place, label in enumerate(self._labels):
            label.grid(row=place // columns, column=place % columns)
        screen = self._root.winfo_screenwidth(), self._root.winfo_screenheight()
        self._room = tuple(int(side * 0.9 / columns) for side in screen)

    def show(self, stream: int, pixels: npt.NDArray[Any]) -> None:
        """Show a stream's next frame, uint8 [H, W, 3] BGR."""
        if self.closed:
            return
        picture = Image.fromarray(pixels[:, :, ::-1])
        picture.thumbnail((self._room[0], self._room[1]))
        # Tk keeps no reference of its own.
        self._photos[stream] = self._make_photo(picture)
        self._labels[stream].configure(image=self._photos[stream])
        self.update()

    def update(self) -> None:
        """Let the window react to its user."""
        try:
            if not self.closed:
                self._root.update()
        except self._error:  # closed by its user meanwhile
            self.closed = True

    def close(self) -> None:
        """Close the window."""
        if not self.closed:
            self.closed = True
            self._photos.clear()
            self._root.destroy()
