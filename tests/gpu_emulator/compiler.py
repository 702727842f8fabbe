"""CUDA C++ text -> shared library, by g++. Libraries are kept in the system's temporary folder."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .errors import CompileException

_CPP = Path(__file__).parent / "cpp"
_FLAGS = ["-std=c++17", "-O1", "-ffp-contract=off", "-fno-gnu-unique", "-fPIC", "-w"]
# What a device answers with wrong numbers or an illegal address; fibers.cpp has the handlers.
_CHECKS = "-fsanitize=alignment,bounds,shift-exponent,integer-divide-by-zero"


class Parameter(ctypes.Structure):
    """As emulator::Parameter in parameters.h."""

    _fields_ = (
        ("kind", ctypes.c_char),
        ("element", ctypes.c_char),
        ("constant", ctypes.c_bool),
        ("size", ctypes.c_long),
        ("element_size", ctypes.c_long),
        ("element_alignment", ctypes.c_long),
        ("type", ctypes.c_char_p),
    )


class Range(ctypes.Structure):
    _fields_ = (("address", ctypes.c_void_p), ("size", ctypes.c_size_t))


@dataclass
class Compiled:
    """A loaded library."""

    library: ctypes.PyDLL
    kernels: dict[str, int]  # expression -> number in the library
    exported: dict[str, int]  # names with C linkage -> size
    shared: list[tuple[str, int, int]]  # owner, address, size of static shared arrays


def compiler() -> str | None:
    return shutil.which("g++")


@functools.cache
def _folder() -> Path:
    """The cache of this compiler and these headers, with the header compiled once."""
    gxx = compiler()
    if gxx is None:
        raise RuntimeError("the GPU emulator needs g++ to run kernels")
    digest = hashlib.sha256(f"{gxx} {os.stat(gxx)} {_FLAGS} {_CHECKS}".encode())
    sources = sorted(_CPP.iterdir())
    for path in (*sources, Path(__file__)):
        digest.update(path.read_bytes())
    name = f"gpu-emulator-{os.getuid()}-{digest.hexdigest()[:16]}"
    folder = Path(tempfile.gettempdir()) / name
    if not folder.exists():
        building = Path(tempfile.mkdtemp(prefix=name))
        for path in sources:
            shutil.copy(path, building)
        header = str(building / "cuda_on_cpu.h")
        _run([gxx, *_FLAGS, _CHECKS, "-x", "c++-header", header, "-o", header + ".gch"])
        runtime = ["-shared", str(building / "fibers.cpp"), "-o", str(building / "libruntime.so")]
        _run([gxx, "-std=c++17", "-O2", "-fPIC", *runtime])
        try:
            building.rename(folder)
        except OSError:  # another process was first
            shutil.rmtree(building)
    if folder.stat().st_uid != os.getuid():
        raise RuntimeError(f"the GPU emulator does not load libraries of another user: {folder}")
    return folder


@functools.cache
def runtime() -> ctypes.PyDLL:
    # PyDLL: kernels hold the interpreter lock, since the runtime runs one launch at a time.
    return ctypes.PyDLL(str(_folder() / "libruntime.so"), mode=ctypes.RTLD_GLOBAL)


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise CompileException(done.stderr, "", "", tuple(command))
    return done.stdout


def without_comments(text: str) -> str:
    """Comments become spaces, lines stay."""
    strings_and_comments = r'"(?:\\.|[^"\\\n])*"|//[^\n]*|/\*.*?\*/'

    def blank(match: re.Match[str]) -> str:
        found = match.group()
        return found if found.startswith('"') else re.sub(r"[^\n]", " ", found)

    return re.sub(strings_and_comments, blank, text, flags=re.DOTALL)


def kernel_names(text: str) -> dict[str, int | None]:
    """Names of the plain kernels in a text -> its launch bound, if that is a number."""
    text = re.sub(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", "", without_comments(text), flags=re.MULTILINE)
    found: dict[str, int | None] = {}
    for match in re.finditer(r"__global__", text):
        before = re.split(r"[;}]", text[: match.start()])[-1]
        after = text[match.end() : match.end() + 2000]
        bound = re.search(r"__launch_bounds__\s*\(((?:[^()]|\([^()]*\))*)\)", after.split("{")[0])
        if bound:
            after = after.replace(bound.group(), " ", 1)
        name = re.match(r"[^({;]*?(\w+)\s*\(", after)
        if name is None or re.search(r"\btemplate\b", before):
            continue
        limit = bound.group(1).split(",")[0].strip() if bound else ""
        # Numbers and their products; what depends on template arguments or macros is not known.
        plain = re.fullmatch(r"[\d\s*+()]+", limit)
        found[name.group(1)] = int(eval(limit)) if plain else None
    return found


def _prepare(text: str) -> str:
    """`extern __shared__ T name[];` becomes a pointer to the memory that a launch gives."""
    pattern = (
        r"extern\s+__shared__\s+((?:(?:alignas|__align__)\s*\([^()]*(?:\([^()]*\))?[^()]*\)\s*)?)"
        r"([\w:<>,\s]+?)\s*\b(\w+)\s*\[\s*\]\s*;"
    )
    return re.sub(
        pattern, r"static \2* const \3 = reinterpret_cast<\2*>(emulator::dynamic_shared);", text
    )


def compile_text(code: str, options: tuple[str, ...], expressions: tuple[str, ...]) -> Compiled:
    """Compiles a text, or loads what was compiled before. `expressions` name its kernels."""
    folder = _folder()
    passed = [o for o in options if re.match(r"-[DUI]", o)]
    key = hashlib.sha256(json.dumps([code, passed, expressions]).encode()).hexdigest()[:24]
    library = folder / f"{key}.so"
    description = folder / f"{key}.json"
    if not description.exists():
        _build(folder, code, options, passed, expressions, library, description)
    facts = json.loads(description.read_text())
    runtime()
    loaded = ctypes.PyDLL(str(library))
    anchor = ctypes.cast(loaded.emulator_anchor, ctypes.c_void_p).value or 0
    base = anchor - facts["anchor"]
    shared = [(owner, base + offset, size) for owner, offset, size in facts["shared"]]
    numbers = {expression: i for i, expression in enumerate(expressions)}
    return Compiled(loaded, numbers, facts["exported"], shared)


def _build(
    folder: Path,
    code: str,
    options: tuple[str, ...],
    passed: list[str],
    expressions: tuple[str, ...],
    library: Path,
    description: Path,
) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as place:
        source, built = Path(place, "kernel.cpp"), Path(place, "kernel.so")
        registrations = "".join(
            f"EMULATOR_KERNEL({i}, {expression})\n" for i, expression in enumerate(expressions)
        )
        source.write_text(
            f'#line 1 "kernel.cu"\n{_prepare(code)}\n#line 1 "registration"\n{registrations}'
            'extern "C" void emulator_anchor() {}\n'
        )
        gxx = compiler() or "g++"
        header = str(folder / "cuda_on_cpu.h")
        compiled = Path(place, "kernel.o")
        try:
            including = [*passed, f"-I{folder}", "-include", header]
            _run([gxx, *_FLAGS, _CHECKS, *including, "-c", str(source), "-o", str(compiled)])
            linking = ["-shared", "-Wl,-Bsymbolic", str(compiled), str(folder / "libruntime.so")]
            _run([gxx, *linking, "-o", str(built)])
        except CompileException as error:
            message = str(error).replace(str(source), "kernel.cu")
            raise CompileException(message, code, str(expressions), options) from None
        facts = _symbols(built)
        written = Path(place, "facts.json")
        written.write_text(json.dumps(facts))
        built.rename(library)
        written.rename(description)


def _symbols(library: Path) -> dict[str, object]:
    """Names with C linkage and the static arrays of functions, which are shared memory."""
    shared: list[tuple[str, int, int]] = []
    exported: dict[str, int] = {}
    anchor = 0
    mangled = _run(["nm", "-S", "--defined-only", str(library)]).splitlines()
    for line in mangled:
        parts = line.split()
        name = parts[-1]
        if name == "emulator_anchor":
            anchor = int(parts[0], 16)
        if not name.startswith("_Z") and parts[-2] in "TBDR":
            exported[name] = int(parts[1], 16) if len(parts) == 4 else 0
        if len(parts) == 4 and parts[2] in "bBuV" and name.startswith("_ZZ"):
            if "8emulator" in name:
                continue
            plain = _run(["c++filt", name]).strip()
            shared.append((plain.rsplit("::", 1)[0], int(parts[0], 16), int(parts[1], 16)))
    return {"anchor": anchor, "exported": exported, "shared": shared}
