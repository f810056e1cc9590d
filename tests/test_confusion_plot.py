"""The plot of confused categories: its contents, and its errors."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from pixmatcher.errors import PixMatcherError
from pixmatcher.evaluation import CategoryMetrics, Evaluation
from pixmatcher.evaluation.confusion_plot import draw_confusion_plot, save_confusion_plot


def evaluation(wrong: dict[str, dict[str, float]], names: dict[str, str] | None = None) -> Evaluation:
    """Return an evaluation with the given shares of wrong labels; all other hits are right."""
    categories = [
        CategoryMetrics(label, label, 4, {"precision@10": 1 - sum(others.values())}, others)
        for label, others in wrong.items()
    ]
    labels = {*wrong, *(other for others in wrong.values() for other in others)}
    return Evaluation(
        Path("c"), "queries", 10, 99, None, None, categories, {label: label for label in labels} | (names or {})
    )


def drawn(found: Evaluation) -> tuple[list[str], dict[tuple[str, str], str]]:
    """Return the categories of the plot, and the numbers in its cells by row and column."""
    (axes,) = draw_confusion_plot(found).axes
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert labels == [text.get_text() for text in axes.get_xticklabels()]
    cells = {}
    for text in axes.texts:
        column, row = text.get_position()
        cells[labels[int(row)], labels[int(column)]] = text.get_text()
    return labels, cells


def test_the_most_confused_are_drawn_side_by_side() -> None:
    wrong = {"cat": {"lynx": 0.4, "sofa": 0.1}, "lynx": {"cat": 0.2}, "bus": {"tram": 0.3}, "pen": {}}
    labels, cells = drawn(evaluation(wrong))
    assert labels == ["cat", "lynx", "sofa", "bus", "tram"]
    assert cells == {
        ("cat", "cat"): "50",
        ("cat", "lynx"): "40",
        ("cat", "sofa"): "10",
        ("lynx", "cat"): "20",
        ("lynx", "lynx"): "80",
        ("bus", "tram"): "30",
        ("bus", "bus"): "70",
    }


def test_only_the_most_confused_of_many_categories_are_drawn() -> None:
    wrong = {f"c{n:03}": {f"c{n + 1:03}": n / 1000} for n in range(300)}
    labels, _ = drawn(evaluation(wrong))
    assert sorted(labels) == [f"c{n:03}" for n in range(281, 301)]


@pytest.mark.parametrize("suffix", [".png", ".JPG", ".svg", ".pdf"])
def test_any_name_can_be_drawn(tmp_path: Path, suffix: str) -> None:
    names = {"a": "$\\frac$ \N{SNOWMAN} \udcff\n" * 30, "b": "<&>"}
    path = tmp_path / f"picture{suffix}"
    save_confusion_plot(evaluation({"a": {"b": 0.5}}, names), path)
    if suffix in (".png", ".JPG"):
        with Image.open(path) as picture:
            picture.load()
    else:
        assert path.read_bytes().startswith((b"<?xml", b"%PDF"))


def test_errors_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(PixMatcherError, match="nothing to draw"):
        save_confusion_plot(evaluation({"a": {}}), tmp_path / "x.png")
    with pytest.raises(PixMatcherError, match=r"must end in \.png"):
        save_confusion_plot(evaluation({"a": {"b": 0.5}}), tmp_path / "x.txt")
    with pytest.raises(PixMatcherError, match="cannot be written"):
        save_confusion_plot(evaluation({"a": {"b": 0.5}}), tmp_path / ("x" * 300 + ".png"))
    assert list(tmp_path.iterdir()) == []
