"""The command's arguments: which images they stand for, and where pictures are saved."""

from __future__ import annotations

from pathlib import Path

import pytest

from detection_client._files import Source, expand_arguments, output_paths


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (
        "b.JPG",
        "a.png",
        "notes.txt",
        ".hidden.jpg",
        "[x].jpg",
        "sub/c.webp",
        "sub/deep/a.png",
        ".cache/d.jpg",
    ):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "nothing").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["-"], ["-"]),
        (["photos/notes.txt"], ["photos/notes.txt"]),  # named, so taken
        (["photos/[x].jpg"], ["photos/[x].jpg"]),  # a file's name before a pattern
        (
            ["photos"],
            [
                "photos/[x].jpg",
                "photos/a.png",
                "photos/b.JPG",
                "photos/sub/c.webp",
                "photos/sub/deep/a.png",
            ],
        ),
        (["photos/*.png", "photos/a.png"], ["photos/a.png", "photos/a.png"]),
        (["photos/**/*.png"], ["photos/a.png", "photos/sub/deep/a.png"]),
        (["photos/s*"], ["photos/sub/c.webp", "photos/sub/deep/a.png"]),
        (["photos/sub/**"], ["photos/sub/c.webp", "photos/sub/deep/a.png"]),
        (["./photos/a.p?g"], ["./photos/a.png"]),
    ],
)
def test_found(arguments: list[str], names: list[str]) -> None:
    sources = expand_arguments(arguments)
    assert [source.name for source in sources] == names
    assert not any(source.problem for source in sources)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("argument", "problem"),
    [
        ("nope.jpg", "there is no such file or folder"),
        ("", "there is no such file or folder"),
        ("nothing", "the folder holds no images"),
        ("photos/*.gif", "the pattern matches no image"),
        ("noth*", "the pattern matches no image"),
    ],
)
def test_not_found(argument: str, problem: str) -> None:
    assert expand_arguments(["photos/a.png", argument])[1] == Source(argument, problem)


def test_pictures_keep_their_names_and_none_replaces_another() -> None:
    names = ["a/x.jpg", "b/x.jpg", "x.JPG", "x-2.jpg", "y.webp", "y.png", "-", "z.jpeg", "z"]
    paths = output_paths([Source(name) for name in names], Path("out"))
    assert [path.name for path in paths] == [
        "x.jpg",
        "x-2.jpg",
        "x-3.JPG",
        "x-2-2.jpg",
        "y.png",
        "y-2.png",
        "stdin.png",
        "z.jpeg",
        "z.png",
    ]
    assert {path.parent for path in paths} == {Path("out")}


def test_pictures_do_not_replace_the_images(folder: Path) -> None:
    sources = expand_arguments(["photos"])
    with pytest.raises(ValueError, match="would replace"):
        output_paths(sources, folder / "photos")
    assert output_paths(sources, folder / "photos" / "out")
