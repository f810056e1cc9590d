"""Indexing on a Ray cluster: the same collection as on one machine, also when nodes and worker processes die."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

import pixmatcher
from file_server import File, serve_files
from milvus_server import MilvusServer
from pixmatcher import ClusterError, Collection, SourceError, index
from pixmatcher.collection import ReadableStore, open_named_store
from pixmatcher.indexing._ray._pool import Share, count_shares, share_with_gpu
from pixmatcher.indexing._ray._portions import Portions, divided, next_size
from pixmatcher.sources import Entry
from ray_nodes import RayCluster, cluster
from support import TinyEncoder, cli, paint, paint_many
from test_webdataset import picture, sample, write

# ---- Without a cluster ----


@pytest.mark.parametrize("place", ["slurm", "ray://", "ray://host", "http://host:10001", ""])
def test_a_place_that_is_none_is_refused(place: str, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"is no place to encode images: use 'ray', or 'ray://HOST:PORT'"):
        index(tmp_path, on=place)


def test_without_ray_the_message_says_how_to_install_it(tmp_path: Path) -> None:
    code = (
        "import importlib.machinery as m, sys\n"
        "find = m.PathFinder.find_spec\n"
        "m.PathFinder.find_spec = lambda name, *rest: None if name == 'ray' else find(name, *rest)\n"
        "from pixmatcher.cli import main\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "index", tmp_path, "--on", "ray"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr == "Error: Ray is not installed: run `pip install 'pixmatcher[ray]'`.\n"


def test_an_address_where_nothing_answers(tmp_path: Path) -> None:
    paint(tmp_path / "a.png", 1)
    done = cli("index", tmp_path, "--on", "ray://127.0.0.1:1")
    assert done.returncode == 2
    assert re.fullmatch(
        r"Error: No Ray cluster answers at ray://127\.0\.0\.1:1 \(.+\): correct the address, or start the cluster\.\n",
        done.stderr,
    )
    assert not (tmp_path / ".pixmatcher").exists()
    done = cli("index", tmp_path, "--on", "ray", env={**os.environ, "RAY_ADDRESS": "127.0.0.1:1"})
    assert done.returncode == 2
    assert done.stderr.startswith("Error: No Ray cluster answers at 127.0.0.1:1 ")


def test_no_cluster_is_needed_if_nothing_is_new(tiny: TinyEncoder, tmp_path: Path) -> None:
    paint_many(tmp_path, 3)
    assert index(tmp_path, encoders=["tiny"]).added == 3
    assert index(tmp_path, on="ray://127.0.0.1:1").unchanged == 3


def test_what_stays_in_this_process_is_refused(tiny: TinyEncoder, tmp_path: Path) -> None:
    paint_many(tmp_path / "photos", 3)
    with pytest.raises(ClusterError, match="The encoder object tiny stays in this process"):
        index(tmp_path / "photos", encoders=[tiny], on="ray")
    assert not (tmp_path / "photos" / ".pixmatcher").exists()
    index(tmp_path / "photos", encoders=["tiny"])
    with Collection.open(tmp_path / "photos") as opened:
        pixmatcher.export_arrays(opened, tmp_path / "saved")
    saved = tmp_path / "saved" / "embeddings.npy"
    with pytest.raises(SourceError, match="holds saved embeddings, which need no cluster: leave out --on"):
        index(f"arrays:{saved}", tmp_path / "c", on="ray")
    assert not (tmp_path / "c").exists()


def test_a_shard_is_encoded_where_the_command_runs(tmp_path: Path) -> None:
    done = cli("index", tmp_path, "--shard", "1/2", "--to", tmp_path / "shards", "--on", "ray")
    assert done.returncode == 2
    assert done.stderr.endswith("leave out --on or --shard.\n")


def entries(count: int) -> list[Entry]:
    return [Entry(f"{number}.png", "1") for number in range(count)]


def test_portions_have_every_entry_once_and_are_smaller_at_the_end() -> None:
    portions = Portions(iter(entries(1000)))
    sizes, uris = [], []
    while portions:
        portion = portions.take(100, 2)
        sizes.append(len(portion.entries))
        uris += [entry.uri for entry in portion.entries]
    assert uris == [entry.uri for entry in entries(1000)]
    assert sizes[:3] == [100, 100, 100]
    assert sizes[-1] == 1
    assert sizes == sorted(sizes, reverse=True)
    assert not Portions([])


def test_a_portion_that_is_given_back_comes_next() -> None:
    portions = Portions(entries(3))
    first = portions.take(2, 1)
    portions.give_again(divided(first))
    uris = []
    while portions:
        uris += [[entry.uri for entry in portions.take(2, 1).entries]]
    assert uris == [["0.png"], ["1.png"], ["2.png"]]


def test_the_size_of_portions_follows_the_speed() -> None:
    assert next_size(8, 1.0, 8) == 8
    assert next_size(80, 1.0, 8) == 80
    assert next_size(80, 4.0, 8) == 16
    assert next_size(80, 0.01, 8) == 320
    assert next_size(8, 100.0, 8) == 8
    assert next_size(1000, 0.1, 8) == 1024


def test_the_share_of_a_worker_process() -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0}},
        {"Alive": True, "Resources": {"CPU": 3.0, "GPU": 1.0}},
        {"Alive": True, "Resources": {"memory": 1.0}},
        {"Alive": False, "Resources": {"CPU": 16.0, "GPU": 8.0}},
    ]
    assert share_with_gpu(nodes) == Share(3, 1)
    assert count_shares(nodes, Share(3, 1)) == 3
    assert count_shares(nodes, Share(1, 0)) == 11
    assert share_with_gpu(nodes[2:]) is None


# ---- On a cluster ----


def on_cluster(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that uses the cluster; all of these run in one process."""
    return pytest.mark.slow(pytest.mark.xdist_group("ray")(test))


PLUGIN = '''
import os, time

import numpy as np

from pixmatcher.errors import EncoderError
from support import TinyEncoder


class Slow(TinyEncoder):
    """Takes 0.1 s for an image, and ends its process at an image that is red everywhere."""

    name = "slow"
    fingerprint = "slow-1"

    def encode_images(self, pixels):
        time.sleep(0.1 * len(pixels))
        if (pixels.reshape(len(pixels), -1, 3) == (255, 0, 0)).all(axis=(1, 2)).any():
            os._exit(1)
        return super().encode_images(pixels)


class OnGpu(TinyEncoder):
    """Needs the GPU that Ray gives to a process."""

    name = "on-gpu"
    fingerprint = "on-gpu-1"
    device = "cuda"

    def load_images(self):
        if os.environ.get("CUDA_VISIBLE_DEVICES") != "0":
            raise EncoderError("no GPU was given")
'''
"""A package with encoders, as all nodes must have it."""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of processes in which the package is installed."""
    site = tmp_path_factory.mktemp("site")
    (site / "ray_test_encoders.py").write_text(PLUGIN)
    (site / "ray_test_encoders-1.dist-info").mkdir()
    (site / "ray_test_encoders-1.dist-info" / "METADATA").write_text("Name: ray-test-encoders\nVersion: 1\n")
    (site / "ray_test_encoders-1.dist-info" / "entry_points.txt").write_text(
        "[pixmatcher.encoders]\nslow = ray_test_encoders:Slow\non-gpu = ray_test_encoders:OnGpu\n"
    )
    places = [site, Path(__file__).parent, Path(pixmatcher.__file__).parents[1]]
    return {"PYTHONPATH": os.pathsep.join(map(str, places))}


@pytest.fixture(scope="module")
def ray_cluster(plugin: dict[str, str]) -> Iterator[RayCluster]:
    pytest.importorskip("ray")
    folder = Path(tempfile.mkdtemp(prefix="pm-ray-"))
    try:
        with cluster(folder / "r", plugin) as made:
            yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def two_nodes(ray_cluster: RayCluster) -> RayCluster:
    """The cluster with two nodes of one processor each."""
    while len(ray_cluster.nodes) < 2:
        ray_cluster.add()
    return ray_cluster


@pytest.fixture
def no_node(ray_cluster: RayCluster) -> Iterator[RayCluster]:
    """The cluster with its head alone, before and after the test."""
    for node in [*ray_cluster.nodes]:
        ray_cluster.kill(node)
    yield ray_cluster
    for node in [*ray_cluster.nodes]:
        ray_cluster.kill(node)


def contents(collection: Path) -> tuple[dict[str, object], list[object]]:
    """All that a collection has of each uri, with the bits of its embeddings, and its failures."""
    with Collection.open(collection) as opened:
        items = list(opened.items())
        ids = [item.id for item in items]
        embeddings = [opened.embeddings(ids, space) for space in sorted(opened.spaces)]
        found: dict[str, object] = {}
        for row, item in enumerate(items):
            values = {name: value for name, value in vars(item).items() if name not in ("id", "added")}
            found[item.uri] = (
                str(sorted(values.items(), key=str)),
                opened.thumbnail(item.content_hash),
                *(of_space[row].tobytes() for of_space in embeddings),
            )
        assert len(found) == len(items)
        return found, sorted(map(str, opened.failures()))


def counts(output: str) -> list[str]:
    """The lines of a report, without paths, the time and the command to try again."""
    lines = [line for line in output.splitlines() if " images in " not in line]
    return [line.partition(" To try: ")[0] for line in lines]


def run_on(made: RayCluster, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Index on the cluster, from its head."""
    return subprocess.run(
        made.index_command(*arguments), capture_output=True, text=True, env=made.environment, timeout=500
    )


def run_both(
    made: RayCluster, *arguments: str | Path, here: Path, there: Path
) -> tuple[subprocess.CompletedProcess[str], subprocess.CompletedProcess[str]]:
    """Index in one process and on the cluster."""
    local = cli("index", *arguments, "-c", here, env=made.environment, timeout=300)
    remote = run_on(made, *arguments, "-c", there)
    assert local.returncode in (0, 1), local.stderr
    assert remote.returncode == local.returncode, remote.stderr
    return local, remote


@on_cluster
def test_the_collection_is_that_of_one_machine(two_nodes: RayCluster, tmp_path: Path) -> None:
    photos, here, there = tmp_path / "photos", tmp_path / "here", tmp_path / "there"
    for label in ("cats", "dogs"):
        paint_many(photos / label, 14, first=100 * (label == "dogs"))
    shutil.copy(photos / "cats" / "00000.png", photos / "dogs" / "copy.png")
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff not an image")
    large = BytesIO()
    Image.effect_noise((300, 300), 90).save(large, "JPEG")
    (photos / "cut.jpg").write_bytes(large.getvalue()[:-2000])
    shards = write(tmp_path / "shard.tar", [file for seed in range(6) for file in sample(f"{seed:03}", seed + 500)])
    files = {f"/{seed}.jpg": File(picture(seed + 800), type="image/jpeg") for seed in range(6)}
    with serve_files(host=two_nodes.network.outside) as server:
        server.files |= files
        urls = tmp_path / "urls.txt"
        urls.write_text("".join(f"{server.url}/{seed}.jpg\n" for seed in range(7)))
        sources = (photos, f"webdataset:{shards}", f"urls:{urls}", "--allow-private-hosts")
        local, remote = run_both(two_nodes, *sources, here=here, there=there)
    assert counts(remote.stdout) == counts(local.stdout)
    assert contents(there) == contents(here)
    assert len(contents(there)[0]) == 29 + 1 + 6 + 6
    # Touched, moved, copied, changed and deleted files.
    for number, path in enumerate(sorted(photos.glob("cats/*.png"))):
        if number < 4:
            os.utime(path, (1, 1))
        elif number < 8:
            path.rename(photos / f"moved-{number}.png")
        elif number < 10:
            shutil.copy(path, photos / f"copy-{number}.png")
        elif number < 12:
            paint(path, 900 + number)
        else:
            path.unlink()
    local, remote = run_both(two_nodes, photos, here=here, there=there)
    assert counts(remote.stdout) == counts(local.stdout)
    assert "4 moved" in remote.stdout
    assert contents(there) == contents(here)


@on_cluster
def test_an_upgrade_is_that_of_one_machine(two_nodes: RayCluster, tmp_path: Path) -> None:
    photos, here, there = tmp_path / "photos", tmp_path / "here", tmp_path / "there"
    paths = paint_many(photos, 24)
    shutil.copy(paths[0], photos / "copy.png")
    shards = write(tmp_path / "shard.tar", [file for seed in range(6) for file in sample(f"{seed:03}", seed + 500)])
    index([photos, f"webdataset:{shards}"], here)
    paint(paths[3], 900)  # changed since
    shutil.copytree(here, there)
    local = cli("upgrade", "-c", here, "--encoder", "slow", env=two_nodes.environment, timeout=300)
    assert local.returncode == 0, local.stderr
    command = two_nodes.command("upgrade", "-c", there, "--encoder", "slow")
    remote = subprocess.run(command, capture_output=True, text=True, env=two_nodes.environment, timeout=300)
    assert remote.returncode == 0, remote.stderr
    assert counts(remote.stdout) == counts(local.stdout)
    assert contents(there) == contents(here)


@on_cluster
def test_a_collection_on_a_milvus_server(two_nodes: RayCluster, tmp_path: Path) -> None:
    pytest.importorskip("pymilvus")
    photos, here = tmp_path / "photos", tmp_path / "here"
    paint_many(photos, 40)
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff not an image")
    with MilvusServer(tmp_path, two_nodes.network.outside) as server:
        there = f"milvus://{server.address}/photos"
        _, remote = run_both(two_nodes, photos, here=here, there=there)
        assert "40 added" in remote.stdout
        paint(photos / "00000.png", 900)
        (photos / "00001.png").unlink()
        (photos / "00002.png").rename(photos / "moved.png")
        local, remote = run_both(two_nodes, photos, here=here, there=there)
        assert counts(remote.stdout)[0] == counts(local.stdout)[0]
        with open_named_store(there) as found, Collection.open(here) as expected:
            assert embeddings_by_uri(found) == embeddings_by_uri(expected)
            assert found.verify() == []


def embeddings_by_uri(collection: ReadableStore) -> dict[str, bytes]:
    items = list(collection.items())
    rows = collection.embeddings([item.id for item in items], next(iter(collection.spaces)))
    return {item.uri: row.tobytes() for item, row in zip(items, rows, strict=True)}


@on_cluster
def test_nodes_that_die_lose_nothing(two_nodes: RayCluster, tmp_path: Path) -> None:
    photos, here, there = tmp_path / "photos", tmp_path / "here", tmp_path / "there"
    paint_many(photos, 300)
    assert cli("index", photos, "-c", here, "--encoder", "slow", env=two_nodes.environment).returncode == 0
    with subprocess.Popen(
        two_nodes.index_command(photos, "-c", there, "--encoder", "slow"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=two_nodes.environment,
    ) as process:
        for stored in (8, 60, 120):
            wait_until_stored(there, stored, process)
            node = next(node for node in two_nodes.nodes if node.workers())
            if stored == 60:
                for pid in node.workers():
                    os.kill(pid, signal.SIGKILL)
            else:
                two_nodes.kill(node)
                two_nodes.add()
        output, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    assert "300 added" in output
    assert contents(there) == contents(here)


def wait_until_stored(collection: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Wait until a collection that is being made has this many items."""
    while process.poll() is None:
        if Collection.locate(collection) is not None:
            with Collection.open(collection) as opened:
                if len(opened) >= count:
                    return
        time.sleep(0.1)
    raise AssertionError(process.communicate())


@on_cluster
def test_an_image_that_ends_its_process_is_a_failure(two_nodes: RayCluster, tmp_path: Path) -> None:
    paint_many(tmp_path / "photos", 30)
    Image.new("RGB", (40, 30), (255, 0, 0)).save(tmp_path / "photos" / "00015-red.png")
    done = run_on(two_nodes, tmp_path / "photos", "-c", tmp_path / "c", "--encoder", "slow")
    assert done.returncode == 1, done.stderr
    assert "30 added" in done.stdout
    with Collection.open(tmp_path / "c") as opened:
        (failure,) = opened.failures()
    assert failure.uri.endswith("00015-red.png")
    assert failure.reason == "unexpected error"
    assert failure.detail.startswith("3 worker processes ended while they encoded it: ")


@on_cluster
def test_an_interrupted_run_keeps_what_is_encoded_and_ends_its_processes(two_nodes: RayCluster, tmp_path: Path) -> None:
    paint_many(tmp_path / "photos", 200)
    arguments = ["index", str(tmp_path / "photos"), "-c", str(tmp_path / "c"), "--encoder", "slow", "--on"]
    with subprocess.Popen(
        [sys.executable, "-m", "pixmatcher", *arguments, two_nodes.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=two_nodes.environment,
    ) as process:
        wait_until_stored(tmp_path / "c", 8, process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert errors.endswith("Error: stopped. What is done is kept: run the same command again to continue.\n")
    while any(node.workers() for node in two_nodes.nodes):
        time.sleep(0.1)
    with Collection.open(tmp_path / "c") as opened:
        assert 8 <= len(opened) < 200
    done = run_on(two_nodes, tmp_path / "photos", "-c", tmp_path / "c")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("200 images in ")


@on_cluster
def test_nodes_that_cannot_do_the_work_are_named(no_node: RayCluster, tmp_path: Path) -> None:
    photos, unlike, bare = tmp_path / "photos", tmp_path / "unlike", tmp_path / "bare"
    paint_many(photos, 3)
    unlike.mkdir()
    (unlike / "sitecustomize.py").write_text("import pixmatcher._version as v\nv.__version__ = '0.0.9'\n")
    bare.mkdir()
    (bare / "sitecustomize.py").write_text(
        "import importlib.machinery as m\nfind = m.PathFinder.find_spec\n"
        "m.PathFinder.find_spec = lambda name, *rest: None if name == 'pixmatcher' else find(name, *rest)\n"
    )

    def failing() -> str:
        done = run_on(no_node, photos, "-c", tmp_path / "c")
        assert done.returncode == 2, done
        (line,) = [line for line in done.stderr.splitlines() if not line.startswith("Indexing: 0 of ")]
        return line

    path = no_node.environment["PYTHONPATH"]
    node = no_node.add(environment={"PYTHONPATH": f"{unlike}{os.pathsep}{path}"})
    assert failing() == (
        f"Error: The node {node.address} has PixMatcher 0.0.9, not {pixmatcher.__version__}: install the same version "
        "on all nodes."
    )
    no_node.kill(node)
    node = no_node.add(environment={"PYTHONPATH": f"{bare}{os.pathsep}{path}"})
    assert failing() == (
        f"Error: The node {node.address} of the cluster cannot run PixMatcher (ModuleNotFoundError: No module named "
        "'pixmatcher'): install the same versions of PixMatcher and of Python on all nodes."
    )
    no_node.kill(node)
    assert not (tmp_path / "c").exists()
    if no_node.network.exists:
        index(photos, tmp_path / "c")
        for path_of_photo in photos.iterdir():
            os.utime(path_of_photo, (1, 1))
        node = no_node.add(hide=photos)
        assert re.fullmatch(
            rf"Error: The node {re.escape(node.address)} cannot read {re.escape(str(photos))} \(.+\): sources must be "
            r"at the same path on all nodes\.",
            failing(),
        )
        with Collection.open(tmp_path / "c") as opened:
            assert len(opened) == 3
            assert not opened.failures()


@on_cluster
def test_a_cluster_without_free_processors_is_an_error(no_node: RayCluster, tmp_path: Path) -> None:
    paint_many(tmp_path / "photos", 3)
    code = "from pixmatcher.indexing._ray import _pool\n_pool.WAIT_SECONDS = 3\nfrom pixmatcher.cli import main\nmain()"
    command = no_node.index_command(tmp_path / "photos")
    command[command.index("-m") : command.index("index")] = ["-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=no_node.environment, timeout=200)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "Error: No worker process could start on the Ray cluster for 3 s: `ray status` shows what uses its processors; "
        "run the same command again when some are free."
    )


@on_cluster
def test_an_encoder_that_uses_gpus_gets_one(no_node: RayCluster, tmp_path: Path) -> None:
    paint_many(tmp_path / "photos", 9)
    no_node.add(cpus=2, gpus=1)
    done = run_on(no_node, tmp_path / "photos", "--encoder", "on-gpu")
    assert done.returncode == 0, done.stderr
    assert "9 added" in done.stdout
