"""What errors say to clients, who can run no command on the machine of the service and do not know its folders."""

from __future__ import annotations

import logging
import re

from ..errors import CollectionError, EncoderError, OutdatedCollectionError, PixMatcherError, StorageError

_log = logging.getLogger("pixmatcher.server")

_OF_THE_MACHINE = (EncoderError, StorageError)
"""Errors that only who runs the service can do something about."""
_COMMAND = re.compile(r"`(?:pixmatcher|pip) [^`]*`")
_COLLECTION_OPTION = re.compile(r" -c (?:'[^']*'|[^\s`]+)")
_PATH = re.compile(r"(?<![\w/:])/(?:[^\s/'\":]+/)+(?=[^\s/'\":])")
"""The folders of a path of this machine, such as that of a model."""


def sentence_for_clients(error: PixMatcherError) -> str:
    """Return the sentence of an error with advice that a client can follow; the log gets the whole message if need be.

    `ServedCollections.without_paths` hides the folders of the collections afterwards.
    """
    message = str(error)
    if not isinstance(error, _OF_THE_MACHINE):
        return text_for_clients(message)
    problem, _, remedy = message.partition(": ")
    if isinstance(error, CollectionError) and error.remedy:
        problem, remedy = error.problem, error.remedy
    remedy = _COMMAND.sub(_without_collection, remedy)
    if remedy.startswith("run `") and not _PATH.search(remedy):
        return f"{problem}: ask who runs the service to {remedy}"
    _log.warning("a request failed: %s", message)
    if not isinstance(error, (OutdatedCollectionError, StorageError)):  # these name the folder of a collection
        problem = _PATH.sub("", problem)
    return f"{problem.removesuffix('.')}: ask who runs the service; its log says what to do."


def text_for_clients(text: str) -> str:
    """Return a note or message in which commands are for who runs the service."""
    if not _COMMAND.search(text):
        return text
    text = _COMMAND.sub(_without_collection, text)
    return re.sub(r"([:,;]) run (?=`)", r"\1 ask who runs the service to run ", text, count=1)


def _without_collection(command: re.Match[str]) -> str:
    return _COLLECTION_OPTION.sub("", command[0])
