"""Files of PyTorch weights: read them without running code in them, save them, and hash them."""

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
"""The keys under which a training checkpoint stores the weights."""
_PREFIXES = ("module.", "_orig_mod.")
"""Prefixes that wrappers of a model add to all names."""
_CONVERT = "save its state dict as safetensors with the program that made it"


def read_state_dict(path: Path) -> StateDict:
    """Read the tensors of a file, safetensors or a pickle of PyTorch, whatever the name of the file.

    Pickles are opened with `weights_only`, so no code in them is called. Raises `EncoderError` if the file cannot be
    read, is truncated or damaged, is not a file of weights, or contains more than tensors.
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
        raise EncoderError(f"{path} is not a file of weights: name a state dict of PyTorch (.pth) or a .safetensors.")
    return _read_pickle(path)


def _read_safetensors(path: Path) -> StateDict:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: StateDict = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise EncoderError(f"{path} is truncated or damaged ({error}): download it again.") from error
    return _without_prefix(tensors)


def _check_archive(path: Path) -> None:
    """Raise `EncoderError` for a zip file that is not a checkpoint, before PyTorch opens it."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise EncoderError(f"{path} is truncated or damaged ({error}): download it again.") from error
    if any("/code/" in part.filename or part.filename.endswith("/constants.pkl") for part in parts):
        raise EncoderError(f"{path} is a TorchScript program, which is not opened: {_CONVERT}.")
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts):  # PyTorch never does; it may be a bomb
        raise EncoderError(f"{path} is a compressed archive, not a checkpoint of PyTorch: unpack it first.")


def _read_pickle(path: Path) -> StateDict:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's warnings about odd files do not help the user
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise EncoderError(f"{path} contains more than tensors, which is not opened: {_CONVERT}.") from error
    except Exception as error:  # each kind of damage raises its own
        raise EncoderError(f"{path} is truncated or damaged ({_first_line(error)}): download it again.") from error
    for wrapper in _WRAPPERS:
        if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get(wrapper), Mapping):
            checkpoint = checkpoint[wrapper]
            break
    if not isinstance(checkpoint, Mapping) or not checkpoint:
        raise EncoderError(f"{path} contains no state dict: {_CONVERT}.")
    for name, tensor in checkpoint.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor) or not _is_plain(tensor):
            raise EncoderError(f"{path} contains {name!r}, which is not a tensor of weights: {_CONVERT}.")
    return _without_prefix(dict(checkpoint))


def _is_plain(tensor: Any) -> bool:
    """Whether the values of a tensor are all in its file, and it is not a few bytes that claim to be gigabytes."""
    import torch

    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        return False
    return bool(tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes())


def _without_prefix(tensors: StateDict) -> StateDict:
    """Return the tensors with the prefixes of wrappers removed from their names."""
    for prefix in _PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


@contextmanager
def fitting(path: Path, name: str) -> Iterator[None]:
    """Raise an error of the block about tensors that do not fit as one sentence about the first of them."""
    try:
        yield
    except EncoderError:
        raise
    except Exception as error:  # libraries that convert weights raise any exception
        raise EncoderError(
            f"{path} does not contain the weights of {name}: {_misfit(str(error))}. Name the right encoder, or "
            "download the file again."
        ) from error


def _misfit(message: str) -> str:
    """Return the first problem in the list that `Module.load_state_dict` reports."""
    if missing := re.search(r'Missing key\(s\) in state_dict: "([^"]+)"', message):
        return f"the tensor {missing[1]} is missing"
    if shapes := re.search(r"size mismatch for (\S+): .*?Size\(\[(.*?)\]\).*?Size\(\[(.*?)\]\)", message):
        return f"the tensor {shapes[1]} has the shape ({shapes[2]}) instead of ({shapes[3]})"
    if unexpected := re.search(r'Unexpected key\(s\) in state_dict: "([^"]+)"', message):
        return f"the tensor {unexpected[1]} is unexpected"
    return (message.strip() or "its tensors have other names").splitlines()[0].rstrip(".")


def save_state_dict(tensors: StateDict, path: Path) -> None:
    """Save tensors as safetensors, to a temporary file first, so that `path` is never incomplete.

    Raises `StorageError` if the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    storages: set[int] = set()
    separate: StateDict = {}
    for name, tensor in tensors.items():
        contiguous = tensor.detach().contiguous()
        # In this format, tensors cannot share their values.
        shared = contiguous.untyped_storage().data_ptr() in storages
        separate[name] = contiguous.clone() if shared else contiguous
        storages.add(separate[name].untyped_storage().data_ptr())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=path.name, suffix=".part", dir=path.parent)
        os.close(handle)
        try:
            save_file(separate, temporary)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{path} cannot be written ({error}): free some space, or set PIXMATCHER_CACHE.") from error


def hash_of(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the name, type, shape and bytes of each tensor, sorted by name.

    Counters of training batches are left out: not all files have them, and no embedding depends on them.
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
