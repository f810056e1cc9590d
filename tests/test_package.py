"""The package as a whole: what it exports, what importing it costs, what the README promises."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import pixmatcher

ROOT = Path(__file__).parents[1]


def loaded_modules(code: str) -> set[str]:
    """The top-level modules that are loaded after `code` has run in a fresh process."""
    listing = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return set(listing.stdout.split())


def test_every_exported_name_exists() -> None:
    for name in pixmatcher.__all__:
        assert getattr(pixmatcher, name) is not None
    assert set(pixmatcher.__all__) <= set(dir(pixmatcher))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pixmatcher.nothing


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = {"numpy", "onnxruntime", "faiss", "tokenizers", "PIL", "httpx", "rich", "typer", "sqlite3"}
    assert not heavy & loaded_modules("import pixmatcher")
    assert not (heavy - {"typer"}) & loaded_modules("import pixmatcher.cli")


def test_a_text_query_loads_only_what_it_needs(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    shutil.copy(ROOT / "examples" / "photos" / "cat.jpg", photos)
    pixmatcher.index(photos)
    code = f"from pixmatcher import Collection, search\nsearch(Collection.open({str(photos)!r}), 'a cat')"
    assert not {"PIL", "httpx", "rich", "typer"} & loaded_modules(code)


@pytest.mark.parametrize(
    ("arguments", "unneeded"),
    [
        (["--version"], {"numpy", "sqlite3", "rich"}),
        (["--help"], {"numpy", "sqlite3"}),
        (["sources"], {"numpy", "sqlite3", "rich"}),
        (["info"], {"onnxruntime", "faiss", "tokenizers", "rich"}),
        (["search", "a cat"], {"rich"}),
        (["search", "cat.jpg"], {"rich", "tokenizers"}),
    ],
)
def test_a_command_loads_only_what_it_needs(tmp_path: Path, arguments: list[str], unneeded: set[str]) -> None:
    shutil.copy(ROOT / "examples" / "photos" / "cat.jpg", tmp_path)
    pixmatcher.index(tmp_path)
    code = (
        f"import os\nfrom pixmatcher.cli import main\nos.chdir({str(tmp_path)!r})\nsys.argv = {['', *arguments]!r}\n"
        "out, sys.stdout = sys.stdout, open(os.devnull, 'w')\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\nsys.stdout = out"
    )
    loaded = loaded_modules(code)
    assert not loaded & (unneeded | {"httpx", "sklearn", "matplotlib", "plotly", "streamlit", "torch", "onnx", "ftfy"})
    assert ("PIL" in loaded) == (arguments == ["search", "cat.jpg"])


def test_the_package_for_patterns_is_loaded_only_where_there_are_some(tmp_path: Path) -> None:
    shutil.copy(ROOT / "examples" / "photos" / "cat.jpg", tmp_path)
    code = f"from pixmatcher.sources.folder import FolderSource\nassert list(FolderSource({str(tmp_path)!r}).scan())"
    assert "pathspec" not in loaded_modules(code)
    (tmp_path / ".pixmatcherignore").write_text("*.png\n")
    assert "pathspec" in loaded_modules(code)


def test_the_module_of_each_command_registers_it() -> None:
    from pixmatcher.cli import _MODULES, complete_app

    named = [command for commands in _MODULES.values() for command in commands]
    registered = typer.main.get_command(complete_app()).commands  # type: ignore[attr-defined]
    assert sorted(named) == sorted(registered)
    for command in named:
        done = subprocess.run(
            [sys.executable, "-m", "pixmatcher", command, "--help"], capture_output=True, text=True, timeout=60
        )
        assert f"pixmatcher {command}" in done.stdout, done.stderr


def test_no_telemetry_is_collected(tmp_path: Path) -> None:
    """ONNX Runtime's telemetry keeps what it will send in the user's cache folder; continuous integration has none."""
    home = tmp_path / "home"
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH", "LANG")}
    code = "from pixmatcher import load_encoder\nload_encoder().encode_texts(['a cat'])"
    subprocess.run([sys.executable, "-c", code], env={**kept, "HOME": str(home)}, timeout=60, check=True)
    assert not [path for path in home.rglob("*") if path.is_file()]


def test_the_example_of_the_readme_runs(tmp_path: Path) -> None:
    """The README's five lines, run where a folder `photos` is."""
    readme = (ROOT / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 5
    shutil.copytree(ROOT / "examples" / "photos", tmp_path / "photos", ignore=shutil.ignore_patterns(".pixmatcher"))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    assert "cat.jpg" in done.stdout


def test_versions_agree() -> None:
    (version,) = re.findall(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert pixmatcher.__version__ == version
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_files_do_not_name_the_machine_that_built_them() -> None:
    """No file names the machine or the registry that was used to build it."""
    pattern = re.compile("|".join(["/" + "root/", "/" + "tmp/", "pypi" + r"\.org", "files." + "pythonhosted"]))
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    for name in listed:
        path = ROOT / name
        if path.suffix in (".py", ".md", ".toml", ".txt", ".json") and path.is_file():
            assert not pattern.search(path.read_text()), name
