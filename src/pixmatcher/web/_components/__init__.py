"""Components that Streamlit lacks: pasted images, a crop frame, the grid of results, an image at the map's pointer.

Each component is a module with a script (`.js`), a style (`.css`) and markup (`.html`) of the same name. Texts of
visitors and collections reach the scripts as data, and never become markup.
"""

from .crop_frame import WHOLE, Box, show_crop_frame
from .map_pointer import show_image_at_pointer, take_clicked_position
from .pasted_image import read_pasted_image
from .result_grid import Tile, show_tiles

__all__ = [
    "WHOLE",
    "Box",
    "Tile",
    "read_pasted_image",
    "show_crop_frame",
    "show_image_at_pointer",
    "show_tiles",
    "take_clicked_position",
]
