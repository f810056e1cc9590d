"""Fit the space `semantic`: small networks on the outputs of the image network and of the text network.

An embedding has two halves, both of length 1 before they are joined:

- *Scene*: learnt from captions. A layer for images and a layer for texts, with one hidden layer each, so that a
  photograph and its captions are similar and other captions are not (InfoNCE in both directions: A. van den Oord et
  al., "Representation learning with contrastive predictive coding", 2018; as in CLIP: A. Radford et al., "Learning
  transferable visual models from natural language supervision", 2021).
- *Names*: the classes that an image shows and a text names. The score of classes, groups of classes and their meanings
  (`Teacher`) has 1,392 values; it is learnt with 384 by matching how it ranks images (distillation: G. Hinton et al.,
  "Distilling the knowledge in a neural network", 2015), and by the labels of Tiny ImageNet.

How much the names count is learnt as well, from the length of the text and from how exactly it names a class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from pixmatcher.encoders import lite
from pixmatcher.encoders.lite._lexicon import CLASSES, GROUPS

Floats = npt.NDArray[np.float32]

FEATURES, EVIDENCE = 1280, CLASSES + GROUPS
SCENE, NAMES = lite.SCENE_DIMENSION, lite.NAMES_DIMENSION
HIDDEN, NAMES_HIDDEN = 512, 192
POOLED = 2
"""Number of weighted means of the states of the words of a text."""
NAME_TEMPERATURE = 0.05
"""Temperature of the softmax over the similarities of a text to the names: a class named exactly gets nearly 1."""
DOUBT = 0.5
"""Weight of the similarities if one word stands exactly for a class; with two such words, its square."""
FLOOR = 1e-3
"""Added to the probability of a class before its logarithm, so that lower probabilities hardly count."""
LARGEST = 12.0
"""Inputs are limited to so many standard deviations from their means."""
TEXT_GAIN, NAMED_GAIN, GATE_GAIN = 20.0, 10.0, 0.1
"""Factors that give the inputs of the layers for texts a size of about 1."""
MOST_WEIGHT = 20.0
"""The highest weight of the names, relative to the scene."""

BATCH = 512
EPOCHS, NAMES_EPOCHS, NAMES_STEPS = 20, 7, 60
LEARNING_RATE, NAMES_LEARNING_RATE, GATE_LEARNING_RATE = 1e-3, 3e-4, 0.02
WEIGHT_DECAY = 0.2
IMAGE_DROPOUT, TEXT_DROPOUT, NAMES_DROPOUT = 0.4, 0.1, 0.3
SMOOTHING = 0.05
MIXED = 0.5
"""How often the mean of two captions of a photograph is used instead of one caption."""
SCENE_ALONE, TAGS, NAMED, LABELS, NAMED_IN_SCENE = 0.5, 0.8, 1.5, 0.5, 0.3
"""Weights of the losses: captions by the scene alone, tags, names, labels; and how much of the latter two moves the
scene."""
SOFTNESS = 0.05
"""Temperature of the teacher's scores."""


def softmax(values: Floats) -> Floats:
    """Return the softmax of `values` (..., d) over the last axis."""
    powers = np.exp(values - values.max(-1, keepdims=True))
    result: Floats = powers / powers.sum(-1, keepdims=True)
    return result


def log_evidence(logits: Floats, groups: npt.NDArray[np.uint8]) -> Floats:
    """Return log(p + floor) for the probability p of each class and group: (N, classes + groups).

    `groups` (classes, groups) says which classes each group has.
    """
    probability = softmax(logits)
    both = np.concatenate([probability, probability @ groups.astype(np.float32)], 1)
    result: Floats = np.log(both + np.float32(FLOOR))
    return result


@dataclass(frozen=True)
class Outputs:
    """The outputs of the image network: features (N, 1280), logits (N, 1000) and statistics (N, 1024)."""

    features: Floats
    logits: Floats
    statistics: Floats

    @property
    def raw(self) -> lite.Outputs:
        """The same as `LiteEncoder.run_network` returns it."""
        return self.features, self.logits, self.statistics

    def rows(self, chosen: npt.NDArray[np.intp] | npt.NDArray[np.bool_]) -> Outputs:
        """Return the outputs of some images."""
        return Outputs(self.features[chosen], self.logits[chosen], self.statistics[chosen])

    def inputs(self, groups: npt.NDArray[np.uint8]) -> Floats:
        """Return the inputs of the layers for images (N, 3448); `groups` (1000, G) says which classes each has."""
        return np.concatenate([np.sqrt(self.features), log_evidence(self.logits, groups), self.statistics], 1)


@dataclass(frozen=True)
class Texts:
    """Texts as the layers see them: embeddings (N, 384), states of the tokens (tokens, 384) each, and what they name.

    `named` (N, 1144) are the classes and groups that each text names.
    """

    embeddings: Floats
    states: list[npt.NDArray[np.float16]]
    named: npt.NDArray[np.float16]

    def __len__(self) -> int:
        return len(self.embeddings)

    def batch(self, chosen: npt.NDArray[np.intp] | Sequence[int]) -> tuple[torch.Tensor, ...]:
        """Return embeddings, states, which of these are tokens, named, and lengths of some texts."""
        states = [torch.from_numpy(self.states[number].astype(np.float32)) for number in chosen]
        lengths = torch.tensor([len(one) for one in states])
        padded = nn.utils.rnn.pad_sequence(states, batch_first=True)
        present = torch.arange(padded.shape[1])[None] < lengths[:, None]
        named = torch.from_numpy(self.named[chosen].astype(np.float32))
        return torch.from_numpy(self.embeddings[chosen]), padded, present, named, lengths


@dataclass(frozen=True)
class Examples:
    """Images for fitting: views (V, N, 3448), the teacher's vectors (N, 1392), and the texts of each image."""

    views: torch.Tensor
    taught: Floats
    texts: Texts | None = None
    of_image: list[npt.NDArray[np.intp]] = field(default_factory=list)

    def __len__(self) -> int:
        return self.views.shape[1]


class Towers(nn.Module):
    """The layers for images and for texts."""

    def __init__(self, mean: Floats, deviation: Floats, text_mean: Floats) -> None:
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(mean))
        self.register_buffer("deviation", torch.from_numpy(deviation))
        self.register_buffer("text_mean", torch.from_numpy(text_mean))
        self.scene_hidden, self.scene_out = nn.Linear(len(mean), HIDDEN), nn.Linear(HIDDEN, SCENE)
        self.scene_direct = nn.Linear(FEATURES, SCENE, bias=False)
        self.names_hidden, self.names_out = nn.Linear(FEATURES + EVIDENCE, NAMES_HIDDEN), nn.Linear(NAMES_HIDDEN, NAMES)
        self.names_direct = nn.Linear(EVIDENCE, NAMES, bias=False)
        self.pool = nn.Linear(384, POOLED)
        self.text_hidden, self.text_out = nn.Linear(384 * (1 + POOLED), HIDDEN), nn.Linear(HIDDEN, SCENE)
        self.text_direct = nn.Linear(384, SCENE, bias=False)
        self.named = nn.Linear(EVIDENCE, NAMES, bias=False)
        self.gate = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1))
        self.gate_direct = nn.Linear(384, 1, bias=False)
        nn.init.zeros_(self.gate_direct.weight)
        nn.init.constant_(self.gate[2].bias, -1.0)
        self.sharpness = nn.Parameter(torch.tensor(np.log(15.0), dtype=torch.float32))

    def names_of_images(self, x: torch.Tensor, *, drop: float = 0.0) -> torch.Tensor:
        """Return the names half (N, 384) of standardised inputs (N, 3448)."""
        seen = functional.dropout(x[:, : FEATURES + EVIDENCE], drop, self.training)
        hidden = functional.dropout(functional.gelu(self.names_hidden(seen)), drop, self.training)
        evidence = x[:, FEATURES : FEATURES + EVIDENCE]
        return functional.normalize(self.names_direct(evidence) + self.names_out(hidden), dim=1)

    def names_of_texts(self, named: torch.Tensor) -> torch.Tensor:
        """Return the names half (N, 384) of texts, before its weight."""
        return functional.normalize(self.named(NAMED_GAIN * named), dim=1)

    def images(self, x: torch.Tensor) -> torch.Tensor:
        """Return the embeddings (N, 768) of standardised inputs (N, 3448), both halves of length 1."""
        x = x.float()
        seen = functional.dropout(x, IMAGE_DROPOUT, self.training)
        hidden = functional.dropout(functional.gelu(self.scene_hidden(seen)), IMAGE_DROPOUT, self.training)
        scene = functional.normalize(self.scene_out(hidden) + self.scene_direct(seen[:, :FEATURES]), dim=1)
        return torch.cat([scene, self.names_of_images(x)], 1)

    def texts(
        self,
        embeddings: torch.Tensor,
        states: torch.Tensor,
        present: torch.Tensor,
        named: torch.Tensor,
        lengths: torch.Tensor,
    ) -> torch.Tensor:
        """Return the embeddings (N, 768) of texts: the scene of length 1, the names as long as they count."""
        centred = TEXT_GAIN * (embeddings - self.text_mean)
        weights = self.pool(states).masked_fill(~present[..., None], -1e4).softmax(1)
        seen = torch.cat([centred, torch.einsum("blh,bld->bhd", weights, states).flatten(1)], 1)
        seen = functional.dropout(seen, TEXT_DROPOUT, self.training)
        hidden = functional.dropout(functional.gelu(self.text_hidden(seen)), TEXT_DROPOUT, self.training)
        scene = functional.normalize(self.text_out(hidden) + self.text_direct(centred), dim=1)
        most = named.amax(1)
        clues = torch.stack([(lengths - 2).clamp(min=1).float().log(), most, (most + 1e-3).log()], 1)
        weight = (self.gate(clues) + GATE_GAIN * self.gate_direct(centred)).exp().clamp(max=MOST_WEIGHT)
        return torch.cat([scene, weight * self.names_of_texts(named)], 1)

    def standardised(self, inputs: Floats) -> torch.Tensor:
        """Return inputs (..., 3448) with mean 0 and deviation 1, float16 to save memory."""
        scaled = (inputs - self.mean.numpy()) / self.deviation.numpy()
        return torch.from_numpy(np.clip(scaled, -LARGEST, LARGEST).astype(np.float16))

    def contrast(self, images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        """Return the symmetric InfoNCE of images and texts (N, d) that belong together row by row."""
        scores = self.sharpness.exp().clamp(max=100) * images @ texts.T
        right = torch.arange(len(images))
        losses = [functional.cross_entropy(each, right, label_smoothing=SMOOTHING) for each in (scores, scores.T)]
        return (losses[0] + losses[1]) / 2


@dataclass(frozen=True)
class Names:
    """Names for fitting, and the teacher's vectors (N, 1392) of each.

    `pools` are sets of names that are drawn from in turn; `of_label` has the names of each label of labelled images.
    """

    texts: Texts
    taught: Floats
    pools: list[npt.NDArray[np.intp]]
    of_label: list[npt.NDArray[np.intp]]


def _project_names(towers: Towers, names: Names, evidence: Floats) -> None:
    """Begin the names half as the best linear projection of the scores of names and images (singular vectors)."""
    texts = NAMED_GAIN * names.texts.named.astype(np.float64)

    def roots(moments: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        values, axes = np.linalg.eigh(moments)
        values = np.maximum(values, 1e-9 * values.max())
        return (axes * values**0.5) @ axes.T, (axes / values**0.5) @ axes.T

    of_texts, from_texts = roots(texts.T @ texts / len(texts))
    of_images, from_images = roots(np.cov(evidence.T.astype(np.float64)))
    deviation = towers.deviation.numpy()[FEATURES : FEATURES + EVIDENCE]
    left, values, right = np.linalg.svd(of_texts @ np.diag(deviation) @ of_images)
    scale = np.sqrt(values[:NAMES])
    for layer, matrix, sample in (
        (towers.named, from_texts @ left[:, :NAMES] * scale, texts[:2000]),
        (towers.names_direct, from_images @ right[:NAMES].T * scale, evidence[:2000]),
    ):
        matrix = matrix / np.linalg.norm(sample @ matrix, axis=1).mean()
        layer.weight.data = torch.from_numpy(matrix.T.astype(np.float32))
    for bias in (towers.names_out.bias, towers.names_out.weight):
        nn.init.zeros_(bias)


def _taught(taught: Floats, images: Floats, scores: torch.Tensor) -> torch.Tensor:
    """Return how far scores (texts, images) are from ranking images as the teacher does."""
    teacher = torch.from_numpy(taught @ images.T) / SOFTNESS
    return functional.kl_div(scores.log_softmax(1), teacher.softmax(1), reduction="batchmean")


def fit_names(towers: Towers, sets: Sequence[Examples], names: Names, labels: npt.NDArray[np.intp]) -> None:
    """Fit the names half. `sets` are sets of images; those of the first one have labels (N,)."""
    rng = np.random.default_rng(1)
    _project_names(
        towers, names, np.concatenate([one.views[0, :, FEATURES : FEATURES + EVIDENCE].float().numpy() for one in sets])
    )
    sharpness = nn.Parameter(torch.tensor(2.5))
    layers = (towers.names_hidden, towers.names_out, towers.names_direct, towers.named)
    parameters = [sharpness, *(parameter for layer in layers for parameter in layer.parameters())]
    optimiser = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0)
    steps = NAMES_EPOCHS * NAMES_STEPS
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps + 1, pct_start=0.1)
    towers.train()
    for step in range(steps):
        chosen = [rng.choice(len(one), BATCH if one is sets[0] else BATCH // 2, replace=False) for one in sets]
        seen = [
            towers.names_of_images(one.views[0, torch.from_numpy(rows)].float(), drop=NAMES_DROPOUT)
            for one, rows in zip(sets, chosen, strict=True)
        ]
        pool = names.pools[step % len(names.pools)]
        asked = rng.choice(pool, min(384, len(pool)), replace=False)
        texts = towers.names_of_texts(torch.from_numpy(names.texts.named[asked].astype(np.float32)))
        taught = np.concatenate([one.taught[rows] for one, rows in zip(sets, chosen, strict=True)])
        loss = _taught(names.taught[asked], taught, sharpness.exp() * texts @ torch.cat(seen).T)
        of_labels = np.array([rng.choice(own) for own in names.of_label])
        texts = towers.names_of_texts(torch.from_numpy(names.texts.named[of_labels].astype(np.float32)))
        right = torch.from_numpy(labels[chosen[0]])
        scores = sharpness.exp() * seen[0] @ texts.T
        loss = loss + 0.2 * functional.cross_entropy(scores, right, label_smoothing=SMOOTHING)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()


def fit(
    towers: Towers,
    labelled: Examples,
    labels: npt.NDArray[np.intp],
    names: Names,
    captioned: Examples | None,
    tagged: Examples | None,
    report: Callable[[str], None],
) -> None:
    """Fit all layers: first the names alone, then everything together. Without captions, the names only."""
    sets = [labelled, *(one for one in (tagged, captioned) if one is not None)]
    fit_names(towers, sets, names, labels)
    rng = np.random.default_rng(2)
    names_layers = (towers.names_hidden, towers.names_out, towers.names_direct, towers.named)
    gates = [*towers.gate.parameters(), *towers.gate_direct.parameters()]
    of_names = [parameter for layer in names_layers for parameter in layer.parameters()]
    known = {id(parameter) for parameter in (*gates, *of_names)}
    others = [parameter for parameter in towers.parameters() if id(parameter) not in known]
    groups = [
        {"params": gates, "lr": GATE_LEARNING_RATE, "weight_decay": 1e-3},
        {"params": of_names, "lr": NAMES_LEARNING_RATE, "weight_decay": 0.0},
        {"params": [one for one in others if one.ndim > 1], "lr": LEARNING_RATE, "weight_decay": WEIGHT_DECAY},
        {"params": [one for one in others if one.ndim <= 1], "lr": LEARNING_RATE, "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups)
    each_epoch = len(captioned or labelled) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, [group["lr"] for group in groups], total_steps=EPOCHS * each_epoch + 1, pct_start=0.1
    )
    towers.train()
    for epoch in range(EPOCHS):
        order = rng.permutation(len(captioned or labelled))
        total = 0.0
        for step in range(each_epoch):
            loss = torch.zeros(())
            seen = []
            if captioned is not None and tagged is not None:
                loss = _captions(towers, captioned, order[step * BATCH : (step + 1) * BATCH], rng)
                rows = rng.choice(len(tagged), BATCH // 2, replace=False)
                images = _view(towers, tagged, rows, rng)
                loss = loss + TAGS * towers.contrast(images, _texts(towers, tagged, rows, rng))
                few = rng.choice(len(captioned), BATCH // 4, replace=False)
                seen = [(tagged, rows[: BATCH // 4], images[: BATCH // 4])]
                seen += [(captioned, few, towers.images(captioned.views[0, torch.from_numpy(few)]))]
            rows = rng.choice(len(labelled), BATCH // 2, replace=False)
            seen = [(labelled, rows, towers.images(labelled.views[0, torch.from_numpy(rows)])), *seen]
            loss = loss + _named(towers, names, seen, labels[rows], rng)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(towers.parameters(), 5.0)
            optimiser.step()
            schedule.step()
            total += float(loss.detach())
        report(f"epoch {epoch + 1} of {EPOCHS}: loss {total / each_epoch:.3f}")
    towers.eval()


def _view(towers: Towers, examples: Examples, rows: npt.NDArray[np.intp], rng: np.random.Generator) -> torch.Tensor:
    """Return the embeddings of one of the views of images."""
    return towers.images(examples.views[int(rng.integers(len(examples.views))), torch.from_numpy(rows)])


def _texts(towers: Towers, examples: Examples, rows: npt.NDArray[np.intp], rng: np.random.Generator) -> torch.Tensor:
    """Return the embeddings of one of the texts of each image."""
    assert examples.texts is not None
    return towers.texts(*examples.texts.batch([int(rng.choice(examples.of_image[row])) for row in rows]))


def _captions(towers: Towers, examples: Examples, rows: npt.NDArray[np.intp], rng: np.random.Generator) -> torch.Tensor:
    """Return the loss of captions and their photographs, by both halves and by the scene alone."""
    texts = _texts(towers, examples, rows, rng)
    if rng.random() < MIXED:
        texts = (texts + _texts(towers, examples, rows, rng)) / 2
        texts = torch.cat([functional.normalize(texts[:, :SCENE], dim=1), texts[:, SCENE:]], 1)
    images = _view(towers, examples, rows, rng)
    return towers.contrast(images, texts) + SCENE_ALONE * towers.contrast(images[:, :SCENE], texts[:, :SCENE])


def _named(
    towers: Towers,
    names: Names,
    seen: Sequence[tuple[Examples, npt.NDArray[np.intp], torch.Tensor]],
    right: npt.NDArray[np.intp],
    rng: np.random.Generator,
) -> torch.Tensor:
    """Return the loss of names: against the teacher on all images, and by the labels of the first ones.

    The scene takes part, but only a share of the gradient moves it: it is for captions first.
    """

    def shared(vectors: torch.Tensor) -> torch.Tensor:
        scene = NAMED_IN_SCENE * vectors[:, :SCENE] + (1 - NAMED_IN_SCENE) * vectors[:, :SCENE].detach()
        return torch.cat([scene, vectors[:, SCENE:]], 1)

    sharpness = towers.sharpness.exp().clamp(max=100).detach()
    pool = names.pools[int(rng.integers(len(names.pools)))]
    asked = rng.choice(pool, min(256, len(pool)), replace=False)
    images = shared(torch.cat([vectors for _, _, vectors in seen]))
    taught = np.concatenate([examples.taught[rows] for examples, rows, _ in seen])
    scores = sharpness * shared(towers.texts(*names.texts.batch(asked))) @ images.T
    loss = NAMED * _taught(names.taught[asked], taught, scores)
    texts = shared(towers.texts(*names.texts.batch([int(rng.choice(own)) for own in names.of_label])))
    scores = sharpness * images[: len(right)] @ texts.T
    return loss + LABELS * functional.cross_entropy(scores, torch.from_numpy(right), label_smoothing=SMOOTHING)
