"""The command that replaces the embeddings of a collection: upgrade."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .._text import command_to_upgrade, printable
from ._app import MAINTENANCE, command
from ._opening import open_folder_collection, runtime_of
from ._options import (
    BackendOption,
    CollectionOption,
    DeviceOption,
    MegapixelsOption,
    OfflineOption,
    OnOption,
    PrivateHostsOption,
    pixels_of,
)
from ._output import print_failures
from ._progress import ProgressBars

if TYPE_CHECKING:
    from ..indexing import UpgradeReport


@command("upgrade", example="pixmatcher upgrade -c ~/Pictures", panel=MAINTENANCE)
def upgrade_command(
    collection: CollectionOption = None,
    encoder: Annotated[
        list[str] | None,
        typer.Option(
            "--encoder",
            help="Use this encoder instead of those of the collection; repeat the option for several encoders.",
        ),
    ] = None,
    without_missing: Annotated[
        bool,
        typer.Option(
            "--without-missing",
            help="Finish also if images cannot be read, and remove these from the collection.",
        ),
    ] = False,
    max_megapixels: MegapixelsOption = 512,
    allow_private_hosts: PrivateHostsOption = False,
    on: OnOption = None,
    backend: BackendOption = None,
    device: DeviceOption = None,
    offline: OfflineOption = False,
) -> None:
    """Encode all images of a collection again: by the newest version of its encoders, or by others.

    The old embeddings stay until all images are encoded. Ids, labels, thumbnails and maps stay. When the
    command is stopped, run it again: it continues.
    """
    from ..indexing import upgrade

    max_pixels = pixels_of(max_megapixels)
    with open_folder_collection(collection) as opened:
        path = opened.path
    with ProgressBars() as bars:
        report = upgrade(
            path,
            encoders=encoder or None,
            without_missing=without_missing,
            max_pixels=max_pixels,
            allow_private=allow_private_hosts,
            on=on,
            runtime=runtime_of(backend, device, offline, bars),
            progress=bars.callback,
        )
    print_report(report)
    if not report.finished:
        raise typer.Exit(1)


def print_report(report: UpgradeReport) -> None:
    """Print what an upgrade did, and which images are missing."""
    names = ", ".join(f"{record.name} ({record.fingerprint or 'unknown version'})" for record in report.encoders)
    if not report.needed:
        print(f"{printable(str(report.collection))} needs no upgrade: its encoders are {printable(names)}.")
        return
    print(f"{report.total:,} images in {printable(str(report.collection))}, {report.seconds:.1f} s")
    counts = [
        (report.encoded, "encoded"),
        (report.continued, "encoded before"),
        (report.removed, "removed"),
        (0 if report.finished else len(report.missing), "missing"),
    ]
    print(", ".join(f"{count:,} {what}" for count, what in counts if count) or "nothing to encode")
    for note in report.notes:
        print(f"Note: {printable(note)}")
    print_failures(report.missing)
    if report.finished:
        print(f"The encoders are now {printable(names)}.")
        return
    call = command_to_upgrade(report.collection)
    if report.missing_sources:
        names = printable(", ".join(report.missing_sources))
        other = (
            f". These sources are empty or cannot be read: {names}. `pixmatcher forget` removes them from the "
            "collection."
        )
    elif report.encoded + report.continued:
        other = f", or run `{printable(call)} --without-missing` to finish and remove them from the collection."
    else:
        other = "; no image at all can be read: is their disk mounted?"
    print(
        "The upgrade is not finished, and the collection keeps the old embeddings: make the missing images available "
        f"and run `{printable(call)}` again{other}"
    )
