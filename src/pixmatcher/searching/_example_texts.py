"""Text queries to try on a collection."""

from __future__ import annotations

from ..collection import Collection
from ..errors import PixMatcherError
from ._search import search

_TEXTS = (
    "a cat", "a dog", "a horse", "a bird", "a fish", "an insect", "flowers", "trees in a forest", "mountains",
    "a beach", "a boat on the water", "a car", "a train", "an aeroplane", "a bicycle", "a rocket", "a building",
    "a bridge", "a kitchen", "a cup of coffee", "fruit", "a pizza", "an astronaut", "people", "the night sky",
    "coins", "a clock",
)  # fmt: skip
"""Texts for collections without labels and captions; in English, which the bundled encoder supports."""
_MAX_CAPTION_CHARACTERS = 80
_SAMPLE_COUNT = 40
"""Number of items whose captions are read."""


def example_texts(collection: Collection, count: int = 6) -> list[str]:
    """Return at most `count` texts that have good results in a collection.

    They are names of labels, from the most to the least frequent, or else captions of items, or else those of a fixed
    list with the highest scores. The list is empty for an empty collection, or if texts cannot be searched.
    """
    if not len(collection):
        return []
    names = collection.label_names()
    if labels := [names.get(label, label).partition(",")[0] for label in collection.label_counts()]:
        step = max(1, len(labels) // count)
        return list(dict.fromkeys(labels[::step]))[:count]
    items = collection.items_by_id(collection.sample_ids(_SAMPLE_COUNT)).values()
    captions = [item.caption for item in items if item.caption and len(item.caption) <= _MAX_CAPTION_CHARACTERS]
    if captions:
        return captions[:count]
    scored = []
    for text in _TEXTS:
        try:
            scored += [(hit.score, text) for hit in search(collection, text, k=1).hits]
        except PixMatcherError:
            return []
    return [text for _, text in sorted(scored, reverse=True)[:count]]
