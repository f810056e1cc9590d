"""All errors that PixMatcher raises on purpose. Each message says what to do about it."""

from __future__ import annotations

import errno

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Error numbers of an `OSError` that mean that the disk is full. EFBIG is a limit on the size of files."""


class PixMatcherError(Exception):
    """Base of all errors raised on purpose. `exit_code` is the command line's exit status for it."""

    exit_code = 2


class InvalidImageError(PixMatcherError):
    """The given bytes are not an image that can be used.

    `reason` is a short fixed phrase, so that failures can be counted by reason; `detail` says more about this one.
    `decoder` is the package whose decoder is made for the format of the image, such as "pillow"; empty if the format is
    not known.
    """

    exit_code = 1

    def __init__(self, reason: str, detail: str = "", *, message: str = "", decoder: str = "") -> None:
        super().__init__(message or (f"{reason}: {detail}" if detail else reason))
        self.reason = reason
        self.detail = detail
        self.decoder = decoder


class QueryError(PixMatcherError):
    """The query cannot be understood, or cannot be answered by this collection."""


class UnreadableTextError(QueryError):
    """The encoder cannot read the query text: it has no word in a script or language that the encoder knows.

    `encoder` is its name, `language` what it reads, "" if it does not say so.
    """

    def __init__(self, encoder: str, language: str = "") -> None:
        readable = language or "a language that the encoder reads"
        super().__init__(
            f"The encoder {encoder} cannot read this text: write it in {readable}, or index with another encoder."
        )
        self.encoder = encoder
        self.language = language


class FetchError(PixMatcherError):
    """A URL was refused or could not be fetched.

    `reason` is a short fixed phrase, so that failures can be counted by reason; `detail` says more about this one.
    `transient` says that a retry may help, and `retry_after` how many seconds the server asks to wait before that.
    """

    exit_code = 1

    def __init__(
        self,
        message: str,
        reason: str = "cannot be fetched",
        detail: str = "",
        *,
        transient: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.detail = detail
        self.transient = transient
        self.retry_after = retry_after


class EncoderError(PixMatcherError):
    """An encoder is unknown, incomplete or damaged."""


class OutdatedCollectionError(EncoderError):
    """The embeddings of a collection are of another version of an encoder than the one that is available."""


class SourceError(PixMatcherError):
    """A source does not exist or cannot be read at all."""


class ShardError(PixMatcherError):
    """Shards are missing or damaged, or do not fit the call."""


class ClusterError(PixMatcherError):
    """A Ray cluster cannot be reached, or its nodes cannot encode images; what was stored before stays stored."""


class CollectionError(PixMatcherError):
    """A collection is missing, damaged, of a newer format, or does not fit the call.

    The message is `problem: remedy` where what to do is given apart; else `problem` is the message, and `remedy` empty.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(f"{problem}: {remedy}" if remedy else problem)
        self.problem = problem
        self.remedy = remedy


class NoItemError(CollectionError):
    """The collection has no item with this id."""

    def __init__(self, item_id: int) -> None:
        super().__init__(f"No image of this collection has the id {item_id}.")


class NoCollectionError(CollectionError):
    """No collection was named, and there is none at or above the current folder."""


class CollectionLockedError(CollectionError):
    """Another process is writing to the collection."""


class CollectionUpgradedError(CollectionError):
    """A collection got the embeddings of other encoders after it was opened: open it again."""


class StorageError(CollectionError):
    """The disk is full or fails, or an object store answers no more; what was stored before stays stored."""

    exit_code = 1
