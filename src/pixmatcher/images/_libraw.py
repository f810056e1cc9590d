"""A program of its own that reads one RAW file by LibRaw, so that LibRaw can neither crash nor stop the caller.

Standard input is the RAW file. The arguments are the most pixels that it may have, and the least side of a preview that
is used. The first line of standard output is what follows it, a JPEG or the pixels in RGB, or the reason of a failure:

    jpeg ORIENTATION
    pixels ORIENTATION WIDTH HEIGHT
    failed REASON: DETAIL
    failed truncated

ORIENTATION is the EXIF orientation (1 to 8) of the RAW file, or 1 if the pixels are upright. LibRaw writes whatever it
likes to standard error.
"""

from __future__ import annotations

import io
import sys

import numpy as np
import rawpy
from numpy.typing import NDArray
from PIL.JpegImagePlugin import JpegImageFile

_ORIENTATION_OF_FLIP = {3: 3, 5: 8, 6: 6}


def main(max_pixels: int, least_side: int) -> None:
    """Write the preview of the RAW file, or its picture developed in half size if there is none."""
    with rawpy.RawPy() as raw:
        raw.open_buffer(io.BytesIO(sys.stdin.buffer.read()))
        sizes = raw.sizes
        if sizes.raw_width * sizes.raw_height > max_pixels:
            size = f"{sizes.raw_width} x {sizes.raw_height}"
            _write(f"failed too many pixels: {size}, the limit is {max_pixels:,}")
            return
        orientation = _ORIENTATION_OF_FLIP.get(sizes.flip, 1)
        preview = _preview(raw, least_side)
        if isinstance(preview, bytes):
            _write(f"jpeg {orientation}", preview)
            return
        if preview is None:
            preview, orientation = raw.postprocess(half_size=True, use_camera_wb=True), 1
        height, width = preview.shape[:2]
        _write(f"pixels {orientation} {width} {height}", np.ascontiguousarray(preview).tobytes())


def _preview(raw: rawpy.RawPy, least_side: int) -> bytes | NDArray[np.uint8] | None:
    """Return the preview, a JPEG or an array (H, W, 3); None if there is none that is large enough."""
    try:
        preview = raw.extract_thumb()
    except rawpy.LibRawError:
        return None
    data = preview.data
    if isinstance(data, bytes):
        is_large = preview.format == rawpy.ThumbFormat.JPEG and max(JpegImageFile(io.BytesIO(data)).size) >= least_side
        return data if is_large else None
    return data if data.ndim == 3 and data.shape[2] == 3 and max(data.shape[:2]) >= least_side else None


def _write(line: str, data: bytes = b"") -> None:
    sys.stdout.buffer.write(line.encode() + b"\n" + data)


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]), int(sys.argv[2]))
    except rawpy.LibRawFileUnsupportedError:
        _write("failed unsupported format: a RAW file without a preview, of a kind that LibRaw does not know")
    except rawpy.LibRawIOError:
        _write("failed truncated")
    except rawpy.LibRawError as error:
        text = error.args[0] if error.args else ""
        text = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
        _write(f"failed damaged: it has no preview, and LibRaw says: {' '.join(text.split())}")
