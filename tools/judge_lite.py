"""Measure `lite` with texts about the classes of Tiny ImageNet, most of which name no class, made from WordNet.

    build-lite/bin/python tools/judge_lite.py --data tiny-imagenet-mini.zip

Run it in the environment of `build_lite.py`. Each result is a mean precision@10 among the `val` images, with the half
width of its 95 % interval over the texts. Images of the classes that a text means are right.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import build_lite
import lite_quality
import lite_words
import numpy as np
import numpy.typing as npt
from build_lite import Class, Floats

from pixmatcher.encoders import lite
from pixmatcher.encoders.lite._lexicon import singulars, words
from pixmatcher.evaluation import best_columns, precision_at

SENTENCES_OF_A_NAME = 15
GREATEST_GROUP = 100


@dataclass(frozen=True)
class Query:
    """A text and the synsets of the classes that it means."""

    text: str
    meant: frozenset[str]


def below(wordnet: lite_words.WordNet, classes: list[Class]) -> dict[str, frozenset[str]]:
    """Return for each synset above several of the classes which of them are below it."""
    found: dict[str, set[str]] = {}
    for one in classes:
        for ancestor in wordnet.lineage(one.synset)[1:]:
            found.setdefault(ancestor, set()).add(one.synset)
    return {synset: frozenset(meant) for synset, meant in found.items() if 2 <= len(meant) <= GREATEST_GROUP}


def above_classes(wordnet: lite_words.WordNet, classes: list[Class]) -> Iterator[tuple[str, frozenset[str]]]:
    """Yield names of synsets above several classes, if that is the most frequent sense of the name."""
    for synset, meant in sorted(below(wordnet, classes).items()):
        for name in wordnet.synsets[synset].lemmas:
            senses = wordnet.senses[name.lower()]
            if senses[0][0] == synset and senses[0][1] > 0:
                yield name, meant


def below_classes(wordnet: lite_words.WordNet, classes: list[Class]) -> Iterator[tuple[Query, Query]]:
    """Yield the name and the definition of each synset below a class."""
    by_synset = {one.synset: one for one in classes}
    for synset, entry in wordnet.synsets.items():
        for ancestor in wordnet.lineage(synset)[1:]:
            one = by_synset.get(ancestor)
            if one and entry.lemmas[0].lower() not in [name.lower() for name in one.names]:
                meant = frozenset([ancestor])
                yield Query(entry.lemmas[0], meant), Query(re.split(r';\s*"', entry.gloss)[0], meant)


def sentences(folder: Path, wordnet: lite_words.WordNet, classes: list[Class]) -> Iterator[Query]:
    """Yield examples of WordNet with exactly one name, in its first sense, of a class or of a synset above a few."""
    targets = {name.lower(): meant for name, meant in above_classes(wordnet, classes) if len(meant) <= 12}
    for one in classes:
        for name in wordnet.synsets[one.synset].lemmas:
            if wordnet.senses[name.lower()][0][0] == one.synset:
                targets[name.lower()] = frozenset([one.synset])
    taken: Counter[str] = Counter()
    for part in ("noun", "verb", "adj", "adv"):
        text = (folder / f"data.{part}").read_text("latin-1")
        for example in re.findall(r'"([^"\n]+)"', text):
            found = words(example)
            grams = {" ".join(found[at : at + n]) for at in range(len(found)) for n in (1, 2, 3)}
            named = {name for gram in grams for name in singulars(gram) if name in targets}
            if 4 <= len(example.split()) <= 15 and len(named) == 1:
                (name,) = named
                taken[name] += 1
                if taken[name] <= SENTENCES_OF_A_NAME:
                    yield Query(example, targets[name])


def precisions(
    texts: list[Query], encoder: lite.LiteEncoder, images: Floats, labels: lite_quality.Labels
) -> npt.NDArray[np.float64]:
    """Return the precision@10 of each text among `images` (N, D) of `semantic`."""
    vectors = encoder.encode_texts([one.text for one in texts])["semantic"]
    right = np.stack([np.isin(labels, list(one.meant)) for one in texts])
    best = best_columns(vectors @ images.T, lite_quality.NEAREST)
    return precision_at(np.take_along_axis(right, best, 1), lite_quality.NEAREST)


def print_mean(what: str, values: npt.NDArray[np.float64]) -> None:
    """Print the number of values, their mean, and the half width of its 95 % interval."""
    print(f"{what:42}{len(values):5}  {values.mean():.3f} ± {1.96 * values.std() / len(values) ** 0.5:.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=lite_quality.DEFAULT_DATA, help="tiny-imagenet-mini.zip")
    parser.add_argument("--wordnet", type=Path, default=lite_words.FOLDER, help="folder with the files of WordNet 3.0")
    parser.add_argument("--files", type=Path, default=lite.FILES, help="folder with the files of the encoder")
    arguments = parser.parse_args()
    data, wordnet = lite_quality.TinyImageNet(arguments.data), lite_words.WordNet(arguments.wordnet)
    class_names = dict(zip(data.wnids, data.class_names(), strict=True))
    judged = [one for one in build_lite.read_classes()[0] if one.synset in class_names]
    images, labels = data.part("val")
    encoder = lite.LiteEncoder(arguments.files)
    outputs = build_lite.run_images(lite.open_network(arguments.files / "visual.onnx"), images)
    vectors = encoder.embed_outputs(outputs.raw)["semantic"]
    above = {meant: Query(name, meant) for name, meant in reversed(list(above_classes(wordnet, judged)))}
    narrower = list(below_classes(wordnet, judged))
    for what, texts in {
        "names of classes": [Query(class_names[one.synset], frozenset([one.synset])) for one in judged],
        "names above classes": list(above.values()),
        "names below classes": [name for name, _ in narrower],
        "definitions below classes": [definition for _, definition in narrower],
        "definitions of classes": [Query(one.definition, frozenset([one.synset])) for one in judged],
        "sentences": list(sentences(arguments.wordnet, wordnet, judged)),
    }.items():
        print_mean(what, precisions(texts, encoder, vectors, labels))


if __name__ == "__main__":
    main()
