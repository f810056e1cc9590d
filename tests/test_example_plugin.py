"""The example package with an encoder and a source: installed, and used as objects."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

import pixmatcher

PACKAGE = Path(__file__).parents[1] / "examples" / "plugin"
COLOURS = {
    "sea": ("blue", "beige"),
    "lagoon": ("blue", "teal"),
    "rose": ("crimson", "green"),
    "lawn": ("lime", "green"),
}
"""Of the upper two thirds and of the rest of each image."""


def run(*command: str | os.PathLike[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command that must succeed."""
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=120, check=False, env=dict(environment)
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """The environment of processes in which the package is installed, built from its own pyproject.toml."""
    site = tmp_path_factory.mktemp("site")
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    run("-m", "pip", "install", *options, "--target", site, PACKAGE, environment=os.environ)
    assert (site / "pixmatcher_colours" / "encoder.py").is_file()
    checkout = Path(pixmatcher.__file__).parents[1]
    return {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{checkout}"}


@pytest.fixture
def album(tmp_path: Path) -> Path:
    for name, (upper, lower) in COLOURS.items():
        image = Image.new("RGB", (60, 60), upper)
        image.paste(lower, (0, 40, 60, 60))
        image.save(tmp_path / f"{name}.png")
    photos = [{"file": f"{name}.png", "place": "Nice" if name in ("sea", "lagoon") else "Kew"} for name in COLOURS]
    photos.append({"file": "lost.png"})
    (tmp_path / "album.json").write_text(json.dumps({"photos": photos}))
    return tmp_path / "album.json"


def test_from_the_command_line(installed: Mapping[str, str], album: Path) -> None:
    def command(*arguments: str | os.PathLike[str], status: int = 0) -> str:
        program = [sys.executable, "-m", "pixmatcher", *arguments]
        done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False, env=dict(installed))
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    collection = album.parent / "c"
    # The missing image is reported, and the others are indexed.
    assert "lost.png" in command("index", f"album:{album}", "--encoder", "colours", "-c", collection, status=1)
    found = json.loads(command("search", album.parent / "sea.png", "-c", collection, "-k", "2", "--json"))
    assert [Path(hit["uri"]).name for hit in found["hits"]] == ["sea.png", "lagoon.png"]
    assert (found["space"], found["hits"][0]["label"]) == ("colours", "Nice")
    found = json.loads(command("search", "crimson", "-c", collection, "-k", "1", "--json"))
    assert Path(found["hits"][0]["uri"]).name == "rose.png"
    assert "names no colour" in command("search", "happiness", "-c", collection, status=2)
    (album.parent / "lawn.png").unlink()
    assert "1 removed" in command("index", "-c", collection, status=1)
    assert "colours" in command("models", "list")
    assert "album:" in command("sources")


def test_as_objects(album: Path) -> None:
    """Without an installation: the package only has to be importable."""
    code = """
import sys
from pathlib import Path
from pixmatcher import Collection, Query, classify, index, search
from pixmatcher_colours import AlbumSource, ColourEncoder

album = Path(sys.argv[1])
colours = ColourEncoder()
report = index(AlbumSource(str(album)), album.parent / "c", encoders=[colours])
assert (report.added, [failure.reason for failure in report.failures]) == (4, ["missing"]), report
with Collection.open(album.parent / "c") as collection:
    query = Query(image=album.parent / "lagoon.png")
    hits = search(collection, query, k=2, encoders=[colours]).hits
    assert [Path(hit.item.uri).stem for hit in hits] == ["lagoon", "sea"]
    assert abs(hits[0].score - 1) < 0.01
    assert classify(collection, query, k=1, encoders=[colours]).categories[0].label == "Nice"
    assert colours.encode_texts([])["colours"].shape == (0, 166)
"""
    checkout = Path(pixmatcher.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{PACKAGE}{os.pathsep}{checkout}", "PYTHONDONTWRITEBYTECODE": "1"}
    run("-c", code, album, environment=environment)
