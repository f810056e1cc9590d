"""Maps as a picture and as a page: their content, hostile names, and the command that draws them."""

from __future__ import annotations

import base64
import json
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixmatcher import Collection, Item, PixMatcherError, QueryError, index
from pixmatcher.maps.groups import color_groups
from pixmatcher.maps.interactive import map_figure
from pixmatcher.maps.plot import draw_map, save_map_plot
from pixmatcher.maps.projection import Projection, project
from pixmatcher.maps.titles import map_title
from support import TinyEncoder, cli, paint, paint_many

HOSTILE = "</script><img src=x onerror=\"document.title='owned'\">{{map}} <b>&amp;\u202e$x^2$\n"


def projection_of(labels: list[str | None], clusters: list[int] | None = None) -> Projection:
    """Return a map of items with these labels, at random positions."""
    count = len(labels)
    points = np.random.default_rng(0).normal(size=(count, 2)).astype(np.float32)
    numbers = np.array(clusters or [0] * count, np.int32)
    ids = np.arange(1, count + 1)
    axes = np.zeros((3, 0), np.float32)
    return Projection("tsne", "visual", ids, points, numbers, labels, count, "2026-01-02", 0, 0, 0, True, axes)


@pytest.fixture
def photos(tmp_path: Path, tiny: TinyEncoder) -> Iterator[Collection]:
    """Twenty painted images and one of a hostile name in a folder of a hostile name, with hostile labels."""
    folder = tmp_path / "{{map}}<b>"
    paint_many(folder, 20)
    paint(folder / f"{HOSTILE.replace('/', '')}.png", 99, kind="png")
    index(folder, encoders=["tiny"])
    with Collection.open(folder) as collection:
        with collection._catalog.writing():
            collection._catalog.connection.execute("UPDATE items SET label = ? WHERE id % 2", (HOSTILE,))
        yield collection


# Colours


def test_only_the_most_frequent_of_many_labels_are_in_the_legend() -> None:
    labels = [f"label {n:03}" for n in range(200) for _ in range(1 + (n < 5))] + [None] * 7
    groups = color_groups(projection_of(labels), None, {"label 003": "three"})
    assert {group.name for group in groups[:5]} == {"label 000", "label 001", "label 002", "three", "label 004"}
    assert len(groups) == 22
    assert [(group.name, len(group.members), group.named) for group in groups[20:]] == [
        ("180 other labels", 180, False),
        ("no label", 7, False),
    ]
    assert [(group.kind, group.number) for group in groups[19:]] == [("label", 0), ("others", 180), ("none", 0)]
    assert len({group.color for group in groups}) == 22
    members = np.concatenate([group.members for group in groups])
    assert sorted(members.tolist()) == list(range(len(labels)))
    assert {labels[n] for n in groups[21].members} == {None}
    # Equally frequent labels are not chosen by name, because neighbours may be of one kind.
    assert [group.name for group in groups[5:20]] != [f"label {n:03}" for n in range(5, 20)]


def test_without_labels_clusters_give_the_colours() -> None:
    clusters = [0, 0, 1, 2, 2, 2]
    for groups in (
        color_groups(projection_of([None] * 6, clusters)),
        color_groups(projection_of(["a"] * 6, clusters), "cluster"),
    ):
        assert [(group.name, group.members.tolist()) for group in groups] == [
            ("cluster 1", [0, 1]),
            ("cluster 2", [2]),
            ("cluster 3", [3, 4, 5]),
        ]
    assert [group.name for group in color_groups(projection_of(["a", None]), "label")] == ["a", "no label"]


# The picture


@pytest.mark.parametrize("suffix", [".png", ".JPG", ".svg", ".pdf"])
def test_a_picture_with_unusual_names(photos: Collection, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"map{suffix}"
    save_map_plot(project(photos, "pca"), photos, out, query=(HOSTILE * 3, (0.0, 0.0)))
    if suffix in (".png", ".JPG"):
        with Image.open(out) as picture:
            picture.load()
            assert picture.width > 1000
            # Both colours of the two groups are there.
            colors = np.asarray(picture.convert("RGB"), int).reshape(-1, 3)
            for color in ((66, 105, 208), (223, 226, 230)):
                assert (np.abs(colors - color).max(axis=1) < 12).sum() > 20
    else:
        assert out.read_bytes().startswith((b"<?xml", b"%PDF"))


def test_every_item_is_a_point_and_every_group_in_the_legend() -> None:
    made = projection_of([*"aaabbc", None])
    groups = color_groups(made)
    figure = draw_map(made, groups, title=("title", "more"), query=("a cat", (9.0, 9.0)))
    (axes,) = figure.axes
    drawn = np.concatenate([part.get_offsets() for part in axes.collections])
    assert sorted(map(tuple, np.asarray(drawn, np.float32).tolist())) == sorted(map(tuple, made.points.tolist()))
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a  (3)", "b  (2)", "c  (1)", "no label  (1)", "query"]
    assert [text.get_text() for text in axes.texts][:1] == ["a cat"]


def test_the_title_says_what_the_map_shows(photos: Collection) -> None:
    made = project(photos, "pca", most=10)
    assert map_title(made, photos)[0] == "10 of 21 images of {{map}}<b>"
    made = project(photos, "pca")
    assert map_title(made, photos)[1] == f"PCA of the space visual, {made.computed[:10]}"
    photos.remove(made.ids[:2].tolist())
    assert map_title(project(photos, "pca"), photos)[1].endswith("; since then 2 removed")


# The page


class Page(HTMLParser):
    """The elements of a page, and the text of its scripts and of its heading."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.scripts: list[str] = []
        self.addresses: list[str] = []
        self.heading = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self._inside = tag
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside == "h1":
            self.heading += data


def test_the_page_is_self_contained_and_names_are_escaped(photos: Collection, tmp_path: Path) -> None:
    out = tmp_path / "map.html"
    made = project(photos, "pca")
    pictures: list[tuple[int, int]] = []
    save_map_plot(made, photos, out, query=(HOSTILE, (0.0, 0.0)), progress=lambda p: pictures.append((p.done, p.total)))
    page = Page(out.read_text(encoding="utf-8"))
    assert (page.tags["script"], page.tags["img"], page.tags["b"], page.tags["link"]) == (3, 1, 0, 0)
    assert page.addresses == []
    assert page.heading == "21 images of {{map}}<b>"
    content = json.loads(page.scripts[1])
    shown = HOSTILE.replace("\n", "\N{REPLACEMENT CHARACTER}").replace("\u202e", "\N{REPLACEMENT CHARACTER}")
    items = [*photos.items()]
    assert content["labels"] == [shown if item.label else "" for item in items]
    assert sorted(content["names"]) == sorted([*(f"{n:05}.png" for n in range(20)), f"{shown.replace('/', '')}.png"])
    assert content["places"] == content["names"]  # below the collection's folder
    assert str(tmp_path) not in page.scripts[1]
    assert pictures[-1] == (21, 21)
    for url in content["pictures"]:
        kind, _, data = url.partition(",")
        assert kind == "data:image/jpeg;base64"
        assert base64.b64decode(data, validate=True).startswith(b"\xff\xd8")
    # Plotly interprets tags in its texts.
    drawn = [trace["name"] for trace in content["data"]] + [note["text"] for note in content["layout"]["annotations"]]
    assert len(drawn) == 4
    assert not any(re.search("[<>]", text) for text in drawn)


def test_only_some_of_many_items_have_pictures(
    photos: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pixmatcher.maps.interactive.MOST_THUMBNAILS", 7)
    Path(next(photos.items()).uri).unlink()
    save_map_plot(project(photos, "pca"), photos, tmp_path / "map.html")
    content = json.loads(Page((tmp_path / "map.html").read_text(encoding="utf-8")).scripts[1])
    assert [n for n, picture in enumerate(content["pictures"]) if picture] == [3, 6, 9, 12, 15, 18]


def test_many_points_are_drawn_by_the_graphics_card() -> None:
    for count, kind in ((5_000, "scatter"), (5_001, "scattergl")):
        made = projection_of(["a"] * count)
        figure = map_figure(made, color_groups(made), queries=[("q", (0.0, 0.0))])
        assert {trace.type for trace in figure.data} == {kind}


def test_the_page_in_a_browser(photos: Collection, tmp_path: Path) -> None:
    """The pointer moves over each item: its name is shown as text, no script runs, nothing is fetched."""
    browser = shutil.which("chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if browser is None:
        pytest.skip("Chromium is not installed")
    out = tmp_path / "map.html"
    made = project(photos, "pca")
    save_map_plot(made, photos, out, query=(HOSTILE, (0.0, 0.0)))
    requests, errors = [], []
    with playwright.sync_playwright() as started:
        driven = started.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = driven.new_page(viewport={"width": 1280, "height": 800})
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(out.as_uri())
        page.wait_for_selector("#map .points path")
        places = page.evaluate(
            """() => {
              const chart = document.getElementById("map"), { xaxis, yaxis } = chart._fullLayout;
              const box = chart.getBoundingClientRect();
              return chart._fullData.filter((trace) => trace.customdata).flatMap((trace) => [...trace.x].map((x, n) => [
                trace.customdata[n], box.left + xaxis._offset + xaxis.d2p(x),
                box.top + yaxis._offset + yaxis.d2p(trace.y[n])]));
            }"""
        )
        assert len(places) == 21
        (hostile,) = (n for n, item in enumerate(photos.items()) if "onerror" in item.uri)
        _, x, y = next(place for place in places if place[0] == hostile)
        page.mouse.move(x - 20, y)
        page.mouse.move(x, y, steps=4)
        page.wait_for_selector("#card", state="visible")
        assert "onerror" in page.inner_text("#name")
        assert page.evaluate("document.getElementById('picture').naturalWidth") > 0
        assert page.evaluate("document.querySelectorAll('img').length") == 1
        assert page.title() == "21 images of {{map}}<b>"
        assert "</script>" in page.text_content(".legend")
        buttons = [each.get_attribute("data-title") for each in page.query_selector_all(".modebar-btn")]
        assert len(buttons) == 6
        assert not any("Share" in (title or "") for title in buttons)
        driven.close()
    assert [url for url in requests if not url.startswith("data:")] == [out.as_uri()]
    assert errors == []


# What cannot be drawn, and the command


def test_maps_that_cannot_be_drawn_are_reported_in_one_sentence(
    photos: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = project(photos, "pca")
    with pytest.raises(PixMatcherError, match=r"must end in \.png.* or \.html"):
        save_map_plot(made, photos, tmp_path / "map.gif")
    with pytest.raises(PixMatcherError, match="the folder"):
        save_map_plot(made, photos, tmp_path / "no" / "map.html")
    with pytest.raises(QueryError, match="choose one of label, cluster"):
        save_map_plot(made, photos, tmp_path / "map.png", color="size")
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(PixMatcherError, match=r"'pixmatcher\[app\]'"):
        save_map_plot(made, photos, tmp_path / "map.html")
    with pytest.raises(PixMatcherError, match=r"'pixmatcher\[plots\]'"):
        save_map_plot(made, photos, tmp_path / "map.png")
    assert not list(tmp_path.glob("map.*"))


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    examples = Path(__file__).parents[1] / "examples" / "photos"
    folder = tmp_path / "photos"
    shutil.copytree(examples, folder, ignore=shutil.ignore_patterns(".pixmatcher"))
    index(folder)
    out = tmp_path / "map.png"
    done = cli("map", out, "-c", folder, "--query", "a cat")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"18 images by tsne in the space semantic, saved to {out}\n"
    with Collection.open(folder) as collection:
        collection.remove([1])
        collection.add(
            [Item("/x.jpg", "x")], {name: np.ones((1, s.dimension)) for name, s in collection.spaces.items()}
        )
    done = cli("map", tmp_path / "map.html", "-c", folder, "--space", "semantic")
    assert "17 images" in done.stdout
    assert "1 added, 1 removed" in done.stderr
    assert "--refresh" in done.stderr
    done = cli("map", out, "-c", folder, "--space", "semantic", "--refresh", "--query", folder / "cat.jpg")
    assert (done.returncode, done.stderr) == (0, "")
    assert "18 images by tsne in the space semantic" in done.stdout
    assert "in the space visual" in cli("map", out, "-c", folder, "--method", "pca", "--color", "cluster").stdout
    for wrong, words in (
        (("--method", "som"), "choose one of tsne, umap, pca"),
        (("--color", "size"), "choose one of label, cluster"),
        (("--space", "smell"), "space 'smell' does not exist"),
        (("--query", folder), "is a folder"),
    ):
        done = cli("map", out, "-c", folder, *wrong)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done
        assert words in done.stderr
