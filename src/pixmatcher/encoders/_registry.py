"""Encoders by name: the bundled one, those of model libraries, and those of other packages.

A name means, in this order: the bundled encoder, an encoder that `register_encoder` added in this process, one of
`_names.KNOWN` or a reference such as "timm:resnet50", or an encoder that an installed package declares as an entry
point of the group "pixmatcher.encoders".
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Callable, Container, Iterable, Sequence
from functools import cache, partial
from itertools import chain, count
from pathlib import Path

from .._plugins import ENCODERS, load_plugin, plugin_names
from .._text import command_to_upgrade
from ..errors import EncoderError, OutdatedCollectionError, PixMatcherError
from ..records import Calibrations, DescribesEncoder, EncoderRecord, Space
from ._device_choice import DeviceChoice
from ._names import INT8, KNOWN, TORCH_KINDS, is_reference, reference_of, torch_installed
from ._open_model import check_bundled_device, onnx_folder, open_model
from ._protocol import Encoder, calibrations_of, check_encoder, device_choice_of
from ._renamed import RenamedEncoder
from ._runtime import Runtime

logger = logging.getLogger("pixmatcher.encoders")

EncoderFactory = Callable[[], Encoder]
"""Makes an encoder: a class without arguments, or a function."""

DEFAULT_ENCODER = "lite"


def _make_lite(device: str = "cpu") -> Encoder:
    from .lite import LiteEncoder

    return LiteEncoder(device=device)


_BUNDLED: dict[str, EncoderFactory] = {DEFAULT_ENCODER: _make_lite}
_registered: dict[str, EncoderFactory] = {}


# ---- Encoders of the caller and of other packages ----


def register_encoder(name: str, factory: EncoderFactory) -> None:
    """Give an encoder a name in this process, under which it can be used like any other.

    `factory` makes the encoder when it is first needed; its `name` must be the same. A second call with the same name
    replaces the first. A package that wants its encoder to be found in every process declares an entry point of the
    group "pixmatcher.encoders" instead.

    Raises `EncoderError` if the name is a built-in one, or contains ":".
    """
    if _is_built_in(name) or not name:
        raise EncoderError(f"An encoder cannot be registered as {name!r}: use a name without ':' that is not built in.")
    _registered[name] = factory
    unload_encoders()


def unregister_encoder(name: str) -> None:
    """Undo `register_encoder`; a name that is not registered is ignored."""
    _registered.pop(name, None)
    unload_encoders()


def unload_encoders() -> None:
    """Forget the encoders that are loaded, so that their files are read again when they are next used."""
    _load_once.cache_clear()


def plugin_encoder_names() -> list[str]:
    """Return the names of the encoders that other packages declare or that were registered, sorted."""
    declared = [name for name in plugin_names(ENCODERS) if not _is_built_in(name)]
    return sorted({*_registered, *declared})


def _is_built_in(name: str) -> bool:
    """Return whether a name cannot be that of another package: it is built in, or a reference, which has a ":"."""
    return name in _BUNDLED or ":" in name or is_reference(name)


def _factory_of(name: str) -> EncoderFactory | None:
    """Return the factory of the encoder called `name`; None for a model, which `open_model` opens.

    Raises `EncoderError` if the package that declares the name is broken.
    """
    if name in _BUNDLED:
        return _BUNDLED[name]
    if name in _registered:
        return _registered[name]
    return None if _is_built_in(name) else load_plugin(ENCODERS, name, EncoderError)


def _make(name: str, factory: EncoderFactory) -> Encoder:
    """Call a factory. Raises `EncoderError` if it fails, or what it makes is not the encoder called `name`."""
    try:
        encoder = factory()
    except EncoderError:
        raise
    except Exception as error:  # the code of another package may raise anything
        raise EncoderError(
            f"The encoder {name} cannot be loaded ({type(error).__name__}: {error}): repair or uninstall the package "
            "that it comes from."
        ) from error
    check_encoder(encoder)
    if encoder.name != name:
        raise EncoderError(
            f"The encoder registered as {name!r} has the name {encoder.name!r}: both names must be the same, "
            "because collections record the latter."
        )
    return encoder


# ---- Loading ----


def load_encoder(name: str = DEFAULT_ENCODER, runtime: Runtime | None = None) -> Encoder:
    """Return the encoder called `name`. It is loaded once in each process.

    The name is "lite", another name that `pixmatcher models list` shows, a reference (torchvision:NAME, timm:NAME,
    open_clip:ARCH/TAG, hf:REPO, onnx:FOLDER), or the name of a registered encoder or of an encoder of another package.
    With "@int8" at its end it is the int8 version.

    Raises `EncoderError` if the name is unknown or the encoder cannot be loaded, `FetchError` or `StorageError` if it
    cannot be downloaded.
    """
    return _load_once(full_name(name), runtime or Runtime())


def full_name(encoder: str | Encoder) -> str:
    """Return the name of an encoder as collections record it: a folder by its absolute path.

    Raises `EncoderError` if the name is unknown.
    """
    if not isinstance(encoder, str):
        return encoder.name
    if _factory_of(encoder) is not None:
        return encoder
    kind, rest = _reference_of(encoder)
    return f"onnx:{os.path.abspath(os.path.expanduser(rest))}" if kind == "onnx" else encoder


def _reference_of(name: str) -> tuple[str, str]:
    """As `reference_of`; the error also lists the encoders of other packages."""
    return reference_of(name) if is_reference(name) else reference_of(name, also=plugin_encoder_names())


@cache
def _load_once(name: str, runtime: Runtime) -> Encoder:
    """Open an encoder, once for each name and runtime."""
    started = time.perf_counter()
    factory = _factory_of(name)
    if name == DEFAULT_ENCODER:
        check_bundled_device(name, runtime.device)
        factory = partial(_make_lite, runtime.device)
    encoder = open_model(name, runtime) if factory is None else _make(name, factory)
    logger.info("Encoder %s opened in %.2f s, fingerprint %s", name, time.perf_counter() - started, encoder.fingerprint)
    return encoder


def load_encoders(encoders: Sequence[str | Encoder], runtime: Runtime | None = None) -> list[Encoder]:
    """Return the encoders of a new collection, given as names or as objects; no two spaces have the same name.

    Where two encoders have a space of the same name, that of the later one gets a number. Raises as `load_encoder`.
    """
    loaded: dict[str, Encoder] = {}
    for given in encoders:
        name = full_name(given)
        if name not in loaded:
            loaded[name] = load_encoder(name, runtime) if isinstance(given, str) else given
    result: list[Encoder] = []
    for encoder in loaded.values():
        taken = {space.name for earlier in result for space in earlier.spaces}
        result.append(_with_names(encoder, {space.name: _free_name(space.name, taken) for space in encoder.spaces}))
    return result


def _free_name(name: str, taken: Container[str]) -> str:
    return next(free for free in chain([name], (f"{name}-{n}" for n in count(2))) if free not in taken)


def _with_names(encoder: Encoder, names: dict[str, str]) -> Encoder:
    """Return the encoder with its spaces renamed by `names`, old name -> new name."""
    return encoder if all(old == new for old, new in names.items()) else RenamedEncoder(encoder, names)


def load_recorded(records: Iterable[DescribesEncoder], runtime: Runtime | None = None) -> list[Encoder]:
    """Return the encoders that made a collection, their spaces named as in the collection.

    An encoder object of `runtime.encoders` is used for the record of its name. A record without a fingerprint is met
    by any version. Raises `EncoderError` if an encoder is unknown, `OutdatedCollectionError` if it has another
    fingerprint, and as `load_encoder`.
    """
    given = {encoder.name: encoder for encoder in (runtime.encoders if runtime is not None else ())}
    encoders = []
    for record in records:
        try:
            encoder = given[record.name] if record.name in given else load_encoder(record.name, runtime)
        except EncoderError as error:
            if _is_unknown(record.name):
                raise EncoderError(
                    f"The collection was made with the encoder {record.name}. Unknown encoder {record.name!r}: install "
                    "the package that has it, or index the images themselves into another collection with -c."
                ) from error
            raise EncoderError(f"The collection was made with the encoder {record.name}. {error}") from error
        if record.fingerprint not in ("", encoder.fingerprint):
            raise _outdated(record, is_object=record.name in given)
        encoders.append(_with_names(encoder, _recorded_names(encoder, record)))
    return encoders


def _recorded_names(encoder: Encoder, record: DescribesEncoder) -> dict[str, str]:
    """Return the names of the spaces of a record by the names that the encoder gives them.

    Raises `EncoderError` if the encoder has no such space.
    """
    names = {space.name: space.name for space in encoder.spaces}
    for space in record.spaces:
        if space.name in names:
            continue
        own = re.sub(r"-\d+$", "", space.name)
        if own not in names:
            # Saved embeddings of an encoder that was not known when they were imported: only the dimension says which.
            fitting = [each.name for each in encoder.spaces if each.dimension == space.dimension]
            if len(fitting) != 1:
                raise EncoderError(
                    f"The encoder {record.name} has no space {space.name} of {space.dimension} values: index into "
                    "another collection with -c, or install the version that made this one."
                )
            own = fitting[0]
        names[own] = space.name
    return names


def _is_unknown(name: str) -> bool:
    """Return whether a name is neither a reference nor that of an encoder of this or another package."""
    return not _is_built_in(name) and name not in plugin_encoder_names()


def _outdated(record: DescribesEncoder, *, is_object: bool) -> OutdatedCollectionError:
    """Return the error for a collection that was made with another version of an encoder."""
    folder = record.folder if isinstance(record, EncoderRecord) else ""
    if not folder:
        remedy = "index into another collection with -c, or install the version that made it."
    elif is_object:
        remedy = f"call pixmatcher.upgrade({folder!r}, encoders=[...]) with the encoder object."
    else:
        remedy = f"run `{command_to_upgrade(folder)}`."
    what = folder or "The collection"
    return OutdatedCollectionError(f"{what} was made with another version of the encoder {record.name}: {remedy}")


def recorded_calibrations(record: DescribesEncoder, runtime: Runtime | None = None) -> Calibrations:
    """Return the calibrations that the encoder of a collection carries, its spaces named as in the collection.

    No model is opened for it: those of `KNOWN` and references carry none. {} also if the encoder cannot be used here.
    """
    given = runtime is not None and any(encoder.name == record.name for encoder in runtime.encoders)
    try:
        if not given and _factory_of(record.name) is None:
            return {}
        return calibrations_of(load_recorded([record], runtime)[0])
    except PixMatcherError:
        return {}


def describe_encoder(name: str) -> EncoderRecord:
    """Return the name, fingerprint and spaces of an encoder; the large ones of `KNOWN` are not loaded for it.

    The fingerprint of these is "", as it depends on the weights. Raises `EncoderError` if the name is unknown.
    """
    if name in KNOWN:
        return EncoderRecord(name, "", (KNOWN[name].space,))
    encoder = _make_lite() if name == DEFAULT_ENCODER else load_encoder(name)
    return EncoderRecord(encoder.name, encoder.fingerprint, tuple(encoder.spaces))


def describe_device(name: str, runtime: Runtime | None = None) -> DeviceChoice | None:
    """Return on which device an encoder runs here, and why; None for one of another package, or not on this machine.

    No network is loaded, and nothing is measured.
    """
    runtime = runtime or Runtime()
    try:
        factory = _factory_of(name)
        if factory is None and onnx_folder(name, runtime) is None:
            installed = torch_installed() and runtime.backend != "onnx"
            return DeviceChoice(runtime.device, "PyTorch", detail="PyTorch runs it") if installed else None
        if factory is None or name == DEFAULT_ENCODER:
            return device_choice_of(load_encoder(name, runtime))
    except EncoderError as error:
        return DeviceChoice("", "not available", detail=str(error))
    return None


def describe_saved(name: str, dimension: int) -> EncoderRecord:
    """Return the record for saved embeddings (N, dimension) of the encoder called `name`; no model is opened.

    If the encoder is not on this machine, its name is only recorded, with one space of this dimension and no
    fingerprint. Raises `EncoderError` if the name cannot be one, or the package that declares it is broken.
    """
    if not name.strip() or not name.isprintable():
        raise EncoderError(f"{name!r} is not the name of an encoder: name the one that made the embeddings.")
    if _factory_of(name) is not None:
        return describe_encoder(name)
    bare = name.removesuffix(INT8)
    if bare in KNOWN:
        return EncoderRecord(name, "", (KNOWN[bare].space,))
    kind = ""
    if is_reference(name):
        from ._cache import model_folder
        from .onnx.layout import read_model

        name = full_name(name)
        kind, rest = reference_of(name)
        with contextlib.suppress(EncoderError):
            card = read_model(Path(rest) if kind == "onnx" else model_folder(name))
            return EncoderRecord(name, card.fingerprint, (card.space,))
    # As the encoders of each kind name their space.
    text = kind == "open_clip" or (kind not in TORCH_KINDS and re.search("clip|siglip", name.lower()) is not None)
    return EncoderRecord(name, "", (Space("clip" if text else "visual", dimension, text=text),))
