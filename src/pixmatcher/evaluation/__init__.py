"""Evaluation: how good the results of a collection are, by queries whose right answers are known.

`evaluate` searches with labelled images and with the names of their labels, `evaluate_captions` with captions.
`tuning` measures the index of a space, `confusion_plot` draws which categories are confused.
docs/explanations/evaluation.md defines the metrics.

May import: images, net, vector_index, encoders, sources, collection, indexing, searching, and the modules beside the
packages.
"""

from ._captions import evaluate_captions
from ._labelled import evaluate
from ._metrics import (
    average_precision_at,
    best_columns,
    bootstrap_interval,
    mean,
    median,
    precision_at,
    r_precision,
    recall_at,
)
from ._results import (
    MOST_CONFUSED,
    CaptionEvaluation,
    CategoryMetrics,
    Confusion,
    Evaluation,
    MetricValue,
    QueryMetrics,
    save_categories,
)

__all__ = [
    "MOST_CONFUSED",
    "CaptionEvaluation",
    "CategoryMetrics",
    "Confusion",
    "Evaluation",
    "MetricValue",
    "QueryMetrics",
    "average_precision_at",
    "best_columns",
    "bootstrap_interval",
    "evaluate",
    "evaluate_captions",
    "mean",
    "median",
    "precision_at",
    "r_precision",
    "recall_at",
    "save_categories",
]
