"""Downloading one file over HTTP: resumed where it broke off, checked before it is there."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import json
import random
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

__all__ = ["DownloadError", "download", "sha256_of"]

_CHUNK = 1 << 18
_RETRY_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_LONGEST_PAUSE = 60.0  # seconds
# What a connection raises in mid-answer, beside OSError.
_BROKEN = (OSError, http.client.HTTPException)


class DownloadError(RuntimeError):
    """The file could not be had; the message says why."""


class _BrokenOffError(Exception):
    """The connection ended early; worth another attempt."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


def sha256_of(path: Path) -> str:
    """A file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass
class _Part:
    """What has been downloaded so far, and of which version of the file."""

    path: Path
    url: str
    trusted: bool  # a hash will tell whether the pieces fit

    @property
    def _notes(self) -> Path:
        return self.path.with_name(self.path.name + ".json")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def headers(self) -> dict[str, str]:
        """What to ask for, to go on from here; nothing special if that is not safe."""
        try:
            notes = json.loads(self._notes.read_text())
        except (OSError, ValueError):
            notes = {}
        validator = notes.get("validator", "")
        if not self.size or notes.get("url") != self.url or not (validator or self.trusted):
            return {}
        condition = {"If-Range": validator} if validator else {}
        return {"Range": f"bytes={self.size}-", **condition}

    def begin(self, answer: Any) -> None:
        """Start anew with an answer that is the whole file."""
        etag = answer.headers.get("ETag", "")
        validator = etag if etag.startswith('"') else answer.headers.get("Last-Modified", "")
        self.path.write_bytes(b"")
        self._notes.write_text(json.dumps({"url": self.url, "validator": validator}))

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self._notes.unlink(missing_ok=True)

    def become(self, target: Path) -> None:
        self.path.replace(target)
        self._notes.unlink(missing_ok=True)


def download(
    url: str,
    target: Path,
    *,
    sha256: str = "",
    size: int = 0,
    timeout: float = 30.0,
    attempts: int = 5,
    first_pause: float = 1.0,
) -> Path:
    """Download a file; it is there only when it is complete and, if told, the right one.

    What came before a failure or an interruption stays beside the target as `NAME.part` and the
    next call goes on from there, if the server can and still has the same version.

    Args:
        url: Where it is; proxies and certificates as `urllib` has them from the environment.
        target: Where it goes; a file there is replaced.
        sha256: What its SHA-256 must be; empty for any.
        size: Its size in bytes, for the progress bar; 0 if not known.
        timeout: Seconds without a byte after which a connection counts as broken.
        attempts: How many attempts in a row may bring nothing.
        first_pause: Seconds before the second attempt; the pauses double.

    Returns:
        `target`.

    Raises:
        DownloadError: It cannot be had, or is another file than `sha256` says.
        OSError: It cannot be written.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise DownloadError(f"{url!r} is no http:// or https:// address")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = _Part(target.with_name(target.name + ".part"), url, trusted=bool(sha256))
    with _alone(target):
        resumed = part.size > 0
        _fill(part, size, timeout, attempts, first_pause)
        if sha256 and resumed and sha256_of(part.path) != sha256:
            part.discard()  # perhaps only the pieces do not fit
            _fill(part, size, timeout, attempts, first_pause)
        found = sha256_of(part.path)
        if sha256 and found != sha256:
            part.discard()
            raise DownloadError(
                f"{url} is not the file wanted: its SHA-256 is {found}, wanted is {sha256}"
            )
        part.become(target)
    return target


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    """See that no other process downloads the same file."""
    lock = target.with_name(f".{target.name}.lock")
    while True:
        with lock.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise DownloadError(f"another process is downloading {target}") from None
            if not lock.exists() or not lock.samefile(f"/proc/self/fd/{file.fileno()}"):
                continue  # who had it before removed it just now
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


def _fill(part: _Part, size: int, timeout: float, attempts: int, first_pause: float) -> None:
    """Attempt until the part is complete; an attempt that brought something starts the count."""
    failed, most = 0, part.size
    # `disable=None`: a bar on a terminal, silence in a log.
    with tqdm(
        total=size or None, desc=part.path.stem, unit="B", unit_scale=True, disable=None
    ) as bar:
        while True:
            try:
                return _attempt(part, bar, timeout)
            except _BrokenOffError as error:
                failed = 1 if part.size > most else failed + 1
                most = max(most, part.size)
                if failed >= attempts:
                    raise DownloadError(
                        f"{part.url}: {error}, {attempts} times in a row; what has come"
                        f" ({part.size:,} bytes) is kept, run it again to go on"
                    ) from error
                pause = max(error.pause, first_pause * 2 ** (failed - 1) * random.uniform(0.5, 1))
                time.sleep(min(pause, _LONGEST_PAUSE))


def _attempt(part: _Part, bar: tqdm[Any], timeout: float) -> None:
    request = urllib.request.Request(part.url, headers={"User-Agent": "detserve", **part.headers()})
    try:
        answer = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        with error:
            _refused(error, part)
        return  # it was complete already
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise DownloadError(
                f"{part.url}: its certificate is not trusted ({error.reason.verify_message});"
                " SSL_CERT_FILE names a file of further authorities"
            ) from error
        raise _BrokenOffError(f"no connection ({error.reason})") from error
    except _BROKEN as error:
        raise _BrokenOffError(f"no connection ({error})") from error
    with answer:
        total = _start(answer, part)
        if total is not None:
            bar.total = total
        bar.n = part.size
        bar.refresh()
        with part.path.open("ab") as file:
            while chunk := _read(answer):
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and part.size < total:
        raise _BrokenOffError(f"the connection ended after {part.size:,} of {total:,} bytes")
    if total is not None and part.size > total:
        part.discard()
        raise _BrokenOffError(f"more came than the {total:,} bytes announced")


def _start(answer: Any, part: _Part) -> int | None:
    """See where an answer begins; return the whole file's size if it tells."""
    length = answer.headers.get("Content-Length")
    if answer.status == http.client.PARTIAL_CONTENT:
        header = answer.headers.get("Content-Range", "")
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", header)
        if found is None or int(found[1]) != part.size:
            part.discard()
            raise _BrokenOffError(f"the server resumed at another place ({header!r})")
        return None if found[2] == "*" else int(found[2])
    part.begin(answer)  # the first attempt, no ranges here, or another version
    return int(length) if length is not None else None


def _read(answer: Any) -> bytes:
    try:
        chunk: bytes = answer.read1(_CHUNK)  # what is there: nothing is lost when it breaks
    except _BROKEN as error:
        raise _BrokenOffError(f"the connection broke ({error or type(error).__name__})") from error
    return chunk


def _refused(error: urllib.error.HTTPError, part: _Part) -> None:
    """Raise what a status means; return where it means that nothing is missing."""
    if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
        total = error.headers.get("Content-Range", "").rpartition("/")[2]
        if total.isdecimal() and int(total) == part.size:
            return
        part.discard()
        raise _BrokenOffError("the file has become shorter")
    if error.code in _RETRY_STATUS:
        after = error.headers.get("Retry-After", "")
        pause = float(after) if after.isdecimal() else 0.0
        raise _BrokenOffError(f"HTTP {error.code} {error.reason}", pause)
    raise DownloadError(f"{part.url}: HTTP {error.code} {error.reason}")
