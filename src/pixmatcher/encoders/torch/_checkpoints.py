"""Files of PyTorch weights: read without running anything in them, told in one sentence what is wrong, kept, hashed."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ...errors import EncoderError, StorageError

if TYPE_CHECKING:
    from torch import Tensor

StateDict: TypeAlias = "dict[str, Tensor]"

_WRAPPERS = ("state_dict", "model")
"""Where a checkpoint of a training has the weights among other things."""
_PREFIXES = ("module.", "_orig_mod.")
"""What wrappers of a model put before all names."""
_CONVERT = "save its state dict as safetensors where it was made"


def read_state_dict(path: Path) -> StateDict:
    """Read the tensors of a file, .safetensors or .pth; its content decides which it is, not its name.

    Pickles are opened with `weights_only`, so that nothing in them is called. Raises `EncoderError` if the file cannot
    be read, is cut off or damaged, is no file of weights, or holds more than tensors.
    """
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise EncoderError(f"{path} cannot be read ({error.strerror}): name a file of weights.") from error
    if head[8:] == b"{":
        return _read_safetensors(path)
    if head.startswith(b"PK"):
        _check_archive(path)
    elif not head.startswith(b"\x80"):
        raise EncoderError(f"{path} is no file of weights: name a state dict of PyTorch (.pth) or a .safetensors.")
    return _read_pickle(path)


def _read_safetensors(path: Path) -> StateDict:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: StateDict = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise EncoderError(f"{path} is cut off or damaged ({error}): get it again.") from error
    return _bare(tensors)


def _check_archive(path: Path) -> None:
    """Raise `EncoderError` for a zip file that is no checkpoint, before PyTorch sees it."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise EncoderError(f"{path} is cut off or damaged ({error}): get it again.") from error
    if any("/code/" in part.filename or part.filename.endswith("/constants.pkl") for part in parts):
        raise EncoderError(f"{path} is a TorchScript program, which is not opened: {_CONVERT}.")
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts):  # PyTorch never does; it may be a bomb
        raise EncoderError(f"{path} is a compressed archive and no checkpoint of PyTorch: unpack it first.")


def _read_pickle(path: Path) -> StateDict:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it says of odd files is nothing to whoever uses them
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise EncoderError(f"{path} holds more than tensors, which is not opened: {_CONVERT}.") from error
    except Exception as error:  # each kind of damage raises its own
        raise EncoderError(f"{path} is cut off or damaged ({_first_line(error)}): get it again.") from error
    for wrapper in _WRAPPERS:
        if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get(wrapper), Mapping):
            checkpoint = checkpoint[wrapper]
            break
    if not isinstance(checkpoint, Mapping) or not checkpoint:
        raise EncoderError(f"{path} holds no state dict: {_CONVERT}.")
    for name, tensor in checkpoint.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor) or not _is_plain(tensor):
            raise EncoderError(f"{path} holds {name!r}, which is no tensor of weights: {_CONVERT}.")
    return _bare(dict(checkpoint))


def _is_plain(tensor: Any) -> bool:
    """Whether a tensor is what its file holds, and not a few bytes that claim to be gigabytes."""
    import torch

    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        return False
    return bool(tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes())


def _bare(tensors: StateDict) -> StateDict:
    """The tensors without what wrappers put before their names."""
    for prefix in _PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


@contextmanager
def fitting(path: Path, name: str) -> Iterator[None]:
    """Turn what a network says of tensors that do not fit into one sentence with the first of them."""
    try:
        yield
    except EncoderError:
        raise
    except Exception as error:  # libraries that convert the weights of others raise what they like
        raise EncoderError(
            f"{path} does not hold the weights of {name}: {_misfit(str(error))}. Name the encoder that it is of, or "
            "get the file again."
        ) from error


def _misfit(message: str) -> str:
    """What is wrong, of the list that `Module.load_state_dict` gives."""
    if missing := re.search(r'Missing key\(s\) in state_dict: "([^"]+)"', message):
        return f"the tensor {missing[1]} is missing"
    if shapes := re.search(r"size mismatch for (\S+): .*?Size\(\[(.*?)\]\).*?Size\(\[(.*?)\]\)", message):
        return f"the tensor {shapes[1]} has the shape ({shapes[2]}) instead of ({shapes[3]})"
    if unexpected := re.search(r'Unexpected key\(s\) in state_dict: "([^"]+)"', message):
        return f"the tensor {unexpected[1]} is one too many"
    return (message.strip() or "its tensors have other names").splitlines()[0].rstrip(".")


def save_state_dict(tensors: StateDict, path: Path) -> None:
    """Save tensors as safetensors: beside `path` first, so that it is there whole or not at all.

    Raises `StorageError` if it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    storages: set[int] = set()
    apart: StateDict = {}
    for name, tensor in tensors.items():
        whole = tensor.detach().contiguous()
        # The format has no tensors that share their values.
        shared = whole.untyped_storage().data_ptr() in storages
        apart[name] = whole.clone() if shared else whole
        storages.add(apart[name].untyped_storage().data_ptr())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(prefix=path.name, suffix=".part", dir=path.parent)
        os.close(handle)
        try:
            save_file(apart, beside)
            os.replace(beside, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(beside)
            raise
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{path} cannot be written ({error}): make room, or set PIXMATCHER_CACHE.") from error


def hash_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors: of each, in the order of names, its name, type, shape and bytes.

    What counts batches in training is left out: files have it or not, and no embedding depends on it.
    """
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        if name.endswith("num_batches_tracked"):
            continue
        tensor = tensors[name].detach().cpu()
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
