"""Encoders, sources and stores of other packages, found by the entry points that these packages declare.

A package declares them in its `pyproject.toml`, for example

    [project.entry-points."pixmatcher.encoders"]
    colours = "my_package:ColourEncoder"

See https://packaging.python.org/en/latest/specifications/entry-points/. Nothing of a package is imported before one of
its names is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .errors import PixMatcherError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

ENCODERS, SOURCES, STORES = "pixmatcher.encoders", "pixmatcher.sources", "pixmatcher.stores"
"""The groups of entry points."""


def plugin_names(group: str) -> list[str]:
    """Return the names that installed packages declare in a group, sorted."""
    return sorted({point.name for point in _entry_points(group)})


def load_plugin(group: str, name: str, error: type[PixMatcherError]) -> Callable[..., Any] | None:
    """Return what an installed package declares as `name` in a group; None if no package does.

    Raises `error` if several packages declare the name, or if it cannot be imported or is not callable.
    """
    points = {point.value: point for point in _entry_points(group) if point.name == name}
    if not points:
        return None
    if len(points) > 1:
        packages = " and ".join(sorted(_package_of(point) for point in points.values()))
        raise error(f"The packages {packages} both declare {name!r} in {group}: uninstall one of them.")
    (point,) = points.values()
    try:
        plugin = point.load()
    except Exception as cause:  # the code of another package may raise anything
        raise error(
            f"The package {_package_of(point)} declares {name!r} in {group}, but {point.value} cannot be imported "
            f"({type(cause).__name__}: {cause}): repair or uninstall the package."
        ) from cause
    if not callable(plugin):
        raise error(
            f"The package {_package_of(point)} declares {name!r} in {group}, but {point.value} is neither a class nor "
            "a function: repair or uninstall the package."
        )
    result: Callable[..., Any] = plugin
    return result


def _entry_points(group: str) -> list[EntryPoint]:
    from importlib.metadata import entry_points  # takes 20 ms to import

    return [*entry_points(group=group)]


def _package_of(point: EntryPoint) -> str:
    """Return the name of the package that declares an entry point."""
    return point.dist.name if point.dist is not None else point.module
