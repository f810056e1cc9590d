"""benchmarks/captions.py: its rules, its intervals, and a run with the example photos."""

from __future__ import annotations

import csv
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from pixmatcher import Collection
from pixmatcher.evaluation import evaluate_captions

ROOT = Path(__file__).parents[1]
CAPTIONS = {
    "cat.jpg": ["A cat lies on a couch .", "A kitten on a sofa", "Portrait of a cat on a sofa"],
    "horse.jpg": ["the silhouette of a horse", "a man rides two horses over a field", "a red couch"],
    "coffee.jpg": ["a cup of coffee on a table", "the espresso"],
    "rocket.jpg": ["a rocket starts in a cloud of smoke"],
    "astronaut.jpg": ["a smiling woman in an orange space suit", "an astronaut"],
}


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module("captions")
    for name in ("captions", "caption_words"):
        sys.modules.pop(name, None)


def run_benchmark(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "captions.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("caption", "kinds"),
    [
        ("A man in a red shirt climbs a mountain", {"people", "colours", "actions", "places"}),
        ("Two dogs are running through the snow", {"animals", "counts", "actions", "places"}),
        ("A woman wearing a hat is standing near something", {"people"}),
        ("A building with a railing during the morning", {"places", "things"}),
        ("3 bicycles", {"counts", "things"}),
        ("Three children", {"people", "counts"}),
        ("A goatee on a table with 30 reddish candles, one of them new", {"things"}),
        ("It was filmed while being parked", {"things"}),
    ],
)
def test_kinds_of_captions(benchmark: ModuleType, caption: str, kinds: set[str]) -> None:
    assert benchmark.kinds_of(caption) == kinds


def test_the_captions_judge_which_images_are_right(benchmark: ModuleType) -> None:
    climbing = benchmark.EVERYDAY["a man climbing a rock"]
    assert len(benchmark.EVERYDAY) == 20
    assert benchmark.is_right(["A climber on a cliff"], climbing)
    assert benchmark.is_right(["a man", "He climbs up a mountain"], climbing)
    assert not benchmark.is_right(["a climber", "a man", "a person on a cliff"], climbing)  # one of three
    assert benchmark.is_right(["a climber", "on a rock", "Climbing a cliff"], climbing)
    assert not benchmark.is_right(["He climbs a tree", "climbing a tree", "a boy in a tree"], climbing)
    assert not benchmark.is_right([], climbing)


def test_images_are_resampled_and_differences_are_those_of_pairs(benchmark: ModuleType) -> None:
    ranks = np.array([1, 3, 7, 40])
    of_one_image = benchmark.measure_ranks(["a"] * 4, [ranks])
    assert (of_one_image["captions"], of_one_image["images"]) == (4, 1)
    assert of_one_image["recall@5"]["now"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert of_one_image["median rank"]["now"] == {"value": 5, "low": 5, "high": 5}

    of_four = benchmark.measure_ranks(["a", "b", "c", "d"], [ranks, ranks + 1])
    assert of_four["recall@1"]["now"]["value"] == 0.25
    assert of_four["recall@1"]["before"] == {"value": 0, "low": 0, "high": 0}
    assert of_four["recall@10"]["now"]["low"] < 0.75 < of_four["recall@10"]["now"]["high"]
    # Each median changes by 1, however different the medians of the resampled images are.
    assert of_four["median rank"]["now"]["low"] < of_four["median rank"]["now"]["high"]
    assert of_four["median rank"]["difference"] == {"value": -1, "low": -1, "high": -1}


def test_only_as_many_right_images_count_as_the_first_hits_can_hold(benchmark: ModuleType) -> None:
    texts = {f"{number}.jpg": ["a cat on a sofa"] for number in range(20)} | {"21.jpg": ["a birthday"]}
    hits = {query: ["21.jpg", *list(texts)[:9]] for query in benchmark.EVERYDAY}
    found = benchmark.measure_everyday(texts, [benchmark.Run({}, list(texts), [], [], hits)])
    assert found["queries"]["cat on a sofa"] == {"right": 20, "now": 9}
    assert found["queries_with_right_images"] == 2
    assert found["share"]["now"] == {"value": round(10 / 13, 4), "low": 0.75, "high": 1}


def test_a_run_with_photos_and_a_comparison(tmp_path: Path) -> None:
    photos, collection = ROOT / "examples" / "photos", tmp_path / "collection"
    names = sorted(path.name for path in photos.glob("*.jpg"))
    rows = [(name, caption) for name in names for caption in CAPTIONS.get(name, ["a picture"])]
    captions, result = tmp_path / "captions.csv", tmp_path / "run.json"
    with open(captions, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("image", "caption"), *rows])
    common = (photos, "--captions", captions, "--collection", collection)
    run = run_benchmark(*common, "--json", result)
    assert run.returncode == 0, run.stderr
    saved = json.loads(result.read_text(encoding="utf-8"))

    with Collection.open(collection) as opened:
        expected = evaluate_captions(opened, captions).texts
    assert expected is not None
    everything = saved["kinds"]["all"]
    assert everything["captions"] == expected.queries
    for name, metric in expected.metrics.items():
        assert everything[name]["now"]["value"] == round(metric.value, 4)
    assert sorted((image, caption) for image, caption, _ in saved["ranks"]) == sorted(rows)
    assert ["cat.jpg", "A kitten on a sofa", 1] in saved["ranks"]
    assert {kind: saved["kinds"][kind]["captions"] for kind in ("animals", "counts")} == {"animals": 5, "counts": 1}
    assert saved["everyday"]["queries"]["cat on a sofa"] == {"right": 1, "now": 1}
    assert saved["hits"]["cat on a sofa"][0] == "cat.jpg"

    # A version that was worse: each image has the last rank, and no hit is right.
    worse = saved | {
        "ranks": [[image, caption, len(names)] for image, caption, _ in saved["ranks"]],
        "hits": {query: ["bricks.jpg"] for query in saved["hits"]},
    }
    result.write_text(json.dumps(worse), encoding="utf-8")
    run = run_benchmark(*common, "--compare", result, "--json", tmp_path / "compared.json")
    assert run.returncode == 0, run.stderr
    compared = json.loads((tmp_path / "compared.json").read_text(encoding="utf-8"))
    recall = compared["kinds"]["all"]["recall@1"]
    assert recall["before"]["value"] == 0 < recall["now"]["value"] == recall["difference"]["value"]
    assert compared["kinds"]["all"]["median rank"]["before"]["value"] == len(names)
    assert compared["everyday"]["queries"]["cat on a sofa"] == {"right": 1, "now": 1, "before": 0}
    assert "recall@1 difference" in run.stdout

    chosen = tmp_path / "chosen.txt"
    chosen.write_text("cat.jpg\nhorse.jpg\n", encoding="utf-8")
    run = run_benchmark(*common, "--images", chosen, "--compare", result)
    assert run.returncode == 1
    assert (
        run.stderr == f"{result} is of other images, captions or queries: run both versions with the same arguments.\n"
    )


def test_a_folder_with_tags_and_mistakes(tmp_path: Path) -> None:
    photos = ROOT / "examples" / "photos"
    tags = tmp_path / "tags.json"
    tags.write_text(json.dumps({"cat.jpg": ["cat", "couch"], "horse.jpg": ["horse"], "no.jpg": ["cat", "couch"]}))
    run = run_benchmark(photos, "--captions", tags, "--json", tmp_path / "run.json")
    assert run.returncode == 0, run.stderr
    saved = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert saved["images"] == ["cat.jpg", "horse.jpg"]
    assert saved["kinds"] == {}
    assert saved["everyday"]["queries"]["cat on a sofa"] == {"right": 1, "now": 1}
    assert "1 images are not in the collection" in run.stdout

    run = run_benchmark(tmp_path)  # tags.json is there, but none of its images
    assert run.returncode == 1
    assert run.stderr.count("\n") == 1
    assert "no image of the captions" in run.stderr
    (tmp_path / "captions.csv").write_text("image,text\ncat.jpg,a cat\n", encoding="utf-8")
    run = run_benchmark(tmp_path)
    assert run.returncode == 1
    assert "needs the columns image and caption" in run.stderr
    assert run.stderr.count("\n") == 1
