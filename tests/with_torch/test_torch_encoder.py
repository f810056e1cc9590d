"""The encoder on PyTorch: devices, threads, precision, names, and a collection of two encoders."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from seeds import pictures
from torchvision import transforms

import pixmatcher
from pixmatcher import Collection, FeatureExtractor, index, load_encoder, search, text_to_vector
from pixmatcher.encoders import Runtime
from pixmatcher.encoders.torch.encoder import TorchEncoder, choose_device
from pixmatcher.encoders.torch.models import TorchModel, import_weights, open_torch_model
from pixmatcher.errors import EncoderError, QueryError
from pixmatcher.searching import Query

WeightsOf = Callable[[str], Path]
SMALL = "mobilenet_v3_small"
CPU = torch.device("cpu")


def save(path: Path, seed: int, size: tuple[int, int]) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pictures(1, seed=seed)[0]).resize(size).save(path)
    return path


@pytest.fixture
def small(weights_of: WeightsOf) -> TorchEncoder:
    return TorchEncoder(open_torch_model(SMALL, weights=weights_of(SMALL)), CPU)


def test_the_embeddings_are_float32_of_length_1(small: TorchEncoder) -> None:
    vectors = small.encode_images(pictures(3))
    assert vectors.keys() == {"visual"}
    assert (vectors["visual"].shape, vectors["visual"].dtype) == ((3, 576), np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors["visual"], axis=1), 1, atol=1e-6)
    assert small.encode_texts(["a cat"]) == {}
    assert small.encode_images(pictures(1)[:0])["visual"].shape == (0, 576)
    read_only = pictures(2)
    read_only.flags.writeable = False
    assert np.array_equal(small.encode_images(read_only)["visual"], small.encode_images(pictures(2))["visual"])
    with pytest.raises(ValueError, match="must be uint8"):
        small.encode_images(pictures(2).astype(np.float32))


def test_many_threads_compute_the_same_and_keep_the_number_of_threads(small: TorchEncoder) -> None:
    batches = [pictures(4, seed=seed) for seed in range(8)]
    expected = [small.encode_images(batch)["visual"] for batch in batches]
    usual = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with ThreadPoolExecutor(4) as executor:
            for _ in range(3):
                found = list(executor.map(lambda batch: small.encode_images(batch)["visual"], batches))
                assert all(np.array_equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
        with ThreadPoolExecutor(1) as executor:
            assert executor.submit(torch.get_num_threads).result() == torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(usual)


def test_half_precision_is_close_and_fp32_is_used_if_it_overflows(weights_of: WeightsOf) -> None:
    def opened(half: bool, scale: float) -> TorchEncoder:
        model = open_torch_model(SMALL, weights=weights_of(SMALL))
        model.visual[0][-1][1].weight.mul_(scale)  # type: ignore[index]
        model.visual[0][-1][1].bias.mul_(scale)  # type: ignore[index]
        return TorchEncoder(model, CPU, half=half)

    pixels = pictures(3)
    for scale, worst in ((1, 1e-3), (1e6, 1e-6)):  # a million is beyond it: computed again in float32
        half, single = (opened(half, scale).encode_images(pixels)["visual"] for half in (True, False))
        assert np.isfinite(half).all()
        assert 1 - (half * single).sum(1).min() < worst


def test_devices() -> None:
    assert choose_device("cpu") == CPU
    assert choose_device().type in ("cuda", "mps", "cpu")
    for wrong in ("cuda:99", "cudo", "meta", "cuda:x", ""):
        with pytest.raises(EncoderError, match=rf"The device '{wrong}' is not available: choose one of auto, .*cpu\.$"):
            load_encoder(SMALL, Runtime(device=wrong, backend="torch"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("torchvision:resnet81", "no classification network 'resnet81': did you mean resnet"),
        ("torchvision:fcn_resnet50", "no classification network"),
        (
            "torchvision:resnet18/IMAGENET1K_V7",
            "no weights of resnet18 called 'IMAGENET1K_V7': did you mean IMAGENET1K_V1",
        ),
        ("torchvision:squeezenet1_0", "choose another network"),
        ("timm:resnet81", "no network 'resnet81': did you mean"),
        ("timm:resnet18.nothing", "no weights of resnet18 called 'nothing'"),
        ("timm:hf-hub:some/repository", "no network"),
        ("timm:../resnet18", "no network"),
        ("open_clip:ViT-B-33/openai", "no network 'ViT-B-33': did you mean"),
        ("open_clip:ViT-B-32", "no weights of ViT-B-32 called ''"),
        ("open_clip:ViT-B-32/openia", "did you mean openai"),
        ("open_clip:ViT-B-16-SigLIP/webli", "as hf:REPO"),
        ("open_clip:hf-hub:some/repository/tag", "no network"),
        ("open_clip:local-dir:/etc/tag", "no network"),
        ("open_clip:coca_ViT-B-32/laion2b_s13b_b90k", "choose another network"),
    ],
)
def test_unknown_models_are_reported_in_one_sentence(name: str, words: str) -> None:
    with pytest.raises(EncoderError) as caught:
        load_encoder(name)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_collection_of_both_encoders(tmp_path: Path, weights_of: WeightsOf, clip_weights: Path) -> None:
    """As in the original project, MobileNetV3 finds images and CLIP finds texts. The weights are random."""
    import_weights("mobilenet_v3_large", weights_of("mobilenet_v3_large"))
    import_weights("clip-vit-b-32", clip_weights)
    paths = [save(tmp_path / "photos" / f"{seed}.png", seed, (300, 240)) for seed in range(9)]
    report = index(tmp_path / "photos", encoders=["mobilenet_v3_large", "clip-vit-b-32"])
    assert (report.added, report.failures) == (9, [])
    with Collection.open(tmp_path / "photos") as collection:
        assert {space: held.dimension for space, held in collection.spaces.items()} == {"visual": 960, "clip": 512}
        for path in paths[:3]:
            result = search(collection, Query(image=str(path)), k=2)
            assert (result.space, result.hits[0].item.uri) == ("visual", str(path))
            assert result.hits[0].score > 0.999 > result.hits[1].score
        result = search(collection, "a cat asleep", k=9)
        assert (result.space, len(result.hits)) == ("clip", 9)
        # The scores are the cosines of the results of text_to_vector and of the encoder.
        encoder = load_encoder("clip-vit-b-32")
        vector = text_to_vector("a cat asleep")
        assert (vector.shape, vector.dtype) == ((512,), np.float32)
        assert np.linalg.norm(vector) == pytest.approx(1)
        fitted = pixmatcher.images.fit_image(Image.open(result.hits[0].item.uri).convert("RGB"), encoder.recipe)
        assert encoder.encode_images(fitted[None])["clip"][0] @ vector == pytest.approx(result.hits[0].score, abs=2e-3)
        with pytest.raises(QueryError, match="not valid Unicode"):
            encoder.encode_texts(["\ud800"])


def test_the_features_are_those_of_the_original(tmp_path: Path, weights_of: WeightsOf) -> None:
    """Compared with the original project: Resize, ToTensor, Normalize, and the network up to its pool."""
    from torchvision.models import mobilenet_v3_large

    file = weights_of("mobilenet_v3_large")
    network = mobilenet_v3_large(weights=None).eval()
    network.load_state_dict(torch.load(file, weights_only=True))
    normalize = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    for size in ((224, 224), (160, 256)):
        extractor = FeatureExtractor(target_size=size, weights=file)
        original = transforms.Compose([transforms.Resize(size), transforms.ToTensor(), normalize])
        for number, shape in enumerate([(640, 200), (90, 120)]):
            path = save(tmp_path / f"{number}.jpg", number, shape)
            image = Image.open(path).convert("RGB")
            with torch.no_grad():
                reference = network.avgpool(network.features(original(image)[None])).flatten().numpy()
            for features in (
                extractor.extract_features(path),
                extractor.extract_features(str(path)),
                extractor.extract_features(image),
                extractor.extract_features(original(image), from_preprocessed=True),
                extractor.extract_features(original(image)[None], from_preprocessed=True),
            ):
                assert (features.shape, features.dtype) == ((960,), np.float32)
                np.testing.assert_allclose(features, reference, rtol=0, atol=1e-5 * max(1, np.abs(reference).max()))
    assert np.linalg.norm(reference) != pytest.approx(1, abs=0.1)
    with pytest.raises(ValueError, match="must be \\(3, H, W\\)"):
        extractor.extract_features(torch.zeros(2, 3, 224, 224), from_preprocessed=True)
    with pytest.raises(EncoderError, match="The device 'cuda:99' is not available"):
        FeatureExtractor("cuda:99", weights=file)


def test_a_text_does_not_depend_on_its_neighbours_when_images_are_embedded_meanwhile(clip_model: TorchModel) -> None:
    encoder = TorchEncoder(clip_model, CPU)
    expected = encoder.encode_texts(["a dog", "a cat"])["clip"]
    with ThreadPoolExecutor(2) as executor:
        images = executor.submit(encoder.encode_images, pictures(2))
        found = [executor.submit(encoder.encode_texts, [text]).result()["clip"][0] for text in ("a dog", "a cat")]
        assert np.isfinite(images.result()["clip"]).all()
    np.testing.assert_allclose(np.stack(found), expected, rtol=0, atol=1e-6)
