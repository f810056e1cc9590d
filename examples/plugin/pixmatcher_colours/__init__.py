"""An encoder and a source for PixMatcher, as an example of how to write your own."""

from .encoder import ColourEncoder
from .source import AlbumSource

__all__ = ["AlbumSource", "ColourEncoder"]
