"""Open, check, orient and shrink one image, and prepare it for an encoder.

May import nothing but the modules beside the packages, such as `errors`.

Everything that reads an image uses `open_image`, which is made for files from unknown sources: only the content decides
what a file is, only the plugins of the supported formats read it, the size is checked before memory is allocated, and
every error is raised as `InvalidImageError` with a reason that can be counted. Pillow and NumPy are imported on first
use, so that a text query, which only needs `Recipe`, does not load them.

Images are sRGB, because the encoders were trained that way: those with a profile of another colour space are converted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names
from ._limits import DEFAULT_MAX_PIXELS
from ._recipe import IMAGENET_RECIPE, Recipe

if TYPE_CHECKING:
    from ._dates import date_in_name
    from ._decoders import decoder_versions
    from ._formats import ALLOWED_EXTENSIONS, MEDIA_TYPES, has_image_content, is_allowed_extension
    from ._open import ImageSource, OpenedImage, open_image
    from ._preprocess import preprocess_image, preprocess_images
    from ._read import open_regular_file, open_unread_file, read_head
    from ._resize import fit_image, normalize_pixels
    from ._thumbnails import THUMBNAIL_SIDE, make_thumbnail

# Names are imported when they are first used: a text query needs none of these modules.
_MODULES = {
    "_dates": ("date_in_name",),
    "_decoders": ("decoder_versions",),
    "_formats": (
        "ALLOWED_EXTENSIONS",
        "MEDIA_TYPES",
        "has_image_content",
        "is_allowed_extension",
    ),
    "_open": (
        "ImageSource",
        "OpenedImage",
        "open_image",
    ),
    "_preprocess": (
        "preprocess_image",
        "preprocess_images",
    ),
    "_read": ("open_regular_file", "open_unread_file", "read_head"),
    "_resize": (
        "fit_image",
        "normalize_pixels",
    ),
    "_thumbnails": (
        "THUMBNAIL_SIDE",
        "make_thumbnail",
    ),
}
__getattr__, __dir__ = lazy_names(__name__, _MODULES)

__all__ = [
    "ALLOWED_EXTENSIONS",
    "DEFAULT_MAX_PIXELS",
    "IMAGENET_RECIPE",
    "MEDIA_TYPES",
    "THUMBNAIL_SIDE",
    "ImageSource",
    "OpenedImage",
    "Recipe",
    "date_in_name",
    "decoder_versions",
    "fit_image",
    "has_image_content",
    "is_allowed_extension",
    "make_thumbnail",
    "normalize_pixels",
    "open_image",
    "open_regular_file",
    "open_unread_file",
    "preprocess_image",
    "preprocess_images",
    "read_head",
]
