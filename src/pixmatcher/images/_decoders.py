"""The packages that decode the image formats, and their versions."""

from __future__ import annotations

from ._formats import FORMATS, ImageFormat

_PACKAGES = {"PIL": "pillow", "pixmatcher": "pillow", "pillow_heif": "pillow-heif", "pillow_jxl": "pillow-jxl-plugin"}
"""The names under which packages are installed, where that is not the name of their module.

Modules of PixMatcher read formats with Pillow.
"""


def decoder_of(image_format: ImageFormat) -> str:
    """Return the name of the package that decodes a format, as it is installed."""
    module = image_format.module.partition(".")[0]
    return _PACKAGES.get(module, module)


def decoder_versions() -> dict[str, str]:
    """Return the version of each package that decodes a format, "" where it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    versions: dict[str, str] = {}
    for package in dict.fromkeys(map(decoder_of, FORMATS)):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = ""
    return versions
