"""Files of weights: which are accepted, which are refused and never run, and which are kept."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pixmatcher.encoders.torch._checkpoints import read_state_dict
from pixmatcher.encoders.torch.models import import_weights, imported_weights, open_torch_model
from pixmatcher.errors import EncoderError, StorageError

WeightsOf = Callable[[str], Path]
SMALL = "mobilenet_v3_small"


@pytest.fixture
def small(weights_of: WeightsOf) -> Path:
    return weights_of(SMALL)


@pytest.fixture
def tensors(small: Path) -> dict[str, torch.Tensor]:
    return dict(torch.load(small, weights_only=True))


def test_the_fingerprint_does_not_depend_on_the_file_format(
    tmp_path: Path, small: Path, tensors: dict[str, torch.Tensor]
) -> None:
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in tensors.items()}}, tmp_path / "wrapped.pt")
    torch.save({"model": tensors}, tmp_path / "model.pth", _use_new_zipfile_serialization=False)
    save_file({k: v for k, v in tensors.items() if "num_batches" not in k}, tmp_path / "no_counts.safetensors")
    save_file(tensors, tmp_path / "misnamed.pth")
    files = [small, *(tmp_path / name for name in ("wrapped.pt", "model.pth", "no_counts.safetensors", "misnamed.pth"))]
    assert len({open_torch_model(SMALL, weights=file).fingerprint for file in files}) == 1
    # The fingerprint depends on all weights except the classifier.
    changed = {**tensors, "classifier.0.bias": tensors["classifier.0.bias"] + 1}
    torch.save(changed, tmp_path / "classifier.pth")
    changed = {**tensors, "features.0.0.weight": tensors["features.0.0.weight"] + 1}
    torch.save(changed, tmp_path / "features.pth")
    names = ("classifier.pth", "features.pth")
    prints = [open_torch_model(SMALL, weights=tmp_path / name).fingerprint for name in names]
    assert prints[0] == open_torch_model(SMALL, weights=small).fingerprint != prints[1]
    # And so has the recipe.
    with_v2 = open_torch_model("torchvision:mobilenet_v3_small", weights=small)
    assert with_v2.fingerprint == prints[0]


class Hostile:
    """An object whose pickle creates a folder when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["archive", "old", "bare"])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, how: str) -> None:
    mark, file = tmp_path / "was run", tmp_path / "weights.pth"
    if how == "bare":
        file.write_bytes(pickle.dumps(Hostile(mark)))
    else:
        torch.save({"a": torch.zeros(2), "b": Hostile(mark)}, file, _use_new_zipfile_serialization=how == "archive")
    with pytest.raises(EncoderError, match=r"weights\.pth contains more than tensors.*as safetensors"):
        open_torch_model(SMALL, weights=file)
    assert not mark.exists()
    # It would have been: the file is no harmless one.
    if how == "bare":
        pickle.loads(file.read_bytes())
        assert mark.is_dir()


def test_files_without_a_state_dict_are_refused(tmp_path: Path) -> None:
    def error_of(content: object) -> str:
        file = tmp_path / "weights.pth"
        torch.save(content, file)
        with pytest.raises(EncoderError) as caught:
            open_torch_model(SMALL, weights=file)
        assert str(file) in str(caught.value)
        return str(caught.value)

    assert "contains no state dict" in error_of([torch.zeros(3)])
    assert "contains no state dict" in error_of({})
    assert "'epoch', which is not a tensor" in error_of({"epoch": 3})
    assert "'a', which is not a tensor" in error_of(
        {"a": torch.zeros(1).expand(1 << 40)}
    )  # 4 bytes that claim to be 4 TB
    assert "'a', which is not a tensor" in error_of({"a": torch.eye(3).to_sparse()})
    assert "tensor features.0.0.weight is missing" in error_of({"a": torch.zeros(3)})


def test_missing_and_invalid_files_are_refused(tmp_path: Path, small: Path, tensors: dict[str, torch.Tensor]) -> None:
    def error_of(name: str) -> str:
        with pytest.raises(EncoderError) as caught:
            open_torch_model(SMALL, weights=tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "cannot be read (No such file or directory)" in error_of("missing.pth")
    (tmp_path / "folder").mkdir()
    assert "cannot be read (Is a directory)" in error_of("folder")
    (tmp_path / "empty.pth").touch()
    assert "is not a file of weights" in error_of("empty.pth")
    (tmp_path / "page.pth").write_text("<!doctype html><title>404</title>")
    assert "is not a file of weights" in error_of("page.pth")
    (tmp_path / "cut.pth").write_bytes(small.read_bytes()[: small.stat().st_size // 2])
    assert "is truncated or damaged" in error_of("cut.pth")
    torch.save(tensors, tmp_path / "whole_old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "cut_old.pth").write_bytes((tmp_path / "whole_old.pth").read_bytes()[:4_000_000])
    assert "is truncated or damaged" in error_of("cut_old.pth")
    save_file(tensors, tmp_path / "whole.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:4_000_000])
    assert "is truncated or damaged" in error_of("cut.safetensors")
    (tmp_path / "long.safetensors").write_bytes(b"\xff" * 7 + b"\x7f{" + bytes(100))  # a header of 2**63 bytes
    assert "is truncated or damaged" in error_of("long.safetensors")
    with zipfile.ZipFile(small) as whole, zipfile.ZipFile(tmp_path / "script.pt", "w") as script:
        for part in whole.namelist():
            script.writestr(part, whole.read(part))
        script.writestr("archive/code/__torch__.py", "")
    assert "is a TorchScript program, which is not opened" in error_of("script.pt")
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("archive/data.pkl", bytes(1 << 20))
    assert "is a compressed archive" in error_of("bomb.pth")


def test_a_tampered_archive_is_refused(tmp_path: Path, small: Path) -> None:
    content = bytearray(small.read_bytes())
    at = content.index(b"features.0.0.weight")
    content[at : at + 8] = b"FEATURES"
    (tmp_path / "tampered.pth").write_bytes(content)
    with pytest.raises(EncoderError, match=r"tampered\.pth .*(features\.0\.0\.weight is missing|damaged)"):
        open_torch_model(SMALL, weights=tmp_path / "tampered.pth")


def test_the_first_tensor_that_does_not_fit_is_named(
    tmp_path: Path, weights_of: WeightsOf, small: Path, tensors: dict[str, torch.Tensor]
) -> None:
    def error_of(name: str, file: Path) -> str:
        with pytest.raises(EncoderError) as caught:
            open_torch_model(name, weights=file)
        assert f"{file} does not contain the weights of {name}: the tensor " in str(caught.value)
        return str(caught.value)

    assert "features.1.block.1.0.weight is missing" in error_of("mobilenet_v3_large", small)
    assert "conv1.weight is missing" in error_of("timm:resnet18", small)
    assert "visual.class_embedding is missing" in error_of("clip-vit-b-32", small)
    save_file({**tensors, "features.0.0.weight": torch.zeros(16, 3, 5, 5)}, tmp_path / "shape.safetensors")
    shape = error_of(SMALL, tmp_path / "shape.safetensors")
    assert "features.0.0.weight has the shape (16, 3, 5, 5) instead of (16, 3, 3, 3)" in shape
    save_file({**tensors, "more": torch.zeros(1)}, tmp_path / "more.safetensors")
    assert "more is unexpected" in error_of(SMALL, tmp_path / "more.safetensors")


def test_imported_weights_are_found_later(cache: Path, small: Path, tensors: dict[str, torch.Tensor]) -> None:
    kept = import_weights(SMALL, small)
    assert kept == cache / "weights" / SMALL / "model.safetensors" == imported_weights(SMALL)
    assert load_file(kept).keys() == tensors.keys()
    model = open_torch_model(SMALL)
    assert model.source == "a file that was imported"
    assert model.fingerprint == open_torch_model(SMALL, weights=small).fingerprint
    assert os.listdir(kept.parent) == ["model.safetensors"]


def test_tensors_that_share_their_values_are_imported(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    tensors["features.0.1.bias"] = tensors["features.0.1.weight"]
    torch.save(tensors, tmp_path / "shared.pth")
    expected = open_torch_model(SMALL, weights=tmp_path / "shared.pth").fingerprint
    import_weights(SMALL, tmp_path / "shared.pth")
    assert open_torch_model(SMALL).fingerprint == expected


def test_weights_that_do_not_fit_are_not_kept(cache: Path, tmp_path: Path, small: Path) -> None:
    import_weights(SMALL, small)
    before = open_torch_model(SMALL).fingerprint
    torch.save({"a": torch.zeros(3)}, tmp_path / "wrong.pth")
    for name in ("mobilenet_v3_large", SMALL):
        with pytest.raises(EncoderError, match="does not contain the weights"):
            import_weights(name, tmp_path / "wrong.pth")
    assert not imported_weights("mobilenet_v3_large").exists()
    assert open_torch_model(SMALL).fingerprint == before


def test_an_unwritable_cache_is_reported(cache: Path, small: Path) -> None:
    cache.mkdir()
    (cache / "weights").write_text("in the way")
    with pytest.raises(StorageError, match="cannot be written"):
        import_weights(SMALL, small)


def test_reading_does_not_change_the_file(small: Path) -> None:
    before = small.read_bytes()
    assert read_state_dict(small)
    assert small.read_bytes() == before
