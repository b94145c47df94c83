"""Which models of a repository no ensemble uses: a promotion's candidates, and replaced models.

`scripts/promote.py` keeps a record beside each ensemble's configuration, of the models that its
generations have had. Those that no ensemble has as a step now are no part of what is served:
they are neither loaded at the start nor watched, so that a bad candidate cannot harm the rest.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

__all__ = ["CANDIDATE_OF", "RECORD", "unused_models"]

RECORD = "generations.json"
CANDIDATE_OF = "candidate_of"  # parameter of the ensemble under which a promotion tries a model

_STEP = re.compile(r"""\bmodel_name\s*:\s*["']([^"']+)["']""")


def unused_models(repository: Path) -> frozenset[str]:
    """The models that were or may become part of an ensemble, and are not part of any now."""
    known: set[str] = set()
    for record in repository.glob(f"*/{RECORD}"):
        try:
            known.update(json.loads(record.read_text(encoding="utf-8"))["models"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not ours
    used: set[str] = set()
    if known:
        for config in repository.glob("*/config.pbtxt"):
            text = config.read_text(encoding="utf-8")
            steps = _STEP.findall(text)
            if steps and CANDIDATE_OF not in text:
                used.update((config.parent.name, *steps))
    return frozenset(known - used)
