"""Run a Python script with ONNX Runtime as on a processor without AVX-512 and VNNI, on one that has them.

    python benchmarks/without_vnni.py benchmarks/processors.py --rounds 15

ONNX Runtime asks the processor what it can do, and has no option to hide it. In a copy of the package, each instruction
CPUID is replaced by one that every processor refuses, of the same length; a handler of that signal answers instead, and
leaves out AVX-512, VNNI and AMX. Only the copy is changed. What PixMatcher's own code uses is not affected. Needs x86
Linux, gcc and objdump.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

CPUID, REFUSED = b"\x0f\xa2", b"\x0f\x0b"

HANDLER = """
#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

static void answer(int number, siginfo_t *info, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned leaf = registers[REG_RAX], part = registers[REG_RCX];
    unsigned a, b, c, d;
    if (memcmp((const void *)registers[REG_RIP], "\\x0f\\x0b", 2)) abort();
    __cpuid_count(leaf, part, a, b, c, d);
    if (leaf == 7 && part == 0) {
        b &= ~(1u << 16 | 1u << 17 | 1u << 21 | 1u << 28 | 1u << 30 | 1u << 31);
        c &= ~(1u << 1 | 1u << 6 | 1u << 11 | 1u << 12 | 1u << 14);
        d &= ~(1u << 2 | 1u << 3 | 1u << 8 | 1u << 22 | 1u << 23 | 1u << 24 | 1u << 25);
    }
    if (leaf == 7 && part == 1) a &= ~(1u << 4 | 1u << 5);
    registers[REG_RAX] = a, registers[REG_RBX] = b, registers[REG_RCX] = c, registers[REG_RDX] = d;
    registers[REG_RIP] += 2;
}

__attribute__((constructor)) static void install(void) {
    struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO};
    sigaction(SIGILL, &action, NULL);
}
"""


def hide(library: Path) -> None:
    """Replace each CPUID in a library."""
    sections = subprocess.run(["objdump", "-h", library], capture_output=True, text=True, check=True).stdout
    text = re.search(r"\.text\s+\w+\s+(\w+)\s+\w+\s+(\w+)", sections)
    assert text is not None, f"{library} has no code"
    shift = int(text[2], 16) - int(text[1], 16)
    content = bytearray(library.read_bytes())
    command = ["objdump", "-d", "--no-show-raw-insn", "-j", ".text", library]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            if "\tcpuid" in line:
                place = int(line.split(":")[0], 16) + shift
                assert content[place : place + 2] == CPUID
                content[place : place + 2] = REFUSED
    library.write_bytes(content)


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    found = find_spec("onnxruntime")
    if found is None or found.origin is None:
        sys.exit("onnxruntime is not installed.")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "onnxruntime")
        shutil.copytree(Path(found.origin).parent, copy)
        for library in (copy / "capi").glob("onnxruntime_pybind11_state*.so"):
            hide(library)
        source, handler = Path(folder, "handler.c"), Path(folder, "handler.so")
        source.write_text(HANDLER)
        subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", handler, source], check=True)
        path = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"LD_PRELOAD": str(handler), "PYTHONPATH": path}
        sys.exit(subprocess.run([sys.executable, *sys.argv[1:]], env=environment).returncode)


if __name__ == "__main__":
    main()
