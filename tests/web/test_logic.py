"""The parts of the app that need no browser: checks, escaping, texts, lists, jobs, starting."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shutil
import socket
import string
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import streamlit as st
from app_process import answers, free_port, wait_until
from PIL import Image, ImageChops
from small_collections import HOSTILE_NAMES, PHOTOS, copy_photos
from streamlit.testing.v1 import AppTest

from pixmatcher import (
    Collection,
    CollectionError,
    Filter,
    InvalidImageError,
    Item,
    SearchOptions,
    index,
    load_encoder,
    open_image,
    register_encoder,
    search,
    upgrade,
)
from pixmatcher.collection import summarize_items
from pixmatcher.encoders import Encoder
from pixmatcher.images import fit_image
from pixmatcher.records import EncoderRecord, Space
from pixmatcher.searching import example_texts, original_file, percent, search_similar
from pixmatcher.web import _background_jobs, _indexing, _pictures, _texts, collection_list
from pixmatcher.web._components import WHOLE
from pixmatcher.web._components.crop_frame import valid_box
from pixmatcher.web._components.map_pointer import valid_position
from pixmatcher.web._host_check import is_known_host
from pixmatcher.web._pages.map import selected_positions
from pixmatcher.web._query_image import QueryImage
from pixmatcher.web._results import Rated, ratings

WEB = Path(collection_list.__file__).parent


def test_both_languages_have_the_same_texts() -> None:
    assert set(_texts.ENGLISH) == set(_texts.FRENCH)
    for key, english in _texts.ENGLISH.items():
        fields = [
            sorted(name for _, name, _, _ in string.Formatter().parse(text) if name)
            for text in (english, _texts.FRENCH[key])
        ]
        assert fields[0] == fields[1], key


SHOWN = {"label", "help", "placeholder", "text", "title", "body", "caption", "alt"}
NOT_SHOWN = {"grid", "form", "set_page_config", "cache_resource", "fragment", "container", "get_option"}


def test_pages_show_no_text_of_their_own_and_every_text_is_used() -> None:
    used: set[str] = set()
    for path in WEB.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and path.name not in ("english.py", "french.py")
            ):
                used.add(node.value)
            named = isinstance(node, ast.Call) and ast.unparse(node.func) in ("t", "_fill_in") and node.args[0]
            if isinstance(named, ast.Constant):
                used.add(named.value)
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            of_streamlit = ast.unparse(node.func.value) in ("st", "st.sidebar", "grid")
            if of_streamlit and node.func.attr not in NOT_SHOWN:
                for argument in [*node.args[:1], *(given.value for given in node.keywords if given.arg in SHOWN)]:
                    literal = isinstance(argument, ast.Constant) and isinstance(argument.value, str)
                    assert not literal or ast.unparse(argument) == "'PixMatcher'", f"{path.name}: {ast.unparse(node)}"
    used |= {"map_color_label", "map_color_cluster", "images_of", "rows_of", "steps_of"}  # put together
    assert set(_texts.ENGLISH) <= used


@pytest.mark.parametrize(
    "name", [*HOSTILE_NAMES, ":+1:", "$$x$$", ":material/home:", "&lt;b&gt;", "a:smile: b", "# h", "1. x"]
)
def test_texts_of_strangers_are_escaped_for_markdown(name: str) -> None:
    escaped = _texts.as_markdown(name)
    assert escaped.isprintable() or "\N{WORD JOINER}" in escaped
    unescaped = "".join(c for c in escaped if c != "\\")
    for sign in "<>*_`[]#&|~":
        assert escaped.count("\\" + sign) == unescaped.count(sign)
    assert "\n" not in escaped
    assert not re.search(r":[^\s:\N{WORD JOINER}][^\s:]*:", unescaped)


@pytest.mark.parametrize(
    "box",
    [
        None,
        "x",
        [0, 0, 1],
        [0, 0, 1, "1"],
        [0.5, 0, 0.5, 1],
        [0.9, 0, 0.1, 1],
        [-1, 0, 1, 1],
        [0, 0, 1, float("nan")],
        [True, 0, 1, 1],
    ],
)
def test_invalid_frames_are_refused(box: object) -> None:
    assert valid_box(box) is None


def is_nearly(picture: Image.Image, color: str) -> bool:
    """Return whether a picture has one color, except at its edges and for the errors of JPEG."""
    inner = picture.crop((20, 20, picture.width - 20, picture.height - 20))
    difference = ImageChops.difference(inner, Image.new("RGB", inner.size, color))
    return max(most for _, most in difference.getextrema()) < 10


def test_a_rotated_and_cropped_picture_is_what_was_framed() -> None:
    picture = Image.new("RGB", (400, 200), "red")
    picture.paste("blue", (200, 0, 400, 200))
    kept = _pictures.as_jpeg(picture, quality=95)
    turned = QueryImage(data=b"x", picture=kept, box=(0.0, 0.0, 0.5, 0.5)).rotated(1)
    assert turned.box == WHOLE
    assert turned.rotated_picture().size == (200, 400)
    assert is_nearly(turned.rotated_picture().crop((0, 0, 200, 150)), "red")
    lower = QueryImage(data=b"x", picture=kept, quarter_turns=1, box=(0.0, 0.5, 1.0, 1.0)).image()
    assert isinstance(lower, Image.Image)
    assert lower.size == (200, 200)
    assert is_nearly(lower, "blue")
    assert QueryImage(data=b"x", picture=kept).image() == b"x"


@pytest.mark.parametrize(
    "given",
    [None, 1, "1", {}, {"position": 1}, {"mapKey": "b", "position": 1}]
    + [{"mapKey": "a", "position": place} for place in (3, -1, 1.0, True, "1", None, [1])],
)
def test_pointer_data_of_a_browser_is_checked(given: object) -> None:
    assert valid_position(given, "a", 3) is None
    assert valid_position({"mapKey": "a", "position": 2}, "a", 3) == 2


def test_only_positions_of_the_map_are_chosen() -> None:
    given: list[dict[str, object]] = [{"customdata": [1]}, {"customdata": 0}, {"customdata": [9]}, {}]
    given += [{"customdata": "../x"}, {"customdata": [1]}]
    event = SimpleNamespace(selection=SimpleNamespace(points=given))
    assert selected_positions(event, 3) == [1, 0]


def test_each_collection_is_listed_once_with_its_own_name(collections: dict[str, Path], tmp_path: Path) -> None:
    found = collection_list.locate_all([collections["photos"], collections["labelled"]])
    assert [*collection_list.display_names(found).values()] == ["photos", "labelled"]
    with pytest.raises(CollectionError, match="named twice"):
        collection_list.locate_all([collections["photos"], collections["photos"] / ".pixmatcher"])
    with pytest.raises(CollectionError, match="no collection"):
        collection_list.locate_all([tmp_path])


def test_hits_are_filtered_by_label(collections: dict[str, Path]) -> None:
    with Collection.open(collections["labelled"]) as collection:
        everything = search(collection, "a cup of coffee", k=10)
        animals = search(collection, "a cup of coffee", SearchOptions(k=1, filter=Filter(("n1", "unknown"))))
        assert everything.hits[0].item.label == "n2"
        assert [hit.item.label for hit in animals.hits] == ["n1"]
        assert animals.hits[0].score == next(hit.score for hit in everything.hits if hit.item.label == "n1")
        assert search(collection, "a cat", SearchOptions(filter=Filter(("unknown",)))).hits == []


def test_the_first_similar_item_is_the_item_itself(collections: dict[str, Path]) -> None:
    with Collection.open(collections["photos"]) as collection:
        item = next(item for item in collection.items() if item.uri.endswith("horse.jpg"))
        result = search_similar(collection, item.id, k=3)
        assert result.space == "visual"
        assert result.hits[0].item.id == item.id
        assert len(result.hits) == 3
        assert not result.weak
        assert search(collection, "asdkjh qwe zzx").weak
        with pytest.raises(CollectionError, match="No image of this collection has the id 999"):
            search_similar(collection, 999)


def test_items_are_counted_by_year_and_size() -> None:
    items = [
        Item("/a.jpg", bytes=5, width=1000, height=1000, taken="2020-01-01", modified="2021-01-01"),
        Item("/b.jpg", bytes=7, width=10, height=10, modified="2019-01-01"),
        Item("/c.jpg", width=10_000, height=5000),
    ]
    summary = summarize_items(items)
    assert (summary.count, summary.bytes) == (3, 12)
    assert [*summary.by_year.items()] == [("2019", 1), ("2020", 1)]
    assert [*summary.by_megapixels.items()] == [(0.0, 1), (1.0, 1), (50.0, 1)]


def test_example_texts_are_labels_or_texts_with_good_results(collections: dict[str, Path]) -> None:
    with Collection.open(collections["labelled"]) as labelled:
        assert example_texts(labelled) == ["animal", "<script>alert(2)</script> **label**", "vehicle"]
    with Collection.open(collections["passing"]) as collection:
        texts = example_texts(collection, 2)
        assert sorted(texts) == ["a cat", "a cup of coffee"]


def test_the_app_serves_only_images(tmp_path: Path) -> None:
    secret = tmp_path / "secret.jpg"
    secret.write_text("password")
    assert original_file(Item(str(secret))) is None
    assert original_file(Item("https://example.org/cat.jpg")) is None
    assert original_file(Item(str(PHOTOS / "cat.jpg"))) == (PHOTOS / "cat.jpg").read_bytes()


def test_uploads_are_bounded() -> None:
    from pixmatcher.web._query_image import set_query_data

    with pytest.raises(InvalidImageError, match="too large"):
        set_query_data(bytes(_pictures.MAX_UPLOAD_BYTES + 1))


def _text_page() -> None:
    from pixmatcher.web._pages import text_search

    text_search.show()


def _image_page() -> None:
    from pixmatcher.web._pages import image_search

    image_search.show()


@pytest.fixture
def text_app(collections: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> AppTest:
    monkeypatch.setattr(sys, "argv", ["app.py"])
    monkeypatch.setenv(
        collection_list.COLLECTIONS_VARIABLE,
        os.pathsep.join([str(collections["photos"]), str(collections["labelled"])]),
    )
    st.cache_resource.clear()
    return AppTest.from_function(_text_page, default_timeout=60)


def shown(app: AppTest) -> list[str]:
    """Return the names of the images in the grid."""
    (grid,) = app.get("bidi_component")
    return [tile["name"] for tile in json.loads(grid.proto.json)["tiles"]]


def test_the_controls_change_the_results(text_app: AppTest) -> None:
    app = text_app.run()
    app.text_input(key="query_text").input("a cup of coffee").run()
    assert not app.exception
    assert len(shown(app)) == 18
    assert not app.toggle  # every search is exact
    assert shown(app)[0] == "coffee.jpg"
    app.slider(key="min_score").set_value(0.2).run()
    assert shown(app)[0] == "coffee.jpg"
    assert len(shown(app)) < 18
    app.slider(key="min_score").set_value(1.0).run()
    assert "lower the minimum score" in app.info[0].value
    app.slider(key="min_score").set_value(0.0).run()
    app.select_slider(key="number").set_value(8).run()
    assert len(shown(app)) == 8


NO_BREAK_SPACE = "\N{NO-BREAK SPACE}"


@pytest.mark.parametrize("language", ["en", "fr"])
def test_probabilities_and_what_is_unlike_or_cannot_be_read_are_shown(text_app: AppTest, language: str) -> None:
    texts = _texts.TEXTS[language]
    text_app.session_state["language"] = language
    app = text_app.run()
    app.text_input(key="query_text").input("a cup of coffee").run()
    assert not app.exception
    assert not app.warning
    (grid,) = app.get("bidi_component")
    first, *others = json.loads(grid.proto.json)["tiles"]
    result = app.session_state["text_result"][1]
    assert first["score"] == pytest.approx(result.probabilities[0])
    shown_percent = f"{percent(result.probabilities[0])}{'' if language == 'en' else NO_BREAK_SPACE}%"
    assert first["score_text"] == f"{shown_percent} · {result.hits[0].score:.2f}"
    assert len(others) == 17
    app.text_input(key="query_text").input("asdkjh qwe zzx").run()
    assert [note.value for note in app.warning] == [texts["weak"]]
    assert len(shown(app)) == 18
    app.text_input(key="query_text").input("一只猫").run()
    assert [note.value for note in app.warning] == [texts["unreadable_english"].format(encoder="lite")]
    assert not app.get("bidi_component")
    assert not app.info


def test_the_opened_image_shows_its_rating() -> None:
    item = Item("/a.jpg")
    assert ratings(None) == ratings(Rated(item)) == []
    assert ratings(Rated(item, 0.5)) == [("Score", "0.50")]
    assert ratings(Rated(item, 0.5, 0.834)) == [("Probability", "83%"), ("Score", "0.50")]


def test_another_encoder_is_used_and_the_page_says_so(
    collections: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load_encoder()
    away = EncoderRecord(f"onnx:{tmp_path / 'nowhere'}", "x", (Space("away", 4, text=True),))
    opened = open_image(PHOTOS / "cat.jpg")
    with Collection.create(tmp_path / "half", [away, encoder]) as made:
        vectors = encoder.encode_images(fit_image(opened, encoder.recipe)[None])
        made.add([Item(str(PHOTOS / "cat.jpg"), content_hash="a")], vectors | {"away": np.ones((1, 4), np.float32)})
    monkeypatch.setattr(sys, "argv", ["app.py", str(tmp_path / "half")])
    st.cache_resource.clear()
    app = AppTest.from_function(_text_page, default_timeout=60).run()
    assert [note.value for note in app.caption if "The encoder lite is used" in note.value]
    app.text_input(key="query_text").input("a cat").run()
    assert not app.error
    assert app.session_state["text_result"][1].space == "semantic"
    app.selectbox(key="text_space").select("away").run()
    assert not [note.value for note in app.caption if "is used" in note.value]
    assert "nowhere" in app.error[0].value
    app.selectbox(key="text_space").select("semantic").run()
    assert not [note.value for note in app.caption if "is used" in note.value]
    assert not app.error


def test_an_open_collection_is_upgraded(tiny: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Newer(type(tiny)):  # type: ignore[misc]
        fingerprint = "tiny-2"

        def encode_images(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
            return {name: -vectors for name, vectors in super().encode_images(pixels).items()}

    folder = copy_photos(tmp_path / "photos")
    index(folder, encoders=["tiny"])
    monkeypatch.setattr(sys, "argv", ["app.py", str(folder)])
    st.cache_resource.clear()
    app = AppTest.from_function(_text_page, default_timeout=60).run()
    app.text_input(key="query_text").input("a cat").run()
    before = shown(app)
    register_encoder("tiny", Newer)
    assert shown(app.run()) == before  # the answer is kept
    app.text_input(key="query_text").input("a dog").run()
    assert "pixmatcher upgrade" in app.error[0].value
    monkeypatch.setattr(_texts, "language", lambda: "fr")
    assert "mettez-la à niveau avec la commande" in app.run().error[0].value
    assert upgrade(folder).finished
    app.text_input(key="query_text").input("a cat").run()
    assert not app.error
    assert not app.exception
    assert shown(app) == before[::-1]


def test_a_large_collection_may_be_searched_exactly(
    tiny: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pixmatcher.vector_index._kinds.EXACT_UP_TO", 1)  # so that a small one is large
    random = np.random.default_rng(0)
    with Collection.create(tmp_path, [tiny]) as collection:
        items = [Item(f"/{n}.jpg", content_hash=str(n)) for n in range(500)]
        rows = {space.name: random.normal(size=(500, space.dimension)) for space in tiny.spaces}
        collection.add(items, {name: each / np.linalg.norm(each, axis=1)[:, None] for name, each in rows.items()})
        collection.indexes.save()
    monkeypatch.setattr(sys, "argv", ["app.py"])
    monkeypatch.setenv(collection_list.COLLECTIONS_VARIABLE, str(tmp_path))
    st.cache_resource.clear()
    app = AppTest.from_function(_text_page, default_timeout=60).run()
    app.text_input(key="query_text").input("a cat").run()
    assert len(shown(app)) == 24
    app.toggle(key="exact").set_value(True).run()
    assert not app.exception
    with Collection.open(tmp_path) as collection:
        assert collection.indexes.kind("semantic") == "trained"
        expected = search(collection, "a cat", SearchOptions(k=24, exact=True))
    assert shown(app) == [hit.item.uri[1:] for hit in expected.hits]


def test_the_language_is_chosen(text_app: AppTest) -> None:
    text_app.session_state["language"] = "fr"
    assert text_app.run().title[0].value == _texts.FRENCH["text_start"]


def test_the_image_of_a_public_url_is_searched_for(collections: dict[str, Path]) -> None:
    isolated = ["unshare", "--map-root-user", "--net"]
    if not shutil.which("ip") or subprocess.run([*isolated, "true"], capture_output=True).returncode:
        pytest.skip("no network of its own can be made here")
    image = PHOTOS / "cat.jpg"
    done = subprocess.run(
        [*isolated, sys.executable, str(Path(__file__).with_name("visit_public_url.py")), str(image)],
        env=os.environ | {collection_list.COLLECTIONS_VARIABLE: str(collections["photos"])},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    fetched, refused = done.stdout.splitlines()
    assert fetched == hashlib.sha256(image.read_bytes()).hexdigest()
    assert "private or reserved address" in refused


@pytest.mark.usefixtures("text_app")
def test_a_click_rotates_what_the_click_before_it_has_rotated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the page was not drawn between them: the second click ends the run of the first."""
    image = QueryImage(data=(PHOTOS / "temple.jpg").read_bytes(), picture=(PHOTOS / "temple.jpg").read_bytes())
    app = AppTest.from_function(_image_page, default_timeout=60)
    app.session_state["query_image"] = image
    button = app.run().button(key="rotate_right")
    with monkeypatch.context() as ended:
        ended.setattr("pixmatcher.web._pages.image_search._search_once", lambda *_: st.stop())
        button.click().run()
    button.click().run()
    assert app.session_state["query_image"] == image.rotated(2)
    app.session_state["query_image"] = None  # as after a click on another button
    button.click().run()
    assert app.session_state["query_image"] is None
    assert not app.exception


# Making collections


@pytest.mark.parametrize("folder", ["/", "/etc", "/proc/1", "/dev", "/usr/../usr", "/tmp"])
def test_folders_of_the_system_are_not_indexed(folder: str) -> None:
    assert _indexing.is_system_folder(Path(folder))


def test_a_link_to_the_root_is_the_root(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/")
    assert _indexing.is_system_folder(tmp_path / "link")
    assert not _indexing.is_system_folder(tmp_path)


def test_the_list_takes_each_collection_once(tmp_path: Path) -> None:
    added = collection_list.CollectionList([tmp_path / "first"])
    adders = [threading.Thread(target=added.add, args=(tmp_path / str(n % 20),)) for n in range(200)]
    for adder in adders:
        adder.start()
    for adder in adders:
        adder.join()
    assert added.paths[0] == tmp_path / "first"
    assert sorted(path.name for path in added.paths[1:]) == sorted(map(str, range(20)))


# Errors of the program


def _page_of_the_app() -> None:
    import runpy

    from pixmatcher.web import serve

    runpy.run_path(serve.__file__.replace("serve.py", "_main_script.py"))


def test_an_error_of_a_page_is_logged_and_not_shown(
    collections: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr("pixmatcher.web._pages.image_search.show", fail)
    monkeypatch.setattr(sys, "argv", ["app.py", str(collections["photos"])])
    st.cache_resource.clear()
    app = AppTest.from_function(_page_of_the_app, default_timeout=60).run()
    assert not app.exception
    assert [error.value for error in app.error] == [_texts.ENGLISH["internal"]]
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.name == "pixmatcher.web"
    assert "a secret" in caplog.text
    assert "Traceback" in caplog.text


def test_an_error_of_a_job_is_logged_and_kept(caplog: pytest.LogCaptureFixture) -> None:
    assert _background_jobs.start_job("failing", "x", lambda progress: 1 / 0)
    job = _background_jobs.last_job("failing")
    assert job is not None
    wait_until(lambda: not job.running)
    assert isinstance(job.error, ZeroDivisionError)
    assert "job failed: failing" in caplog.text
    assert "Traceback" in caplog.text


# The command line


def run_app(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pixmatcher", "app", "--no-browser", *arguments],
        cwd=cwd, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_a_wrong_call_is_one_sentence(collections: dict[str, Path], tmp_path: Path) -> None:
    photos = str(collections["photos"])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port()))
        taken.listen()
        port = str(taken.getsockname()[1])
        for arguments, said in (
            (["-c", str(tmp_path)], "There is no collection in"),
            (["-c", photos, "-c", photos + "/.pixmatcher"], "named twice"),
            (["-c", photos, "--port", port], f"Port {port} cannot be used"),
        ):
            done = run_app(*arguments, cwd=tmp_path)
            assert done.returncode == 2
            assert said in done.stderr
            assert done.stderr.count("\n") == 1


def test_streamlit_itself_can_start_it(collections: dict[str, Path], tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "streamlit", "run", str(WEB / "app.py"), "--server.port", str(port)]
    settings = {collection_list.COLLECTIONS_VARIABLE: str(collections["photos"]), "HOME": str(tmp_path)}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--server.headless=true"], env=os.environ | settings, cwd=tmp_path, stdout=log, stderr=log
        )
    try:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}"), process)
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.2", port), 60)
    finally:
        process.terminate()
        process.wait(60)


def test_without_streamlit_it_says_what_to_install(collections: dict[str, Path], tmp_path: Path) -> None:
    code = (
        "import sys, importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'streamlit' else find(name, *rest)\n"
        f"sys.argv = ['pixmatcher', 'app', '-c', {str(collections['photos'])!r}]\n"
        "from pixmatcher.cli import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 2
    assert "pip install 'pixmatcher[app]'" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("127.0.0.1:8501", True),
        ("localhost:8501", True),
        ("[::1]:8501", True),
        ("192.168.1.2", True),
        (None, True),
        ("rebound.example:8501", False),
        ("127.0.0.1.rebound.example", False),
        ("localhost.rebound.example", False),
        ("[::1", False),
        ("", False),
    ],
)
def test_host_names_of_other_sites_are_unknown(host: str | None, known: bool) -> None:
    assert is_known_host(host) is known
