"""The command line: real processes, real collections, real output."""

from __future__ import annotations

import base64
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

import pixmatcher
from pixmatcher import load_encoder
from pixmatcher._progress import Progress
from pixmatcher.cli._progress import _ProgressLines
from pixmatcher.datasets.examples import demo_paths
from pixmatcher.searching import WEAK_NOTE
from servers import serve
from support import without_progress

EXAMPLES = Path(__file__).parents[1] / "examples" / "photos"


def run(*arguments: str | Path, cwd: Path, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "pixmatcher", *map(os.fspath, arguments)],
        cwd=cwd,
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        timeout=120,
        check=False,
    )


def one_line_error(done: subprocess.CompletedProcess[bytes], exit_code: int) -> str:
    """Return the error message of a call that must fail with one line."""
    assert done.returncode == exit_code, done
    text = done.stderr.decode()
    assert "Traceback" not in text
    assert len(text.splitlines()) == 1, text
    return text


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example photos, indexed."""
    folder = tmp_path_factory.mktemp("cli") / "photos"
    shutil.copytree(EXAMPLES, folder, ignore=shutil.ignore_patterns(".pixmatcher"))
    done = run("index", folder, cwd=folder.parent)
    assert done.returncode == 0, done
    assert b"18 images" in done.stdout
    assert b"18 added" in done.stdout
    return folder


@pytest.fixture(scope="module")
def animals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection with the folders `animals of Kenya` and `things`."""
    folder = tmp_path_factory.mktemp("folders") / "photos"
    for name in ("animals of Kenya/cat.jpg", "animals of Kenya/horse.jpg", "things/coffee.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(EXAMPLES / Path(name).name, folder / name)
    (folder / "empty").mkdir()
    assert run("index", folder, cwd=folder.parent).returncode == 0
    return folder


@pytest.fixture(scope="module")
def server(photos: Path) -> Iterator[str]:
    with serve((photos / "cat.jpg").read_bytes()) as url:
        yield url


def names(done: subprocess.CompletedProcess[bytes]) -> list[str]:
    return [Path(hit["uri"]).name for hit in json.loads(done.stdout)["hits"]]


@pytest.mark.parametrize(
    ("text", "photo"),
    [
        ("a cat", "cat.jpg"),
        ("a cup of coffee", "coffee.jpg"),
        ("a rocket", "rocket.jpg"),
        ("a temple", "temple.jpg"),
        ("a flower", "flower.jpg"),
    ],
)
def test_a_text_finds_its_photo(photos: Path, text: str, photo: str) -> None:
    assert photo in names(run("search", text, "-k", "3", "--json", cwd=photos))


def test_words_without_quotes_are_one_text(photos: Path) -> None:
    quoted = run("search", "a cup of coffee", "--json", cwd=photos)
    unquoted = run("search", "a", "cup", "of", "coffee", "--json", cwd=photos)
    assert json.loads(unquoted.stdout)["query"] == "a cup of coffee"
    assert names(unquoted) == names(quoted)


def test_json_has_the_documented_format(photos: Path) -> None:
    done = run("search", "a cat", "-k", "2", "--json", cwd=photos)
    answer = json.loads(done.stdout)
    assert done.stderr == b""
    assert list(answer) == ["query", "space", "took_ms", "hits", "weak"]
    assert (answer["query"], answer["space"]) == ("a cat", "semantic")
    assert answer["took_ms"] > 0
    assert [list(hit) for hit in answer["hits"]] == [["rank", "score", "probability", "id", "uri", "label"]] * 2
    assert [hit["rank"] for hit in answer["hits"]] == [1, 2]
    assert answer["hits"][0]["score"] >= answer["hits"][1]["score"]


def test_an_image_finds_itself_and_similar_images(photos: Path, tmp_path: Path) -> None:
    cropped = tmp_path / "part of a cat.png"
    with Image.open(photos / "cat.jpg") as cat:
        cat.crop((60, 20, 430, 290)).save(cropped)
    for query in (photos / "cat.jpg", cropped):
        answer = json.loads(run("search", query, "--json", "-c", photos, cwd=tmp_path).stdout)
        assert answer["space"] == "visual"
        assert answer["query"] == str(query)
        assert answer["hits"][0]["uri"] == str(photos / "cat.jpg")
    assert answer["hits"][0]["score"] > 0.5


def test_an_image_on_standard_input(photos: Path) -> None:
    done = run("search", "-", "--json", cwd=photos, stdin=(photos / "rocket.jpg").read_bytes())
    assert names(done)[0] == "rocket.jpg"
    assert "not an image" in one_line_error(run("search", "-", cwd=photos, stdin=b"no image"), 1)


def test_a_text_and_an_image_together(photos: Path) -> None:
    done = run("search", "cat.jpg", "a cup of coffee", "--json", "-k", "2", cwd=photos)
    assert json.loads(done.stdout)["query"] == {"text": "a cup of coffee", "image": "cat.jpg"}
    assert json.loads(done.stdout)["space"] == "semantic"
    assert set(names(done)) == {"cat.jpg", "coffee.jpg"}


def test_an_image_url(photos: Path, server: str) -> None:
    done = run("search", f"{server}/image.jpg", "--allow-private-hosts", "--json", cwd=photos)
    assert names(done)[0] == "cat.jpg"
    refused = one_line_error(run("search", f"{server}/image.jpg", cwd=photos), 1)
    assert "--allow-private-hosts" in refused
    page = run("search", f"{server}/page.html", "--allow-private-hosts", cwd=photos)
    assert "web page" in one_line_error(page, 1)


def test_the_table_names_rank_score_and_file(photos: Path) -> None:
    done = run("search", "a cat", "-k", "3", cwd=photos)
    lines = done.stdout.decode().splitlines()
    assert lines[1].split() == ["rank", "score", "prob.", "image"]
    assert len(lines) == 5
    assert lines[2].split()[0] == "1"
    assert lines[2].split()[2].endswith("%")
    assert lines[2].split()[3].endswith(".jpg")


def test_the_table_is_complete_however_long_a_path_is(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path.joinpath(*["a folder of a rather long name"] * 6)
    folder.mkdir(parents=True)
    shutil.copy(photos / "cat.jpg", folder)
    assert run("index", folder, cwd=folder).returncode == 0
    done = run("search", "a cat", "-c", folder, cwd=tmp_path)
    header, row = done.stdout.decode().splitlines()[1:]
    assert header.split() == ["rank", "score", "prob.", "image"]
    assert row.startswith("   1  0.")
    assert row.endswith("cat.jpg")


def test_min_probability(photos: Path) -> None:
    full = json.loads(run("search", "a cat", "--json", cwd=photos).stdout)["hits"]
    border = (full[0]["probability"] + full[1]["probability"]) / 2
    done = run("search", "a cat", "--json", "--min-probability", str(border), cwd=photos)
    assert done.returncode == 0, done.stderr
    some = json.loads(done.stdout)["hits"]
    assert some == full[:1]
    assert json.loads(run("search", "a cat", "--json", "--min-probability", "1", cwd=photos).stdout)["hits"] == []
    assert json.loads(run("search", "a cat", "--json", "--min-probability", "0", cwd=photos).stdout)["hits"] == full
    mixed = run("search", "a cat", "cat.jpg", "--min-probability", "0.5", cwd=photos)
    assert "no probabilities" in one_line_error(mixed, 2)


def test_min_score(photos: Path) -> None:
    full = json.loads(run("search", "cat.jpg", "--json", cwd=photos).stdout)["hits"]
    border = full[2]["score"]
    some = json.loads(run("search", "cat.jpg", "--json", "--min-score", str(border - 0.0001), cwd=photos).stdout)[
        "hits"
    ]
    assert [hit["id"] for hit in some] == [hit["id"] for hit in full[:3]]
    none = run("search", "cat.jpg", "--min-score", "1.5", cwd=photos)
    assert none.returncode == 0
    assert b"No hits" in none.stdout


def test_batch_answers_each_line_in_order(photos: Path) -> None:
    lines = [
        b"a cat",
        b'{"text": "a rocket"}',
        b'{"image": "coffee.jpg"}',
        b'{"image": "missing.jpg"}',
        b"",
        b'{"text": "a cat", "image": "cat.jpg", "text_weight": 0.3}',
        b'{"text": 5}',
        b'{"text": "never closed',
        b"[" * 5000,
        b'{"text": ' * 3000,
        b"caf\xe9",
        "ein Café mit \u202e und \U0001f408".encode(),
        b'{"image": "README.md"}',
    ]
    (photos.parent / "queries.txt").write_bytes(b"\n".join(lines) + b"\n")
    done = run("search", "--batch", photos.parent / "queries.txt", "-k", "2", "--json", cwd=photos)
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    lines.remove(b"")  # blank lines are passed over
    assert len(answers) == len(lines)
    assert [position for position, answer in enumerate(answers) if "error" in answer] == [3, 5, 6, 8, 9, 11]
    assert all(set(answer) == {"query", "error"} for answer in answers if "error" in answer)
    assert answers[0]["query"] == "a cat"
    assert answers[1]["query"] == "a rocket"
    assert answers[2]["query"] == "coffee.jpg"
    assert Path(answers[2]["hits"][0]["uri"]).name == "coffee.jpg"
    assert answers[3]["query"] == "missing.jpg"
    assert "cannot read this text" in answers[7]["note"]  # brackets only
    assert [len(answer["hits"]) for answer in answers if "hits" in answer] == [2, 2, 2, 2, 0, 2]


def test_a_batch_that_works_exits_0_and_reads_standard_input(photos: Path) -> None:
    done = run("search", "--batch", "-", "--json", cwd=photos, stdin=b"a cat\na rocket")
    assert done.returncode == 0
    assert [json.loads(line)["query"] for line in done.stdout.splitlines()] == ["a cat", "a rocket"]
    single = json.loads(run("search", "a rocket", "--json", cwd=photos).stdout)["hits"]
    assert json.loads(done.stdout.splitlines()[1])["hits"] == single


def test_a_contact_sheet(photos: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    done = run("search", "a cat", "--save-grid", sheet, "-k", "6", cwd=photos)
    assert done.returncode == 0
    with Image.open(sheet) as picture:
        assert picture.format == "PNG"
        assert picture.width > 900
        colours = picture.convert("RGB").getcolors(1 << 24)
        assert colours is not None
        assert len(colours) > 10_000  # photos, not an empty sheet
    assert "must end in" in one_line_error(run("search", "a cat", "--save-grid", "sheet.doc", cwd=photos), 2)
    unwritable = run("search", "a cat", "--save-grid", tmp_path / "no" / "sheet.png", cwd=photos)
    assert "cannot be written" in one_line_error(unwritable, 2)
    assert unwritable.stdout == b""


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (["search", "missing.jpg"], 2, "does not exist"),
        (["search", "./missing"], 2, "does not exist"),
        (["search", "/missing/photo.png"], 2, "does not exist"),
        (["search", "README.md"], 1, "not an image"),
        (["search", "cat.jpg", "rocket.jpg"], 2, "one image"),
        (["search", "  "], 2, "empty"),
        (["search", ""], 2, "empty"),
        (["search"], 2, "QUERY"),
        (["search", "a cat", "--batch", "-"], 2, "QUERY"),
        (["search", "--batch", "missing.txt"], 2, "cannot be read"),
        (["search", "a cat", "-k", "0"], 2, "-k"),
        (["search", "a cat", "-c", "nowhere"], 2, "no collection"),
        (["search", "ftp://example.org/a.jpg"], 1, "http"),
        (["search", "x" * 20_000], 2, "longer"),
        (["index", "missing"], 2, "does not exist"),
        (["index", "cat.jpg"], 2, "not a folder"),
        (["index", ".", "--encoder", "unknown", "-c", "new"], 2, "Unknown encoder"),
        (["index", ".", ".."], 2, "-c"),
        (["index", ""], 2, "name a folder"),
        (["index", ".", "--max-megapixels", "nan"], 2, "must be a number"),
        (["index", ".", "--max-megapixels", "inf"], 2, "must be a number"),
        (["search", "--batch", "."], 2, "cannot be read"),
        (["search", "a cat", "--nope"], 2, "--nope"),
        (["search", "--help me"], 2, "put -- before it"),
        (["search", "-5 degrees"], 2, "put -- before it"),
        (["search", "a cat", "--top", "-1"], 2, "--top"),
        (["search", "a cat", "--label", "nothere"], 2, "has the label 'nothere'"),
        (["search", "a cat", "--folder", ""], 2, "is empty"),
        (["search", "file:///missing/photo.png"], 2, "'/missing/photo.png' does not exist"),
        (["search", "file://other/photo.png"], 2, "on another machine, other"),
        (["search", "data:image/png;base64,####"], 2, "is not valid base64"),
        (["search", "data:image/png;base64"], 2, "has no data"),
        (["search", "data:image/png;base64,AAAA"], 1, "data:image/png;base64,AAAA cannot be used"),
        (["search", "C:\\pictures of mine\\x.png"], 2, "does not exist"),
        (["search", "nowhere/my cat.png"], 2, "does not exist"),
        (["categories", "my own cat.jpg"], 2, "'my own cat.jpg' does not exist"),
        (["map", "map.png", "--query", "missing.jpg"], 2, "'missing.jpg' does not exist"),
        (["index", "file:///missing"], 2, "/missing does not exist"),
        (["index", "https://example.org/photos"], 2, "urls:FILE.txt"),
        (["demo", "--grid", "sheet.doc"], 2, "must end in"),
        (["search", "a cat", "-c", "animals"], 2, "leave -c out"),
        (["search", "a cat", "-k", "x"], 2, "See `"),
        (["forget", "nowhere"], 2, "is not a source of"),
        (["info", "-c", "nowhere"], 2, "no collection"),
        (["verify", "-c", "nowhere"], 2, "no collection"),
        (["unknown"], 2, "unknown"),
    ],
)
def test_a_wrong_call_is_reported_in_one_line(photos: Path, arguments: list[str], exit_code: int, words: str) -> None:
    (photos / "animals").mkdir(exist_ok=True)
    assert words in one_line_error(run(*arguments, cwd=photos), exit_code)


def test_the_collection_is_found_from_a_subfolder(photos: Path, tmp_path: Path) -> None:
    below = photos / "below"
    below.mkdir(exist_ok=True)
    assert run("search", "a cat", "--json", "-k", "1", cwd=below).returncode == 0
    assert "run `pixmatcher index FOLDER` first" in one_line_error(run("search", "a cat", cwd=tmp_path), 2)


def test_info_and_verify(photos: Path) -> None:
    info = run("info", cwd=photos).stdout.decode()
    assert "18" in info
    assert "visual" in info
    assert "semantic" in info
    verify = run("verify", cwd=photos)
    assert verify.returncode == 0
    assert b"Undamaged: 18 images" in verify.stdout


def test_index_without_a_source_refreshes_the_collection(photos: Path) -> None:
    done = run("index", cwd=photos)
    assert done.returncode == 0
    assert b"18 unchanged" in done.stdout


@pytest.mark.xdist_group("demo")  # they share the collection of the demonstration
def test_the_demonstration(tmp_path: Path) -> None:
    done = run("demo", "--grid", tmp_path / "sheet.png", cwd=tmp_path)
    assert done.returncode == 0, done
    output = done.stdout.decode()
    assert output.count("rank") == 2
    assert "Type next:" in output
    assert (tmp_path / "sheet.png").stat().st_size > 10_000


@pytest.fixture
def newcomer(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run shell commands as on a machine with a new installation that is not on the PATH."""
    installed = tmp_path / "packages" / "pixmatcher"
    installed.mkdir(parents=True)
    for entry in Path(pixmatcher.__file__).parent.iterdir():
        (installed / entry.name).symlink_to(entry)
    (installed / "example_photos").symlink_to(EXAMPLES)
    program = tmp_path / "project" / ".venv" / "bin" / "pixmatcher"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!{sys.executable}\nfrom pixmatcher.cli import main\nmain()\n")
    program.chmod(0o755)
    (tmp_path / "home").mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "PIXMATCHER_"))}
    environment = kept | {"PYTHONPATH": str(installed.parent), "HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin"}

    def run_in_shell(command: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            shell=True,
            cwd=tmp_path / "project",
            env=environment | more,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run_in_shell


def shown_commands(output: str) -> list[str]:
    """Return the commands that the demonstration suggests."""
    return re.findall(r"^  (\S.*)$", output[output.index("Type next:") :], re.MULTILINE)


@pytest.mark.parametrize("pictures", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_commands_that_the_demonstration_shows_work(
    newcomer: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, pictures: bool
) -> None:
    if pictures:
        (tmp_path / "home" / "Pictures").mkdir()
        shutil.copy(EXAMPLES / "cat.jpg", tmp_path / "home" / "Pictures")
    done = newcomer(".venv/bin/pixmatcher demo")
    assert (done.returncode, without_progress(done.stderr)) == (0, "")
    commands = shown_commands(done.stdout)
    assert len(commands) == (5 if pictures else 3)
    assert all(command.startswith(".venv/bin/pixmatcher ") for command in commands)
    for command in commands:
        followed = newcomer(command)
        # The folder has a single picture, of a cat.
        unlike = "a dog on the beach" in command and "Pictures" in command
        assert (followed.returncode, followed.stderr) == (0, f"Note: {WEAK_NOTE}\n" if unlike else ""), command
        assert ".jpg" in followed.stdout or command.split()[1] in ("index", "info")
    assert "FOLDER" not in done.stdout if pictures else "pixmatcher index FOLDER" in done.stdout


@pytest.mark.slow
def test_the_demonstration_shows_the_program_name_that_was_typed(
    newcomer: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    in_path = newcomer("PATH=$PWD/.venv/bin:$PATH; pixmatcher demo").stdout
    assert all(command.startswith("pixmatcher ") for command in shown_commands(in_path))
    as_module = newcomer(f"'{sys.executable}' -m pixmatcher demo").stdout
    assert all(" -m pixmatcher " in command for command in shown_commands(as_module))
    assert newcomer(shown_commands(as_module)[0]).returncode == 0


@pytest.mark.xdist_group("demo")  # they share the collection of the demonstration
def test_the_demonstration_of_an_older_version_is_created_again(tmp_path: Path) -> None:
    manifest = demo_paths()[1] / "collection.json"
    assert run("demo", cwd=tmp_path).returncode == 0
    manifest.write_text(manifest.read_text().replace(load_encoder().fingerprint, "former"))
    done = run("demo", cwd=tmp_path)
    assert done.returncode == 0, done
    assert b"18 added" in done.stdout
    assert load_encoder().fingerprint in manifest.read_text()


def test_help_and_version(tmp_path: Path) -> None:
    assert run("--version", cwd=tmp_path).stdout.startswith(b"pixmatcher ")
    commands = run("--help", cwd=tmp_path).stdout.decode()
    assert all(command in commands for command in ("index", "search", "info", "verify", "demo"))


def test_shell_completion(tmp_path: Path) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("pixmatcher")],
        env={**os.environ, "_PIXMATCHER_COMPLETE": "complete_bash", "COMP_WORDS": "pixmatcher sea", "COMP_CWORD": "1"},
        capture_output=True,
        timeout=60,
        cwd=tmp_path,
        check=True,
    )
    assert done.stdout.split() == [b"search"]


def test_a_closed_pipe_is_not_an_error(photos: Path) -> None:
    queries = b"a cat\n" * 200
    process = subprocess.Popen(
        [sys.executable, "-m", "pixmatcher", "search", "--batch", "-", "--json"],
        cwd=photos,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdin.write(queries)
    process.stdin.close()
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(60) == 0


@pytest.mark.parametrize(
    ("command", "exit_code"),
    [
        ("info >&-", 0),
        ("search 'a cat' --json >&-", 0),
        ("index . 2>&-", 0),
        ("search - <&-", 2),
        ("search --batch - <&-", 0),
        ("info >/dev/full", 1),
        ("search 'a cat' --json >/dev/full", 1),
    ],
)
def test_closed_and_full_standard_streams(photos: Path, command: str, exit_code: int) -> None:
    done = subprocess.run(
        f"'{sys.executable}' -m pixmatcher {command}", shell=True, cwd=photos, capture_output=True, timeout=60
    )
    assert done.returncode == exit_code, done
    assert len(done.stderr.splitlines()) == (exit_code != 0), done


def test_a_terminal_that_supports_only_ascii(photos: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pixmatcher", "search", "a caf\u00e9"],
        cwd=photos,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.startswith(b"a caf\\xe9")


def test_a_current_folder_that_is_missing(photos: Path, tmp_path: Path) -> None:
    script = f"mkdir gone && cd gone && rmdir ../gone && '{sys.executable}' -m pixmatcher search 'a cat' "
    lost = subprocess.run(script, shell=True, cwd=tmp_path, capture_output=True, timeout=60)
    assert "The current folder does not exist any more: change to another one with cd." in one_line_error(lost, 2)
    found = subprocess.run(f"{script} -c '{photos}'", shell=True, cwd=tmp_path, capture_output=True, timeout=60)
    assert found.returncode == 0, found
    assert b"cat.jpg" in found.stdout


def test_a_source_is_removed(photos: Path, tmp_path: Path) -> None:
    for name in ("cat", "horse"):
        (tmp_path / name).mkdir()
        shutil.copy(photos / f"{name}.jpg", tmp_path / name)
    assert run("index", "cat", "horse", "-c", "c", cwd=tmp_path).returncode == 0
    shutil.rmtree(tmp_path / "cat")
    refreshed = run("index", "-c", "c", cwd=tmp_path)
    assert refreshed.returncode == 1
    assert b"missing source" in refreshed.stdout
    assert b"1 image of cat removed" in run("forget", "cat", "-c", "c", cwd=tmp_path).stdout
    assert run("index", "-c", "c", cwd=tmp_path).returncode == 0
    assert [Path(name).name for name in names(run("search", "a cat", "--json", "-c", "c", cwd=tmp_path))] == [
        "horse.jpg"
    ]


STORE = """
from pixmatcher import Collection

class Wrapped:
    def __init__(self, folder):
        self.collection = Collection.open(folder)

    def __getattr__(self, name):
        return getattr(self.collection, name)

    def __len__(self):
        return len(self.collection)
"""


def test_a_store_of_another_package(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    declaration = tmp_path / "wrapped_store-1.dist-info"
    declaration.mkdir()
    (declaration / "METADATA").write_text("Metadata-Version: 2.1\nName: wrapped-store\nVersion: 1\n")
    (declaration / "entry_points.txt").write_text("[pixmatcher.stores]\nwrapped = wrapped_store:Wrapped\n")
    (tmp_path / "wrapped_store.py").write_text(STORE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    reference = f"wrapped:/{photos}"  # a path would lose one of the slashes, a URL too
    found = run("search", "a cat", "-c", reference, "-k", "3", "--json", cwd=tmp_path)
    assert "cat.jpg" in names(found), found
    assert json.loads(found.stdout)["hits"][0]["uri"].startswith("//")
    batch = run("search", "--batch", "-", "-c", reference, "-k", "3", cwd=tmp_path, stdin=b"a cat\n")
    assert json.loads(batch.stdout)["hits"] == json.loads(found.stdout)["hits"]
    assert b"JPEG" in run("info", "-c", reference, cwd=tmp_path).stdout
    assert run("verify", "-c", f"wrapped:{photos}", cwd=tmp_path).stdout.startswith(b"Undamaged")
    not_here = one_line_error(run("upgrade", "-c", f"wrapped:{photos}", cwd=tmp_path), 2)
    assert "only with a collection in a folder" in not_here
    assert "unknown" in one_line_error(run("search", "a cat", "-c", "unknown:x", cwd=tmp_path), 2)


# ---- Folders of a filter ----


def test_a_folder_that_does_not_occur_is_named(animals: Path) -> None:
    kenya = str(animals / "animals of Kenya")
    for folder, words in (
        ("nothere", f"There is no folder '{animals}/nothere', and no image"),
        ("Animals of kenia", f"did you mean {kenya!r}?"),
        (str(animals / "elsewhere" / "animals of Kenya"), f"did you mean {kenya!r}?"),
        ("thing/", f"did you mean '{animals}/things'?"),
        ("empty", f"is in the folder '{animals}/empty'"),
        ("things/coffee.jpg", "is not a folder"),
        ("https://example.org/photos/", "is in https://example.org/photos:"),
        ("file:///missing", "There is no folder '/missing'"),
    ):
        found = one_line_error(run("search", "a cat", "--folder", folder, cwd=animals), 2)
        assert words in found
        batch = run("search", "--batch", "-", "--folder", folder, cwd=animals, stdin=b"a cat\n")
        assert one_line_error(batch, 2) == found
        assert batch.stdout == b""


def test_a_folder_that_occurs_limits_the_search(animals: Path) -> None:
    for folder in ("things", "things/", "./things", animals / "things", f"file://{animals}/things", "empty/../things"):
        assert names(run("search", "a cat", "--json", "--folder", folder, cwd=animals)) == ["coffee.jpg"]
    spaces = f"file://localhost{animals}/animals%20of%20Kenya"
    assert set(names(run("search", "a cat", "--json", "--folder", spaces, cwd=animals))) == {"cat.jpg", "horse.jpg"}


def test_from_python_a_folder_that_does_not_occur_gives_a_note(animals: Path) -> None:
    with pixmatcher.Collection.open(animals) as collection:
        options = pixmatcher.SearchOptions(filter=pixmatcher.Filter(folder="/missing"))
        result = pixmatcher.search(collection, "a cat", options)
    assert result.hits == []
    assert "No image in this collection is in the folder '/missing'" in result.note


# ---- What is an image and what is a text ----


def test_urls_of_files_and_of_data_are_images(animals: Path) -> None:
    photo = animals / "animals of Kenya" / "cat.jpg"
    data = base64.b64encode(photo.read_bytes()).decode()
    wrapped = "\r\n".join(data[start : start + 76] for start in range(0, len(data), 76))
    queries = [
        f"file://{animals}/animals%20of%20Kenya/cat.jpg",
        f"file://localhost{photo}",
        f"FILE:{photo}",
        f"data:image/jpeg;base64,{data}",
        f"data:;base64,{data.rstrip('=')}",
        f"data:image/jpeg;name=cat.jpg;base64,{data.replace('+', '%2B').replace('/', '_')}",
        "data:image/jpeg," + "".join(f"%{byte:02x}" for byte in photo.read_bytes()),
    ]
    for query in queries[:4]:
        assert names(run("search", query, "--json", "-k", "1", cwd=animals)) == ["cat.jpg"]
    lines = [*queries, *(json.dumps({"image": query}) for query in queries)]
    lines.append(json.dumps({"image": f"data:image/jpeg;base64,{wrapped}"}))
    done = run("search", "--batch", "-", "-k", "1", cwd=animals, stdin="\n".join(lines).encode())
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [[Path(hit["uri"]).name for hit in answer["hits"]] for answer in found] == [["cat.jpg"]] * len(lines)
    assert all(answer["hits"][0]["score"] > 0.999 for answer in found)
    assert all(len(answer["query"]) < 200 for answer in found)  # the data is not repeated


def test_the_url_of_a_folder_is_a_source(tmp_path: Path) -> None:
    folder = tmp_path / "my photos"
    folder.mkdir()
    shutil.copy(EXAMPLES / "cat.jpg", folder)
    assert b"1 added" in run("index", f"file://{tmp_path}/my%20photos", cwd=tmp_path).stdout
    assert b"1 unchanged" in run("index", folder, cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("query", "noted"),
    [
        ("what is a .png", False),
        ("a .jpg or a .png", False),
        (".png", False),
        ("photo.png of a cat", False),
        ("AC/DC", False),
        ("black/white cats", False),
        ("data: a chart, blue", False),
        ("file: a tool", False),
        ("a drawing of logo.png", True),
        ("my cat.jpg", True),
    ],
)
def test_a_text_is_not_a_path(animals: Path, query: str, noted: bool) -> None:
    done = run("search", query, "--json", cwd=animals)
    assert done.returncode == 0, done
    answer = json.loads(done.stdout)
    assert answer["query"] == query
    assert answer["space"] == "semantic"
    assert ("There is no file" in answer.get("note", "")) == noted
    assert (b"There is no file" in done.stderr) == noted
    (line,) = run("search", "--batch", "-", cwd=animals, stdin=query.encode()).stdout.splitlines()
    assert json.loads(line)["hits"] == answer["hits"]
    assert json.loads(line).get("note") == answer.get("note")


def test_the_path_of_an_image_may_have_spaces_and_quotes_around_it(animals: Path, tmp_path: Path) -> None:
    queries = ["things/coffee.jpg ", "'things/coffee.jpg'", '"things/coffee.jpg"', "animals of Kenya/cat.jpg"]
    for query in queries:
        answer = json.loads(run("search", query, "--json", "-k", "1", cwd=animals).stdout)
        assert answer["space"] == "visual", query
        assert answer["hits"][0]["score"] > 0.999
    words = ["animals", "of", "Kenya/cat.jpg"]
    assert names(run("search", *words, "--json", "-k", "1", cwd=animals)) == ["cat.jpg"]
    done = run("search", "--batch", "-", "-k", "1", cwd=animals, stdin="\n".join(queries).encode())
    assert [json.loads(line)["space"] for line in done.stdout.splitlines()] == ["visual"] * 4
    home = subprocess.run(
        [sys.executable, "-m", "pixmatcher", "search", "--batch", "-", "-k", "1"],
        cwd=animals,
        input=b"~/things/coffee.jpg",
        env={**os.environ, "HOME": str(animals)},
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert json.loads(home.stdout)["space"] == "visual"


def test_blank_lines_of_a_batch_are_passed_over(animals: Path) -> None:
    texts = ["a cat", "a horse", "a cup of coffee"]
    for content in (
        b"\xef\xbb\xbf\r\na cat\r\n\r\n \t \r\na horse\r\na cup of coffee",
        b"\n\na cat\n\na horse\n   \na cup of coffee\n\n\n",
        "\ufeffa cat\r\n\r\na horse\r\na cup of coffee\r\n".encode("utf-16-le"),
        "\ufeffa cat\n\na horse\na cup of coffee".encode("utf-16-be"),
    ):
        done = run("search", "--batch", "-", cwd=animals, stdin=content)
        assert done.returncode == 0, done
        assert [json.loads(line)["query"] for line in done.stdout.splitlines()] == texts
    empty = run("search", "--batch", "-", cwd=animals, stdin=b"\n \n")
    assert (empty.returncode, empty.stdout) == (0, b"")


# ---- Lists, help and progress ----


@pytest.mark.parametrize("command", [("models", "list"), ("datasets", "list"), ("sources",)])
@pytest.mark.parametrize("columns", [None, 80, 60])
def test_lists_are_wrapped_at_words(tmp_path: Path, command: tuple[str, ...], columns: int | None) -> None:
    def output(width: int | None) -> str:
        environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
        return subprocess.run(
            [sys.executable, "-m", "pixmatcher", *command],
            cwd=tmp_path,
            env=environment | ({} if width is None else {"COLUMNS": str(width)}),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout

    wide, narrow = output(1000), output(columns)
    assert narrow.split() == wide.split()  # no word is broken or cut off
    texts = [line for line in narrow.splitlines() if not line.startswith("    pixmatcher ")]
    assert max(map(len, texts)) <= (columns or 80)
    commands = [line for line in narrow.splitlines() if line not in texts]
    assert commands == [line for line in wide.splitlines() if line.startswith("    pixmatcher ")]
    assert max(map(len, commands), default=0) <= 80
    assert bool(commands) == (command[0] != "models")


def test_help_shows_commands_in_groups_with_examples(tmp_path: Path) -> None:
    shown = run("--help", cwd=tmp_path).stdout.decode()
    for title in ("Index", "Search", "Look after a collection", "Evaluate", "Models and data sets"):
        assert f" {title} " in shown
    assert 'pixmatcher search "a cat looking at you" -c ~/Pictures' in shown
    assert "pixmatcher tune --recall 0.99" in run("tune", "--help", cwd=tmp_path).stdout.decode()


def test_top_is_the_long_form_of_k(photos: Path) -> None:
    assert len(names(run("search", "a cat", "--top", "3", "--json", cwd=photos))) == 3
    assert len(names(run("search", "a cat", "--top", "5000", "--json", cwd=photos))) == 18


def test_progress_in_a_pipe_is_a_line_every_ten_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    lines = _ProgressLines(lambda: now)
    for second in range(31):
        now = second
        lines.show(Progress("Indexing", 100 * second, 10_000, "images"))
    now = 41
    lines.show(Progress("model\x1b[2J.bin", 5_000_000, None, "bytes"))
    now = 51
    lines.show(Progress("model\x1b[2J.bin", 7_000_000, 507_000_000, "bytes"))
    now = 70
    lines.show(Progress("Tuning", 0, 0, "queries"))
    assert capsys.readouterr().err.splitlines() == [
        "Indexing: 1,000 of 10,000 images, 10 %, 2 min left",
        "Indexing: 2,000 of 10,000 images, 20 %, 1 min left",
        "Indexing: 3,000 of 10,000 images, 30 %, 1 min left",
        "model\\x1b[2J.bin: 5.0 MB",
        "model\\x1b[2J.bin: 7.0 MB of 507.0 MB, 1 %, 42 min left",
        "Tuning: 0 of 0 queries",
    ]


def test_index_into_a_pipe_reports_its_progress(animals: Path, tmp_path: Path) -> None:
    """With no time between the lines, as ten seconds are too long for a test."""
    code = (
        "import sys\n"
        "from pixmatcher.cli import _progress, main\n"
        "_progress.SECONDS_BETWEEN_LINES = 0\n"
        f"sys.argv = ['pixmatcher', 'index', {str(animals)!r}, '-c', 'c']\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "Indexing: 3 of 3 images, 100 %" in done.stderr.splitlines()
    assert done.stderr.replace("\n", "").isprintable()


def test_a_bar_shows_percent_and_the_time_left(tmp_path: Path) -> None:
    code = (
        "import time\n"
        "from pixmatcher._progress import Progress\n"
        "from pixmatcher.cli._progress import ProgressBars\n"
        "with ProgressBars() as bars:\n"
        "    for done in range(0, 100, 10):\n"
        "        bars.callback(Progress('Indexing [a]', done, 10_000, 'images'))\n"
        "        time.sleep(0.1)\n"
    )
    main, terminal = pty.openpty()
    try:
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
        subprocess.run([sys.executable, "-c", code], stderr=terminal, timeout=60, check=True, env=environment)
        shown = os.read(main, 1 << 16).decode()
    finally:
        os.close(main)
        os.close(terminal)
    plain = re.sub(r"\x1b\[[0-9?;]*[a-zA-Z]", "", shown)
    assert "Indexing [a]" in plain
    assert re.search(r"0 % +\d+/10,000 +\d+ images/s +\d+:\d\d left", plain), plain
