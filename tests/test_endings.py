"""Files that lack their end, files with bytes behind their end, and damaged files: what is told about them."""

from __future__ import annotations

import io
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from pixmatcher import Collection, index
from pixmatcher.collection import Failure
from pixmatcher.errors import InvalidImageError
from pixmatcher.images import open_image
from pixmatcher.images._endings import MOST_MISSING
from pixmatcher.images._reasons import reason_of
from pixmatcher.indexing import _encode

PHOTO = Path(__file__).parent.parent / "examples" / "photos" / "cat.jpg"


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    with Image.open(PHOTO) as image:
        return image.convert("RGB").resize((width, height)).convert(mode)


def encoded(image: Image.Image, name: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


def failure_of(data: bytes, **options: object) -> tuple[str, str]:
    with pytest.raises(InvalidImageError) as caught:
        open_image(data, **options)  # type: ignore[arg-type]
    return caught.value.reason, caught.value.detail


JPEGS = {
    "baseline": encoded(picture(240, 160), "JPEG"),
    "4:4:4": encoded(picture(240, 160), "JPEG", subsampling=0, quality=92),
    "4:2:2": encoded(picture(240, 160), "JPEG", subsampling=1),
    "optimized": encoded(picture(241, 159), "JPEG", optimize=True, quality=40),
    "restart rows": encoded(picture(240, 160), "JPEG", restart_marker_rows=1),
    "restart blocks": encoded(picture(240, 160), "JPEG", restart_marker_blocks=3),
    "progressive": encoded(picture(240, 160), "JPEG", progressive=True),
    "progressive restart": encoded(picture(240, 160), "JPEG", progressive=True, restart_marker_rows=2),
    "grey": encoded(picture(240, 160, "L"), "JPEG"),
    "grey progressive": encoded(picture(240, 160, "L"), "JPEG", progressive=True),
    "cmyk": encoded(picture(240, 160, "CMYK"), "JPEG"),
    "large": encoded(picture(528, 520), "JPEG", quality=60),
}


def changed_area(picture: Image.Image, whole: Image.Image) -> float:
    """Return the share of the pixels of a picture that are not those of the whole one."""
    return float((np.asarray(picture) != np.asarray(whole)).any(axis=2).mean())


@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_that_lacks_only_its_end_is_decoded(kind: str) -> None:
    data = JPEGS[kind]
    whole = open_image(data)
    assert whole.missing is None
    for cut in (1, 2):
        opened = open_image(data[:-cut])
        assert opened.missing == 0
        np.testing.assert_array_equal(np.asarray(opened.image), np.asarray(whole.image))
    for cut in (3, 10, 60):
        opened = open_image(data[:-cut])
        assert opened.missing is not None
        assert changed_area(opened.image, whole.image) <= opened.missing <= MOST_MISSING


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("min_side", [None, 20])
def test_no_more_of_a_cut_jpeg_is_missing_than_is_told(kind: str, min_side: int | None) -> None:
    data = JPEGS[kind]
    whole = open_image(data, min_side=min_side).image
    reduced = 8 / min(whole.size) if min_side else 0  # a cell is one pixel then
    refused, reasons = list[int](), set[str]()
    last = 64 if min_side is None else 16
    for cut in {*range(0, len(data), len(data) // 50), *range(len(data) - last, len(data) - 1)}:
        try:
            opened = open_image(data[:cut], min_side=min_side)
        except InvalidImageError as error:
            reasons.add(error.reason)
            refused.append(cut)
        else:
            assert opened.missing is not None
            assert opened.missing <= MOST_MISSING
            assert changed_area(opened.image, whole) <= opened.missing + reduced
    assert len(refused) > 40
    assert max(refused) < len(data) - 60
    assert reasons == {"truncated", "empty file"}


def test_a_jpeg_that_lacks_more_is_refused_with_the_share() -> None:
    for kind in ("baseline", "grey", "restart rows"):
        data = JPEGS[kind]
        reason, detail = failure_of(data[: len(data) // 2])
        share = re.fullmatch(r"about (\d+)% of the image is missing", detail)
        assert reason == "truncated"
        assert share is not None
        assert 30 < int(share[1]) < 80
    assert failure_of(JPEGS["progressive"][: len(JPEGS["progressive"]) // 2])[0] == "truncated"


@pytest.mark.parametrize("padding", [b"\0" * 2, b"\0" * 5000, b"\xff" * 700, b"\xff\0\0\0"])
@pytest.mark.parametrize("kind", ["baseline", "progressive", "restart rows"])
def test_padding_in_place_of_the_end_of_a_jpeg(kind: str, padding: bytes) -> None:
    data = JPEGS[kind]
    opened = open_image(data[:-2] + padding)
    assert opened.missing == 0
    np.testing.assert_array_equal(np.asarray(opened.image), np.asarray(open_image(data).image))
    reason, detail = failure_of(data[: len(data) // 2] + b"\0" * (len(data) // 2))  # not a picture of zeros
    assert (reason, "missing" in detail) == ("truncated", True)


def test_a_jpeg_whose_data_ends_with_zeros() -> None:
    """With optimized tables, the data of an area of one colour is zeros; they are not taken for padding."""
    found = 0
    for width in range(16, 80, 3):
        image = Image.new("L", (200, 160), 255)
        image.paste(picture(width, 64, "L"), (width, 8))
        data = encoded(image, "JPEG", quality=50, optimize=True)
        if data.endswith(b"\0\xff\xd9"):
            found += 1
            opened = open_image(data[:-2])
            assert opened.missing == 0
            np.testing.assert_array_equal(np.asarray(opened.image), np.asarray(open_image(data).image))
    assert found


@pytest.mark.parametrize("mode", ["RGB", "P"])
def test_zeros_in_place_of_the_end_of_a_png(mode: str) -> None:
    file = io.BytesIO()
    noise = Image.frombytes("RGB", (120, 90), random.Random(5).randbytes(120 * 90 * 3)).quantize(16)
    noise.convert(mode).save(file, "PNG")
    whole = file.getvalue()
    for lost in (20, 60, len(whole) // 10, len(whole) // 2):
        with pytest.raises(InvalidImageError) as caught:
            open_image(whole[:-lost] + bytes(lost))
        assert caught.value.reason == "truncated"
    picture = open_image(whole).image
    for same in (whole + bytes(500), whole[:-12] + bytes(12), whole[:-16] + bytes(600)):
        assert open_image(same).image == picture


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits", None])
@pytest.mark.parametrize("mode", ["RGB", "P", "I;16"])
def test_a_cut_tiff_is_truncated_wherever_its_tags_are(mode: str, compression: str | None) -> None:
    file = io.BytesIO()
    if mode != "RGB" and compression == "jpeg":
        pytest.skip("JPEG in TIFF has 8 bits and no palette here")
    picture = Image.radial_gradient("L").resize((300, 200)).convert("I;16" if mode == "I;16" else "RGB")
    picture.convert(mode).save(file, "TIFF", compression=compression)
    whole = file.getvalue()
    for lost in (len(whole) // 50, len(whole) // 4, len(whole) // 2):
        with pytest.raises(InvalidImageError) as caught:
            open_image(whole[:-lost])
        assert caught.value.reason == "truncated"


def test_hostile_files_without_an_end() -> None:
    """Headers that go on for ever, many scans, sizes that are too large, and mutated files: a refusal or a picture."""
    scan = JPEGS["grey progressive"][:-2]
    start = scan.index(b"\xff\xda")
    for data in (
        b"\xff\xd8" + b"\xff" * 500_000,
        b"\xff\xd8" + b"\xff\xd0" * 200_000,
        b"\xff\xd8" + b"\xff\xe1\0\2" * 100_000,
        scan + scan[start : start + 400] * 300,
        b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0\0\0\x08free" * 500_000,
        OTHERS["j2k"][:200] + b"\xff\x90\0\x0a\0\0\0\0\0\x0e\0\1\xff\x93" * 100_000,
    ):
        assert failure_of(data)[0] in ("truncated", "damaged", "too many scans")
    huge = bytearray(JPEGS["baseline"][:-2])
    size = huge.index(b"\xff\xc0") + 5
    huge[size : size + 4] = b"\xff\x00\xff\x00"
    assert failure_of(bytes(huge), max_pixels=1_000_000)[0] == "too many pixels"
    chance = random.Random(8)
    for data in (JPEGS["progressive"], JPEGS["restart blocks"], OTHERS["jp2"], OTHERS["WEBP"]):
        for _ in range(60):
            changed = bytearray(data[: chance.randrange(len(data) // 2, len(data))])
            for _ in range(chance.choice((1, 5))):
                changed[chance.randrange(2, len(changed))] = chance.randrange(256)
            try:
                opened = open_image(bytes(changed), max_pixels=4_000_000)
            except InvalidImageError:
                continue
            assert opened.missing is None or 0 <= opened.missing <= MOST_MISSING


def test_the_state_of_pillow_does_not_change_while_a_jpeg_is_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    states = set()
    load = ImageFile.ImageFile.load

    def watched(image: ImageFile.ImageFile) -> object:
        states.add(ImageFile.LOAD_TRUNCATED_IMAGES)
        return load(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", watched)
    assert open_image(JPEGS["baseline"][:-2]).missing == 0
    assert states == {False}


def test_other_formats_that_lack_nothing_of_the_picture() -> None:
    odd = next(
        data
        for width in range(40, 90)
        if len(data := encoded(picture(width, 30), "WEBP", lossless=True)) and int.from_bytes(data[16:20], "little") % 2
    )
    exif = encoded(picture(60, 40), "WEBP", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0")
    for data, cuts in (
        (encoded(picture(60, 40), "PNG"), (1, 4, 12)),
        (encoded(picture(60, 40, "P"), "GIF"), (1,)),
        (encoded(picture(60, 40), "JPEG2000"), (1, 2)),
        (encoded(picture(60, 40), "JPEG2000", no_jp2=True), (1, 2)),
        (encoded(picture(60, 40), "JPEG2000", no_jp2=True, tile_size=(32, 32)), (1, 2)),
        (odd, (1,)),
        (exif, (1, 9)),
    ):
        whole = np.asarray(open_image(data).image)
        for cut in cuts:
            opened = open_image(data[:-cut])
            np.testing.assert_array_equal(np.asarray(opened.image), whole)
            assert opened.missing in (None, 0)


OTHERS = {
    "PNG": encoded(picture(60, 40), "PNG"),
    "GIF": encoded(picture(60, 40, "P"), "GIF"),
    "WEBP": encoded(picture(60, 40), "WEBP"),
    "BMP": encoded(picture(60, 40), "BMP"),
    "TIFF": encoded(picture(60, 40), "TIFF"),
    "TIFF deflate": encoded(picture(60, 40), "TIFF", compression="tiff_adobe_deflate"),
    "jp2": encoded(picture(60, 40), "JPEG2000"),
    "j2k": encoded(picture(60, 40), "JPEG2000", no_jp2=True),
    "j2k tiles": encoded(picture(60, 40), "JPEG2000", no_jp2=True, tile_size=(32, 32)),
    "PPM": encoded(picture(60, 40), "PPM"),
    "AVIF": encoded(picture(60, 40), "AVIF"),
    "JPEG": JPEGS["baseline"],
}
VIDEO = b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + b"\0\0\0\x08free" + b"\0\0\1\0mdat" + bytes(range(248))


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize(
    "behind", [b"\0", b"\0" * 5000, b"\xff" * 99, VIDEO, b"SEFHk\0\0\0" + b"\1" * 24 + b"SEFT", JPEGS["grey"]]
)
def test_bytes_behind_the_end_do_not_matter(kind: str, behind: bytes) -> None:
    whole, padded = open_image(OTHERS[kind]), open_image(OTHERS[kind] + behind)
    np.testing.assert_array_equal(np.asarray(padded.image), np.asarray(whole.image))
    assert padded.missing is None


@pytest.mark.parametrize("kind", ["jp2", "j2k", "j2k tiles"])
def test_padding_does_not_hide_that_a_jpeg_2000_is_cut_off(kind: str) -> None:
    data = OTHERS[kind]
    for cut in (3, 10, 100, len(data) // 2):
        for behind in (b"", b"\0" * cut, b"\0" * 5000):
            assert failure_of(data[:-cut] + behind)[0] in ("truncated", "damaged")


def test_a_jpeg_2000_whose_tile_part_has_no_length() -> None:
    data = bytearray(OTHERS["j2k"])
    start = data.index(b"\xff\x90")
    data[start + 6 : start + 10] = bytes(4)
    assert open_image(bytes(data)).missing is None
    assert failure_of(bytes(data[:-40]))[0] == "truncated"


# ---- Reasons ----

CODES = re.compile(r"-\d|Error|Exception|\bb'|\\x|0x|driver|bytes not processed|^\d+$|struct|unpack|tuple|NoneType")


@pytest.mark.parametrize("kind", OTHERS)
def test_damaged_files_have_reasons_in_words(kind: str) -> None:
    data, chance, found = OTHERS[kind], random.Random(5), set[tuple[str, str]]()
    for _ in range(150):
        changed = bytearray(data)
        for _ in range(chance.choice((1, 3, 20))):
            changed[chance.randrange(2, len(data) if chance.random() < 0.5 else min(400, len(data)))] = chance.choice(
                (0, 255, chance.randrange(256))
            )
        try:
            open_image(bytes(changed[: chance.choice((len(data), len(data), chance.randrange(8, len(data))))]))
        except InvalidImageError as error:
            found.add((error.reason, error.detail))
    assert found
    for reason, detail in found:
        assert len(detail.split()) > 1 or reason in ("empty file", "unsupported format")
        assert reason == "too many pixels" or not CODES.search(detail), detail


CUT_OFF = ("truncated", "the file is cut off before the end of the image")
DATA = ("damaged", "the compressed data is damaged")
MEMORY = ("out of memory", "there is not enough memory to decode it")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError("decoder error -2"), DATA),
        (OSError("broken data stream when reading image file"), DATA),
        (OSError("unrecognized data stream contents when reading image file"), DATA),
        (SyntaxError("not identified by this driver"), ("damaged", "its headers are damaged")),
        (OSError("image file is truncated (12 bytes not processed)"), CUT_OFF),
        (OSError("Truncated File Read"), CUT_OFF),
        (KeyError(256), ("damaged", "the values in it do not fit together")),
        (SyntaxError("34929"), ("damaged", "the values in it do not fit together")),
        (ValueError(""), ("damaged", "the values in it do not fit together")),
        (ValueError("tile cannot extend outside image"), ("damaged", "its size and its data do not fit together")),
        (OSError("buffer is not large enough"), ("damaged", "its size and its data do not fit together")),
        (SyntaxError("Invalid quantization table"), ("damaged", "its quantization table is damaged")),
        (ValueError(b"Invalid token for this mode: \xff"), ("damaged", "it has something else where a number must be")),
        (OSError("out of memory error when reading image file"), MEMORY),
        (OSError("the lamp is green"), ("damaged", "the PNG decoder reports: the lamp is green")),
        (
            SyntaxError("Invalid input: 'pitm' box references an unsupported item"),
            ("damaged", "its headers are damaged"),
        ),
        (SyntaxError("unknown pixel mode"), ("unsupported format", "the PNG decoder reports: unknown pixel mode")),
    ],
)
def test_texts_of_libraries_become_reasons(error: Exception, expected: tuple[str, str]) -> None:
    assert reason_of(error, "PNG", cut_off=False) == expected


def test_nothing_is_written_without_the_name_of_the_file() -> None:
    """In a process of its own, with the real standard error, as the libraries in C write to it."""
    code = """
import io, random, sys
from PIL import Image
from pixmatcher.errors import InvalidImageError
from pixmatcher.images import open_image
seeds, chance = [], random.Random(3)
for name, options in (
    *((name, {}) for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "JPEG2000", "PPM", "AVIF")),
    *(("TIFF", {"compression": kind}) for kind in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")),
):
    file = io.BytesIO()
    Image.radial_gradient("L").resize((40, 30)).convert("RGB").save(file, name, **options)
    seeds.append(file.getvalue())
for data in seeds:
    for _ in range(250):
        changed = bytearray(data)
        for _ in range(chance.choice((1, 2, 9))):
            changed[chance.randrange(2, min(len(data), 500))] = chance.choice((0, 255, chance.randrange(256)))
        try:
            open_image(bytes(changed), max_pixels=1_000_000)
        except InvalidImageError:
            pass
# A JPEG that lacks its end, with EXIF that Pillow warns of while the JPEG is completed.
exif = b"Exif\\0\\0II*\\0\\x08\\0\\0\\0\\x01\\0\\x1a\\x01\\x05\\0\\x01\\0\\0\\0\\xff\\xff\\0\\0\\0\\0\\0\\0"
file = io.BytesIO()
Image.radial_gradient("L").save(file, "JPEG", exif=exif)
data = file.getvalue()
jfif = data.index(b"JFIF")  # its resolution would be known without EXIF
open_image(data[: jfif - 4] + data[jfif - 2 + int.from_bytes(data[jfif - 2 : jfif], "big") : -2])
# More values for a pixel than Pillow allows: its plugin logs an error.
file = io.BytesIO()
Image.new("RGB", (8, 8)).save(file, "TIFF")
data = bytearray(file.getvalue())
entry = data.index(b"\\x15\\x01\\x03\\x00")
data[entry + 8 : entry + 10] = b"\\xff\\x00"
try:
    open_image(bytes(data))
except InvalidImageError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(("damaged: ", "truncated: "))


# ---- In a collection ----


def test_incomplete_images_are_indexed_and_told(tmp_path: Path, tiny: object) -> None:
    (tmp_path / "whole.jpg").write_bytes(JPEGS["baseline"])
    (tmp_path / "no_end.jpg").write_bytes(JPEGS["grey"][:-2])
    (tmp_path / "cut.jpg").write_bytes(JPEGS["4:4:4"][:-60])
    report = index(tmp_path, encoders=[tiny])  # type: ignore[list-item]
    assert (report.added, report.failures) == (3, [])
    assert sorted(Path(item.uri).name for item in report.incomplete) == ["cut.jpg", "no_end.jpg"]
    with Collection.open(tmp_path) as collection:
        missing = {Path(item.uri).name: item.missing for item in collection.items()}
        assert {Path(item.uri).name for item in collection.incomplete()} == {"cut.jpg", "no_end.jpg"}
    assert missing["whole.jpg"] is None
    assert missing["no_end.jpg"] == 0
    assert missing["cut.jpg"] is not None
    assert 0 < missing["cut.jpg"] < 0.1
    again = index(tmp_path, encoders=[tiny])  # type: ignore[list-item]
    assert (again.unchanged, again.incomplete) == (3, [])
    (tmp_path / "cut.jpg").write_bytes(JPEGS["4:4:4"])
    (tmp_path / "copy.jpg").write_bytes(JPEGS["grey"][:-2])
    index(tmp_path, encoders=[tiny])  # type: ignore[list-item]
    with Collection.open(tmp_path) as collection:
        assert {Path(item.uri).name for item in collection.incomplete()} == {"copy.jpg", "no_end.jpg"}


def test_the_command_line_tells_what_is_incomplete_and_what_is_not_tried_again(tmp_path: Path) -> None:
    photos = tmp_path / "my photos"
    photos.mkdir()
    (photos / "no_end.jpg").write_bytes(JPEGS["grey"][:-2])
    (photos / "half.jpg").write_bytes(JPEGS["baseline"][:2000])

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pixmatcher", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)

    first = run("index", "my photos")
    note = "1 image lacks the end of its file: "
    assert f"{note}{photos / 'no_end.jpg'} (nothing of the picture is missing)" in first.stdout.splitlines()
    assert re.search(r"half\.jpg: truncated \(about \d\d% of the image is missing\)", first.stdout)
    assert "--retry-failed" not in first.stdout
    again = run("index", "my photos")
    assert again.returncode == 1
    lines = [line for line in again.stdout.splitlines() if "--retry-failed" in line]
    assert len(lines) == 1
    assert lines[0].startswith("1 failed image was not tried again, because nothing has changed. To try: ")
    assert lines[0].endswith("index 'my photos' --retry-failed") or lines[0].endswith(
        'index "my photos" --retry-failed'
    )
    limited = run("index", "my photos", "--max-megapixels", "99.5", "--allow-private-hosts").stdout
    assert "--retry-failed --max-megapixels 99.5 --allow-private-hosts\n" in limited
    assert "--retry-failed" not in run("index", "my photos", "--retry-failed").stdout
    assert note in run("info", "-c", "my photos").stdout
    failed = run("search", str(photos / "half.jpg"), "-c", "my photos")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr.startswith(f"Error: {photos / 'half.jpg'} cannot be used as a query (truncated: about ")


def test_an_error_about_a_path_names_it(tmp_path: Path) -> None:
    (tmp_path / "half.jpg").write_bytes(JPEGS["baseline"][:2000])
    for name in ("half.jpg", "none.jpg"):
        with pytest.raises(InvalidImageError) as caught:
            open_image(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: {caught.value.reason}: ")


class OtherVersions:
    """Versions of packages that a test changes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.changed: dict[str, str] = {}
        versions = _encode.decoder_versions()
        monkeypatch.setattr(_encode, "decoder_versions", lambda: versions | self.changed)


def test_failures_are_tried_again_when_their_decoder_has_another_version(
    tmp_path: Path, tiny: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    heif = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0\0\0\x08meta" + bytes(40)
    files = {"a.heic": heif, "b.jpg": JPEGS["baseline"][:500], "c.png": b"hello", "d.bmp": OTHERS["BMP"][:-300]}
    files["e.png"] = encoded(Image.new("L", (3000, 1000)), "PNG")
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    versions = OtherVersions(monkeypatch)
    tried: list[str] = []
    decode = _encode.BatchEncoder._decode

    def watched(self: object, source: object, item: object, known: bool) -> object:
        tried.append(Path(item.entry.uri).name)  # type: ignore[attr-defined]
        return decode(self, source, item, known)  # type: ignore[arg-type]

    monkeypatch.setattr(_encode.BatchEncoder, "_decode", watched)

    def tried_now(**options: object) -> list[str]:
        tried.clear()
        report = index(tmp_path, encoders=[tiny], **{"max_pixels": 1_000_000, **options})  # type: ignore[arg-type]
        assert len(report.failures) == report.remembered + len(tried)
        return sorted(tried)

    assert tried_now() == [*files]
    assert tried_now() == []
    versions.changed["pillow-heif"] = "99.1"
    assert tried_now() == ["a.heic"]
    assert tried_now() == []
    versions.changed["pillow"] = "99.2"
    assert tried_now() == ["b.jpg", "d.bmp"]
    versions.changed["pillow-heif"] = ""  # not installed any more: other formats can be opened
    assert tried_now() == ["a.heic", "c.png"]
    assert tried_now(max_pixels=1_000_001) == ["e.png"]
    monkeypatch.setattr(_encode, "__version__", "99.3")
    assert tried_now(max_pixels=1_000_001) == [*files]
    assert tried_now(max_pixels=1_000_001, retry_failed=True) == [*files]


def test_failures_of_an_older_version_are_tried_once_more(tmp_path: Path, tiny: object) -> None:
    """It stored the version of the file alone, or with other capabilities, and refused what is decoded now."""
    (tmp_path / "no_end.jpg").write_bytes(JPEGS["baseline"][:-2])
    (tmp_path / "broken.png").write_bytes(OTHERS["PNG"][:300])
    index(tmp_path, encoders=[tiny])  # type: ignore[list-item]
    with Collection.open(tmp_path) as collection:
        collection.begin_writing()
        comparison = collection.compare_sources([str(tmp_path)])
        versions = {item.uri: item.version for item in collection.items()}
        uri = str(tmp_path / "no_end.jpg")
        comparison.record_failures(str(tmp_path), [Failure(uri, "truncated", "", versions[uri])], remove=[uri])
    assert index(tmp_path, encoders=[tiny]).added == 1  # type: ignore[list-item]
