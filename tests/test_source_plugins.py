"""Kinds of sources that other packages declare as entry points, good ones and broken ones."""

from __future__ import annotations

import sys
from importlib import invalidate_caches
from pathlib import Path

import pytest

from pixmatcher import SourceError, index
from pixmatcher.sources import open_source, source_kinds
from pixmatcher.sources.folder import FolderSource

MODULE = '''
from pixmatcher.sources.folder import FolderSource

class CameraSource(FolderSource):
    """Images of a camera.

    Further lines are not shown.
    """

    example = "camera:/mnt/card"

    def __init__(self, rest):
        super().__init__(rest)
        self.spec = f"camera:{self.spec}"

class WrongSpec(FolderSource):
    pass

def not_a_source(rest):
    return object()

def failing(rest):
    raise ValueError("no card")
'''
POINTS = {
    "camera": "camera_source:CameraSource",
    "wrongspec": "camera_source:WrongSpec",
    "object": "camera_source:not_a_source",
    "failing": "camera_source:failing",
    "lost": "camera_source_that_does_not_exist:Source",
}


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that declares sources is installed; returns an empty folder."""
    site = tmp_path / "site"
    info = site / "camera_source-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "camera_source.py").write_text(MODULE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: camera-source\nVersion: 1.0\n")
    points = "\n".join(f"{name} = {value}" for name, value in POINTS.items())
    (info / "entry_points.txt").write_text(f"[pixmatcher.sources]\n{points}\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(sys.modules, "camera_source", raising=False)
    invalidate_caches()
    card = tmp_path / "card"
    card.mkdir()
    return card


def test_a_declared_kind_is_opened_by_its_prefix(plugins: Path) -> None:
    source = open_source(f"camera:{plugins}")
    assert isinstance(source, FolderSource)
    assert (type(source).__name__, source.spec) == ("CameraSource", f"camera:{plugins}")
    kinds = {kind.prefix: kind for kind in source_kinds()}
    assert (kinds["camera"].description, kinds["camera"].example) == ("Images of a camera.", "camera:/mnt/card")
    assert kinds["camera"].open(str(plugins)).spec == source.spec
    assert "cannot be imported" in kinds["lost"].description


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        ("wrongspec", "must begin with wrongspec:"),
        ("object", "object is not a source, it has no member 'spec'"),
        ("failing", r"cannot be opened \(ValueError: no card\)"),
        ("lost", "camera-source declares 'lost'.*cannot be imported"),
        ("unknown", "does not exist: name a folder"),
    ],
)
def test_broken_kinds_are_errors_of_one_sentence(plugins: Path, prefix: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        open_source(f"{prefix}:{plugins}")


def test_an_object_that_is_not_a_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is not a source, it has no member 'spec'"):
        index(object(), tmp_path / "c")  # type: ignore[arg-type]
    assert not (tmp_path / "c").exists()
