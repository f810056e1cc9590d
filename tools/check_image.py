"""Check the image of the service without a container engine: run the steps of `deploy/Dockerfile` in a plain Debian.

    sudo python tools/check_image.py /var/tmp/image [--serve]

It needs root, debootstrap, and a network for Debian's and Python's packages. The base image `python:3-slim` is replaced
by a minimal Debian with its own Python, everything else is what the Dockerfile says: each stage is a copy of that root,
and the RUN lines are run in it. The result is then used as a container would be: read-only, as the user of the image,
without capabilities, with /data and /tmp to write and the example photos in /pictures. It indexes and searches them
there; with `--serve` it starts the command of the image, waits until its HEALTHCHECK passes, and stops it.

What this does not check: the base image itself, layers, and the limits that a container engine sets.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
SUITE = "trixie"
PACKAGES = "ca-certificates,passwd,python3,python3-pip,python3-venv"
FROM_CALLER = ("/etc/resolv.conf", "/etc/ssl/certs/ca-certificates.crt")
"""Files that a build takes from the machine that runs it, so that it reaches the package registries as that does."""


@dataclass
class Stage:
    """A stage of the Dockerfile, and what is known of its image so far."""

    name: str
    root: Path
    environment: dict[str, str] = field(
        default_factory=lambda: {"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    )
    folder: str = "/"
    user: str = "0:0"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile in their order: name and arguments."""
    lines = [line for line in dockerfile.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [
        (name.upper(), rest.strip()) for name, _, rest in (line.strip().partition(" ") for line in joined.splitlines())
    ]


def run(command: Sequence[str], **options: object) -> None:
    """Run a command, and end with its name if it fails."""
    print("+", shlex.join(command)[:200], flush=True)
    subprocess.run(command, check=True, **options)  # type: ignore[call-overload]


def make_base(root: Path) -> None:
    """Make a minimal Debian with Python, once; pip may install into it, as it may in the base image."""
    if (root / "made").exists():
        return
    shutil.rmtree(root, ignore_errors=True)
    run(["debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, str(root)])
    for marker in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
        marker.unlink()
    (root / "made").touch()


def build(dockerfile: str, work: Path) -> Stage:
    """Run the steps of the Dockerfile and return the last stage."""
    stages: dict[str, Stage] = {}
    stage = Stage("", work)
    for name, rest in instructions(dockerfile):
        if name == "FROM":
            label = rest.split()[-1] if " AS " in rest.upper() else "final"
            stage = stages[label] = Stage(label, work / label)
            shutil.rmtree(stage.root, ignore_errors=True)
            run(["cp", "--archive", "--reflink=auto", str(work / "base"), str(stage.root)])
        elif name == "WORKDIR":
            stage.folder = rest
            (stage.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif name == "ENV":
            for pair in shlex.split(rest.replace("$PATH", stage.environment["PATH"])):
                key, _, value = pair.partition("=")
                stage.environment[key] = value
        elif name == "COPY":
            copy(rest, stage, stages)
        elif name == "RUN":
            run_in(stage, rest)
        elif name == "USER":
            stage.user = rest
        elif name == "HEALTHCHECK":
            stage.health = json.loads(rest[rest.index("CMD") + 3 :])
        elif name == "ENTRYPOINT":
            stage.entrypoint = json.loads(rest)
        elif name == "CMD":
            stage.command = json.loads(rest)
        elif name not in ("EXPOSE", "VOLUME"):
            raise SystemExit(f"This tool does not know the instruction {name}: teach it.")
    return stage


def copy(rest: str, stage: Stage, stages: dict[str, Stage]) -> None:
    """Do what COPY does: the contents of a folder, or files, into a place of the stage."""
    words = rest.split()
    source = CHECKOUT
    if words[0].startswith("--from="):
        source = stages[words.pop(0).removeprefix("--from=")].root
    *origins, place = words
    target = stage.root / os.path.join(stage.folder, place).lstrip("/")
    for origin in origins:
        path = source / origin.lstrip("/")
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
            run(["cp", "--archive", f"{path}/.", str(target)])
        else:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)


def run_in(stage: Stage, command: str) -> None:
    """Run a shell command in a stage as root, with the network of this machine."""
    kept = {}
    for name in FROM_CALLER:
        place = stage.root / name.lstrip("/")
        kept[place] = place.read_bytes() if place.exists() else None
        place.unlink(missing_ok=True)
        shutil.copy(name, place)
    from_caller = {
        key: value for key, value in os.environ.items() if key.lower().endswith("_proxy") or key == "PIP_CERT"
    }
    words = ["chroot", str(stage.root), "/bin/sh", "-ec", f"cd {stage.folder}; {command}"]
    try:
        run(["unshare", "--mount", "--fork", *words], env=stage.environment | from_caller)
    finally:
        for place, before in kept.items():
            place.unlink(missing_ok=True)
            if before is not None:
                place.write_bytes(before)


def contained(stage: Stage, work: Path, command: Sequence[str]) -> list[str]:
    """Return a command line that runs a command as a container would: read-only, unprivileged, its own processes."""
    root, data = stage.root, work / "data"
    uid, _, gid = stage.user.partition(":")
    mounts = [
        f"mount --bind {root} {root}",
        f"mkdir -p {root}/run/secrets",
        f"mount --bind -o ro {shlex.quote(str(CHECKOUT / 'examples' / 'photos'))} {root}/pictures",
        f"mount --bind {data} {root}/data",
        f"mount -t tmpfs tmpfs {root}/tmp",
        f"mount --bind -o ro {work}/secrets {root}/run/secrets",
        f"mount -t proc proc {root}/proc",
        f"mount -o remount,bind,ro {root}",
    ]
    drop = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--bounding-set=-all", "--no-new-privs"]
    inner = [*drop, "env", "-i", *(f"{key}={value}" for key, value in stage.environment.items())]
    inner += ["sh", "-c", f'cd {stage.folder} && exec "$@"', "sh", *command]
    script = " && ".join([*mounts, f"exec chroot {root} {shlex.join(inner)}"])
    return ["unshare", "--mount", "--pid", "--fork", "--kill-child=TERM", "sh", "-ec", script]


def output_of(stage: Stage, work: Path, *command: str) -> str:
    """Return what a command prints in the image."""
    print("+ in the image:", shlex.join(command)[:200], flush=True)
    return subprocess.run(contained(stage, work, command), check=True, stdout=subprocess.PIPE, text=True).stdout


def check(stage: Stage, work: Path, *, serve: bool) -> None:
    """Use the image. Raises `AssertionError` if it does not do what it must."""
    (program,) = stage.entrypoint
    uid = int(stage.user.partition(":")[0])
    for name in ("data", "secrets"):
        shutil.rmtree(work / name, ignore_errors=True)
        (work / name).mkdir()
    os.chown(work / "data", uid, uid)
    assert output_of(stage, work, "id", "-u").strip() == str(uid) != "0"
    tried = "for place in / /opt /usr /etc /pictures; do touch $place/new 2>/dev/null && echo $place; done; true"
    assert output_of(stage, work, "sh", "-c", tried) == "", "a place can be written that must not be"
    print(output_of(stage, work, "sh", "-c", "grep Cap /proc/self/status; pixmatcher --version"))
    output_of(stage, work, program, "index", "/pictures", "-c", "/data/photos")
    found = json.loads(output_of(stage, work, program, "search", "a horse", "-c", "/data/photos", "--json"))
    assert found["hits"][0]["uri"] == "/pictures/horse.jpg", found["hits"][0]
    if serve:
        check_service(stage, work)


def check_service(stage: Stage, work: Path) -> None:
    """Start the command of the image, wait until its health check passes, and stop it."""
    token_file = Path(next(each for each in stage.command if each.startswith("/run/secrets/")))
    output_of(stage, work, *stage.entrypoint, "tokens", "add", "check", "--scope", "read", "--file", "/data/tokens")
    shutil.move(work / "data" / "tokens", work / "secrets" / token_file.name)
    service = subprocess.Popen(contained(stage, work, [*stage.entrypoint, *stage.command]))
    try:
        end = time.monotonic() + 120
        while subprocess.run(contained(stage, work, stage.health), stderr=subprocess.DEVNULL).returncode:
            assert service.poll() is None, f"the service has ended with {service.returncode}"
            assert time.monotonic() < end, "the health check does not pass"
            time.sleep(0.5)
        print("The health check passes.")
    finally:
        service.send_signal(signal.SIGTERM)
        service.wait(60)


def megabytes(folder: Path) -> float:
    """Return the size of all files in a folder in MB."""
    return int(subprocess.check_output(["du", "-sxB1", str(folder)]).split()[0]) / 1e6


def main() -> None:
    """Build, check and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="A folder for the roots; about 2 GB.")
    parser.add_argument("--serve", action="store_true", help="Start the service, too.")
    parser.add_argument("--keep", action="store_true", help="Check the image that was built before.")
    arguments = parser.parse_args()
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        raise SystemExit("This needs root and debootstrap: chroot and mounts are not allowed to others.")
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    make_base(work / "base")
    dockerfile = (CHECKOUT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    if arguments.keep:
        kept = [each for each in instructions(dockerfile) if each[0] not in ("RUN", "COPY", "FROM")]
        stage = build("\n".join(" ".join(each) for each in kept), work)
        stage.root = work / "final"
    else:
        stage = build(dockerfile, work)
    check(stage, work, serve=arguments.serve)
    print(f"base {megabytes(work / 'base'):.0f} MB, PixMatcher {megabytes(stage.root / 'opt' / 'pixmatcher'):.0f} MB")


if __name__ == "__main__":
    sys.exit(main())
