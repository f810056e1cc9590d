"""Measure `lite` with texts that name no class, made from WordNet and Tiny ImageNet, because there are no captions.

    build-lite/bin/python tools/judge_lite.py --data tiny-imagenet-mini.zip

Run it in the environment of `build_lite.py`. Each result is a mean precision@10 among the `val` images, with the half
width of its 95 % interval over the texts. Images of the classes that a text means are right. To measure unknown
classes, `semantic` is fitted again without them, for a tenth of the classes at a time.
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
from pixmatcher.evaluation import best_columns, precision_at

FOLDS = 10
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
            words = lite.words(example)
            grams = {" ".join(words[at : at + n]) for at in range(len(words)) for n in (1, 2, 3)}
            named = {name for gram in grams for name in lite.singulars(gram) if name in targets}
            if 4 <= len(example.split()) <= 15 and len(named) == 1:
                (name,) = named
                taken[name] += 1
                if taken[name] <= SENTENCES_OF_A_NAME:
                    yield Query(example, targets[name])


def precisions(
    texts: list[Query], naming: lite.TextVectors, embedded: Floats, images: Floats, labels: lite_quality.Labels
) -> npt.NDArray[np.float64]:
    """Return the precision@10 of each text among `images` (N, D) of `semantic`; `embedded` are the text embeddings."""
    vectors = np.stack([naming.embed(one.text, own) for one, own in zip(texts, embedded, strict=True)])
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
    arguments = parser.parse_args()
    data, wordnet = lite_quality.TinyImageNet(arguments.data), lite_words.WordNet(arguments.wordnet)
    classes, synsets = build_lite.read_classes()
    class_names = dict(zip(data.wnids, data.class_names(), strict=True))
    judged = [one for one in classes if one.synset in class_names]
    encoder, embed = lite.LiteEncoder(), build_lite.text_embedder(lite.FILES)
    images, labels = data.part("val")
    features, logits = lite_quality.network_outputs(encoder.run_network, images)
    names = [Query(class_names[one.synset], frozenset([one.synset])) for one in judged]
    definitions = [Query(one.definition, frozenset([one.synset])) for one in judged]

    above = {meant: Query(name, meant) for name, meant in reversed(list(above_classes(wordnet, judged)))}
    narrower = list(below_classes(wordnet, judged))
    vectors = encoder.embed_outputs(features, logits)["semantic"]
    with np.load(lite.FILES / "texts.npz", allow_pickle=False) as stored:
        naming = lite.TextVectors(dict(stored))
    for what, texts in {
        "names of classes": names,
        "names above classes": list(above.values()),
        "names below classes": [name for name, _ in narrower],
        "definitions below classes": [definition for _, definition in narrower],
        "sentences": list(sentences(arguments.wordnet, wordnet, judged)),
    }.items():
        print_mean(what, precisions(texts, naming, embed([one.text for one in texts]), vectors, labels))

    folds = np.random.default_rng(0).permutation(len(judged)) % FOLDS
    of_names, of_definitions = np.zeros(len(judged)), np.zeros(len(judged))
    for fold in range(FOLDS):
        hidden = {one.synset for one, own in zip(judged, folds, strict=True) if own == fold}
        kept = [number for number, one in enumerate(classes) if one.synset not in hidden]
        known = logits[:, kept]
        fitted = build_lite.fit_semantic([classes[number] for number in kept], synsets, wordnet, known, embed)
        meaning = lite.unit(lite.softmax(known / 2) @ fitted.concepts.astype(np.float32))
        evidence = build_lite.log_evidence(known, fitted.groups) - fitted.evidence_mean
        vectors = np.concatenate([meaning, evidence], 1)
        for texts, into in ((names, of_names), (definitions, of_definitions)):
            own = [text for text, place in zip(texts, folds, strict=True) if place == fold]
            embedded = embed([one.text for one in own])
            into[folds == fold] = precisions(own, lite.TextVectors(fitted.texts), embedded, vectors, labels)
    print_mean("names of classes left out", of_names)
    print_mean("definitions of classes left out", of_definitions)


if __name__ == "__main__":
    main()
