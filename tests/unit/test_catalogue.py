"""The catalogue and the lock file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from catalogue import CatalogueError, Entry, Lock, read_catalogue
from families import FAMILIES

HASH = "ab" * 32
GOOD = f"""
[tiny]
title = "Tiny"
url = "https://host/tiny.onnx"
sha256 = "{HASH}"
family = "yolox"
input = [416, 416]
map = 0.25
license = "Apache-2.0"
source = "https://host"
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "catalogue.toml"
    path.write_text(text)
    return path


def test_every_entry_can_be_imported_and_is_freely_licensed() -> None:
    catalogue = read_catalogue()
    assert {"yolox_nano", "yolox_tiny", "yolox_s", "yolox_m", "yolox_l", "yolox_x"} <= set(
        catalogue
    )
    for entry in catalogue.values():
        assert entry.family in FAMILIES
        assert entry.license in ("Apache-2.0", "MIT", "BSD-3-Clause")
        assert entry.source.startswith("https://")
        assert 0.1 < entry.map < 0.7
        assert min(entry.input) >= 32
    hashes = [entry.sha256 for entry in catalogue.values() if entry.sha256]
    assert len(set(hashes)) == len(hashes)
    assert len({entry.url for entry in catalogue.values()}) == len(catalogue)


def test_an_entry(tmp_path: Path) -> None:
    assert read_catalogue(write(tmp_path, GOOD)) == {
        "tiny": Entry(
            name="tiny",
            title="Tiny",
            url="https://host/tiny.onnx",
            sha256=HASH,
            family="yolox",
            input=(416, 416),
            map=0.25,
            license="Apache-2.0",
            source="https://host",
        )
    }


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("[tiny]", "[tiny", "cannot be read"),
        ("[tiny]", '["../tiny"]', "cannot be the name of a file"),
        ('title = "Tiny"', "", "title"),
        ("map = 0.25", "map = 0.25\nspeed = 3", "speed"),
        ("https://host/tiny", "http://host/tiny", "must be https://"),
        (HASH, HASH[:-1], "has the sha256"),
    ],
)
def test_a_damaged_catalogue(tmp_path: Path, before: str, after: str, message: str) -> None:
    assert before in GOOD
    with pytest.raises(CatalogueError, match=message):
        read_catalogue(write(tmp_path, GOOD.replace(before, after)))
    with pytest.raises(CatalogueError, match="cannot be read"):
        read_catalogue(tmp_path / "gone.toml")


def test_the_lock_remembers_the_first(tmp_path: Path) -> None:
    (pinned,) = read_catalogue(write(tmp_path, GOOD)).values()
    (free,) = read_catalogue(write(tmp_path, GOOD.replace(f'sha256 = "{HASH}"', ""))).values()
    lock = Lock(tmp_path / "new" / "lock.json")
    assert (lock.sha256_of(pinned), lock.sha256_of(free)) == (HASH, "")
    lock.record(free, "cd" * 32, 5, "https://host/tiny.onnx")
    lock.record(free, "ef" * 32, 6, "elsewhere")
    assert lock.sha256_of(free) == "cd" * 32
    assert lock.sha256_of(pinned) == HASH  # the catalogue's word is first
    assert json.loads(lock.path.read_text()) == {
        "tiny": {"sha256": "cd" * 32, "size": 5, "origin": "https://host/tiny.onnx"}
    }
    for text in ("{", "[]", '{"tiny": {}}', '{"tiny": {"sha256": "short"}}'):
        lock.path.write_text(text)
        with pytest.raises(CatalogueError, match="is damaged"):
            lock.sha256_of(free)
