"""What can go wrong, and the packages that may be missing."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable

__all__ = ["ExportError", "require"]


class ExportError(ValueError):
    """The export is refused; the message says why, and what would do."""


def require(packages: Iterable[str]) -> None:
    """See that packages of the extra `export` are there.

    Raises:
        ExportError: Some are not.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(
            f"{', '.join(missing)} not installed: pip install 'detserve[export]'"
            " (in a clone: pip install -e '.[export]')"
        )
