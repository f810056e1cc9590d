"""What files are by the extensions of their names, for those that are certainly no images that can be opened."""

from __future__ import annotations

import re

# Not in this list, because images are found under these names: .thm, .jps, .mpo, .insp, .bin, .dat, .tmp, .bak, .old,
# .orig, .part, .cache, .php, .asp, .aspx, .cgi, .com, and anything that ends in a number.
_EXTENSIONS_OF = {
    "video": (
        "3g2 3gp asf avi braw divx f4v flv insv lrv m1v m2t m2ts m2v m4v mkv mov mp4 mpe mpeg mpg mts mxf ogm ogv "
        "r3d rm rmvb swf tod vob webm wmv"
    ),
    "audio": (
        "aac ac3 aif aifc aiff amr ape au caf cue dsf dts flac m3u m3u8 m4a m4b m4p m4r mid midi mka mp2 mp3 mpc oga "
        "ogg opus pls ra spx wav wave weba wma wv"
    ),
    "document": (
        "adoc csv doc docm docx dot dotx epub htm html ics key log markdown md mht mhtml mobi numbers odp ods odt "
        "pages pdf pot potx pps ppsx ppt pptm pptx rst rtf srt sub tex text tsv txt vcf vtt wpd xls xlsb xlsm xlsx "
        "xltx xps"
    ),
    "archive": (
        "7z apk arj bz2 cab cbr cbz cpio crx deb dmg ear gz img iso jar lha lz lz4 lzh lzma nupkg pkg rar rpm tar "
        "tbz tbz2 tgz txz vdi vhd vhdx vmdk war whl xpi xz z zip zst"
    ),
    "other": (
        "a aae abr acv ass bash bat bib c cc cfg class clj cmake cmd conf cpp crt cs css cube cxx dart db db-journal "
        "db-shm db-wal dbf dcp desktop diff dll dop dtd dylib eml eot erl ex exe exs f90 faiss fbx fish fnt "
        "gitignore glb gltf go gpx gradle graphql groovy gyp h h5 hdf5 hh hpp hs i icc icm idx ini ipynb java jl js "
        "json json5 jsonl jsx kml ko kt less lnk lock lrcat lrdata lrprev lrtemplate lua m map mat mdb mk ml mm mo "
        "mod msg msi ndjson nfo npy npz o obj onnx otf parquet patch pem pickle pkl pl plist pm po pp3 properties "
        "proto ps1 psm1 pt pth py pyc pyd pyi pyo r rb rs s safetensors scala scss sh sln so sol sql sqlite "
        "sqlite-journal sqlite-shm sqlite-wal sqlite3 stl styl svelte swift sys tcl tf tfrecord toml torrent ts "
        "tsbuildinfo tsx ttc ttf url vbs vue wasm webloc woff woff2 xaml xhtml xml xmp xsd xsl xslt yaml yml zig zsh"
    ),
}
_IMAGES = (
    "3fr afphoto ai arw bay cap cdr cr2 cr3 crw cur dcm dcr dcs dds dng drf emf eps erf exr fff fits fpx gpr hdr "
    "icns ico iiq indd jbig2 jng jp3 jxl jxr k25 kdc kra mdc mef mos mrw nef nrw orf pcx pef pict ps psb psd ptx pxn "
    "qoi raf ras raw rgb rw2 rwl rwz sgi sr2 srf srw svg svgz tga wdp wmf x3f xbm xcf xpm"
)

KIND_OF = {f".{extension}": kind for kind, listed in _EXTENSIONS_OF.items() for extension in listed.split()}
"""The kind of files with an extension, lower case with the dot, that are certainly no images that can be opened."""

IMAGE_EXTENSIONS = frozenset(f".{extension}" for extension in _IMAGES.split())
"""Extensions of images in formats that may not be supported: the content decides."""

JUNK = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "picasa.ini", "icon\r"})
"""Names, lower case, of files that operating systems put beside images: nobody asks what became of them."""

_USUAL_EXTENSION = re.compile(r"\.[a-z0-9_+~-]{1,10}", re.ASCII)


def shown_extension(extension: str) -> str:
    """Return an extension, lower case with the dot, to count by; "" for one that is unusually long or strange."""
    return extension if _USUAL_EXTENSION.fullmatch(extension) else ""
