"""Hold the shim's tables of the driver's symbols against the vendor's own headers.

python symbols.py DIRECTORY...: each holds cuda.h, nvml.h or both. Says which symbols the tables lack, or know wrongly,
as the lines that would put it right, and exits with 1; a class of `?` is for you to choose (see symbols.h). CC names
the compiler that reads the headers.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
CLASSES = {"PASSES", "ANSWERS", "ACCOUNTS", "LAUNCHES", "REFUSES"}
# What cuda.h's companions include, and few machines have: their types do not matter here.
FOREIGN_HEADERS = ("GL/gl.h", "EGL/egl.h", "EGL/eglext.h", "vdpau/vdpau.h")


@dataclass(frozen=True)
class Symbol:
    """name: what cuGetProcAddress is asked; since: CUDA's version, 0 unknown; stream: ANY, LEGACY or PER_THREAD."""

    symbol: str
    name: str
    since: int
    stream: str

    def line(self, kind: str = "?") -> str:
        return f"S({self.symbol}, {self.name}, {self.since}, {self.stream}, {kind})"


def read_table(path: Path) -> dict[str, tuple[str, str]]:
    """symbol: (its line, its class). Raises ValueError for what is out of order, twice, or of no class."""
    table: dict[str, tuple[str, str]] = {}
    last = ""
    for line in path.read_text().splitlines():
        if not line.startswith("S("):
            continue
        words = [word.strip() for word in line[2:].rstrip(")").split(",")]
        if words[0] <= last:
            raise ValueError(f"{path.name}: {words[0]} is twice in it, or not in order after {last}")
        if words[-1] not in CLASSES:
            raise ValueError(f"{path.name}: {words[0]} has class {words[-1]!r}; there are {', '.join(sorted(CLASSES))}")
        last = words[0]
        table[last] = (line, words[-1])
    return table


def _preprocess(header: Path, stubs: Path, *options: str) -> str:
    command = [os.environ.get("CC", "cc"), "-E", "-P", "-I", str(header.parent), "-I", str(stubs), *options]
    result = subprocess.run([*command, str(header)], capture_output=True, text=True, check=False)
    if result.returncode:
        raise ValueError(f"{' '.join(command)} {header}: {result.stderr.strip()[:500]}")
    return result.stdout


def _stubs() -> tempfile.TemporaryDirectory[str]:
    directory = tempfile.TemporaryDirectory()
    for name in FOREIGN_HEADERS:
        stub = Path(directory.name) / name
        stub.parent.mkdir(exist_ok=True)
        stub.touch()
    return directory


def cuda_symbols(include: Path) -> list[Symbol]:
    """Every symbol that the headers in a directory declare, older forms and per-thread ones too."""
    symbols: set[str] = set()
    with _stubs() as stubs:
        for name in ("cuda.h", "cudaGL.h", "cudaEGL.h", "cudaVDPAU.h"):
            if (include / name).exists():
                text = _preprocess(include / name, Path(stubs), "-D__CUDA_API_VERSION_INTERNAL")
                symbols |= set(re.findall(r"\bCUresult\s+(cu[A-Z]\w+)\s*\(", text))
    # which version of CUDA brought which form is told by the function types: PFN_cuMemcpy_v7000_ptds
    forms: dict[tuple[str, bool], list[int]] = defaultdict(list)
    for header in include.glob("cuda*Typedefs.h"):
        for name, since, per_thread in re.findall(r"\bPFN_(cu\w+?)_v(\d+)(_ptsz|_ptds)?\)", header.read_text()):
            forms[name, bool(per_thread)].append(int(since))
    exported: dict[tuple[str, bool], list[tuple[int, str]]] = defaultdict(list)
    for symbol in symbols:
        name, form, per_thread = re.findall(r"^(cu\w+?)(?:_v(\d+))?(_ptds|_ptsz)?$", symbol)[0]
        exported[name, bool(per_thread)].append((int(form or 1), symbol))
    found = []
    for (name, threads), known in exported.items():
        versions = sorted(set(forms[name, threads]))
        if not versions:  # a header that forgot the type
            versions = [0] * len(known)
        if len(versions) != len(known):
            raise ValueError(f"{include}: {len(known)} forms of {name}, types of {versions}: symbols.py must learn it")
        stream = "PER_THREAD" if threads else "LEGACY" if (name, True) in exported else "ANY"
        found += [Symbol(s, name, since, stream) for (_, s), since in zip(sorted(known), versions, strict=True)]
    return found


def nvml_symbols(include: Path) -> set[str]:
    with _stubs() as stubs:
        text = _preprocess(include / "nvml.h", Path(stubs), "-DNVML_NO_UNVERSIONED_FUNC_DEFS")
    return set(re.findall(r"\b(nvml[A-Z]\w+)\s*\([^)]*\)\s*;", text))


def _missing_cuda(include: Path, table: dict[str, tuple[str, str]]) -> list[str]:
    wrong = []
    for symbol in cuda_symbols(include):
        line, kind = table.get(symbol.symbol, ("", "?"))
        same = symbol.line(kind)
        if line == same or (line and not symbol.since):
            continue
        # per-thread forms may have come later than the header at hand
        if line != same.replace(", ANY,", ", LEGACY,"):
            wrong.append(same)
    return wrong


def main() -> int:
    wrong: list[str] = []
    try:
        cuda, nvml = read_table(HERE / "cuda_symbols.def"), read_table(HERE / "nvml_symbols.def")
        for include in map(Path, sys.argv[1:]):
            if (include / "cuda.h").exists():
                wrong += [f"cuda_symbols.def lacks {line}  [{include}]" for line in _missing_cuda(include, cuda)]
            if (include / "nvml.h").exists():
                unknown = sorted(nvml_symbols(include) - set(nvml))
                wrong += [f"nvml_symbols.def lacks S({symbol}, ?)  [{include}]" for symbol in unknown]
    except ValueError as error:
        wrong.append(str(error))
    sys.stderr.write("".join(f"{line}\n" for line in wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
