"""The results of an evaluation, as objects, as JSON and as a csv file."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .._files import check_writable
from .._text import as_unicode, name_as_unicode
from ..collection import Failure
from ..errors import PixMatcherError
from ..records import Space
from ._metrics import Float64, bootstrap_interval, mean

MOST_CONFUSED = 5
"""Number of confused pairs of labels in a report."""


@dataclass(frozen=True)
class MetricValue:
    """The value of a metric over all queries, and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, float]:
        """Return the numbers with 4 decimals."""
        return {"value": round(self.value, 4), "low": round(self.low, 4), "high": round(self.high, 4)}


@dataclass(frozen=True)
class QueryMetrics:
    """The metrics of one kind of queries by their names, the space that was searched, and the number of queries."""

    space: str
    queries: int
    metrics: Mapping[str, MetricValue]

    def as_json(self) -> dict[str, Any]:
        """Return the form that every face prints."""
        figures = {name: metric.as_json() for name, metric in self.metrics.items()}
        return {"space": self.space, "queries": self.queries, "figures": figures}

    @classmethod
    def of(
        cls,
        space: Space,
        names: Sequence[str],
        values: Float64,
        statistic: Callable[[Float64], Float64] = mean,
    ) -> QueryMetrics:
        """Summarize the values (Q, M) of M named metrics by a statistic and its interval."""
        low, high = bootstrap_interval(values, statistic)
        columns = zip(statistic(values).tolist(), low.tolist(), high.tolist(), strict=True)
        metrics = {name: MetricValue(*column) for name, column in zip(names, columns, strict=True)}
        return cls(space.name, len(values), metrics)


@dataclass(frozen=True)
class CategoryMetrics:
    """The metrics of the image queries with one label.

    `wrong` has the other labels among the first k hits, each with its share of these hits, the most frequent first.
    """

    label: str
    name: str
    queries: int
    metrics: Mapping[str, float]
    wrong: Mapping[str, float]


@dataclass(frozen=True)
class Confusion:
    """How often images of one label find another label: its share of the first k hits."""

    name: str
    other_name: str
    share: float

    def as_json(self) -> dict[str, Any]:
        """Return the form that every face prints."""
        return {"name": self.name, "other_name": self.other_name, "share": round(self.share, 4)}


@dataclass(frozen=True)
class Evaluation:
    """The results of labelled queries against the labelled items of a collection.

    `names` has the name of each label. `images` are the metrics of image queries, None if there is no usable query;
    `texts` those of label names, None if no encoder supports texts. Query images that are left out are counted:
    `unlabelled` have no label, `unknown_queries` have one of the `unknown_labels` that no item of the collection has,
    and `without_relevant` have a label that no other item has. `failures` are the query images that cannot be used.
    """

    collection: Path
    queries: str
    k: int
    items: int
    images: QueryMetrics | None
    texts: QueryMetrics | None
    categories: list[CategoryMetrics] = field(default_factory=list)
    names: Mapping[str, str] = field(default_factory=dict)
    unlabelled: int = 0
    unknown_labels: int = 0
    unknown_queries: int = 0
    without_relevant: int = 0
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0

    def confusions(self, count: int) -> list[Confusion]:
        """Return up to `count` pairs of labels that are confused, the most frequent first."""
        pairs = [(share, c.name, self.names[wrong]) for c in self.categories for wrong, share in c.wrong.items()]
        pairs.sort(key=lambda pair: (-pair[0], *pair[1:]))
        return [Confusion(name, other, share) for share, name, other in pairs[:count]]

    def as_json(self) -> dict[str, Any]:
        """Return the form that every face prints, without the categories: `save_categories` writes these."""
        return {
            "collection": name_as_unicode(str(self.collection)),
            "queries": name_as_unicode(self.queries),
            "k": self.k,
            "items": self.items,
            "took_s": round(self.seconds, 2),
            "images": self.images and self.images.as_json(),
            "texts": self.texts and self.texts.as_json(),
            "most_confused": [confusion.as_json() for confusion in self.confusions(MOST_CONFUSED)],
            "left_out": {
                "unlabelled": self.unlabelled,
                "unknown_labels": self.unknown_labels,
                "of_unknown_labels": self.unknown_queries,
                "alone_with_their_label": self.without_relevant,
            },
            "failures": _failures_as_json(self.failures),
        }


@dataclass(frozen=True)
class CaptionEvaluation:
    """The results of captions against all items of a collection.

    `texts` are the metrics, None if there is no usable caption. `failures` are the rows of the csv file that cannot be
    used.
    """

    collection: Path
    captions: str
    items: int
    texts: QueryMetrics | None
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Return the form that every face prints."""
        return {
            "collection": name_as_unicode(str(self.collection)),
            "captions": name_as_unicode(self.captions),
            "items": self.items,
            "took_s": round(self.seconds, 2),
            "texts": self.texts and self.texts.as_json(),
            "failures": _failures_as_json(self.failures),
        }


def _failures_as_json(failures: Sequence[Failure]) -> list[dict[str, str]]:
    return [
        {"uri": name_as_unicode(failure.uri), "reason": failure.reason, "detail": as_unicode(failure.detail)}
        for failure in failures
    ]


def metric_names(k: int) -> tuple[str, str, str, str]:
    """Return the names of the metrics of labelled queries."""
    return "precision@1", f"precision@{k}", f"mAP@{k}", "R-precision"


def save_categories(evaluation: Evaluation, path: Path) -> None:
    """Write the metrics of each category as csv in UTF-8.

    The columns are label, name, queries, the metrics, and wrong_label, the most frequent wrong label. Raises
    `PixMatcherError` if the file cannot be written.
    """
    names = [*dict.fromkeys(metric_names(evaluation.k))]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["label", "name", "queries", *names, "wrong_label"])
    for category in evaluation.categories:
        values = [f"{category.metrics[name]:.4f}" for name in names]
        writer.writerow([category.label, category.name, category.queries, *values, next(iter(category.wrong), "")])
    check_writable(path)
    try:
        path.write_bytes(text.getvalue().encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise PixMatcherError(f"{path} cannot be written ({error.strerror or error}): name another file.") from error
