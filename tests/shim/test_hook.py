"""The shim in a program's way to the driver: nothing is missed, nothing is mistaken, and nobody notices."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.node import Node, wait_until
from support.programs import build

from jupyter_vgpu.native import native_dir

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MIB = 1 << 20
CARD, QUOTA = 8 << 30, 1 << 30
EMULATOR = str(native_dir() / "emulator")


@pytest.fixture
def tenant(node: Node) -> dict[str, Any]:
    return node.tenant("1G", 50)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("built")
    build(directory / "symbols", HERE / "symbols.c")
    build(directory / "layers", HERE / "layers.c", "-DPROGRAM")
    build(directory / "layers.so", HERE / "layers.c", "-shared", "-fPIC")
    build(directory / "libcuda.so.1", HERE / "newer.c", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1")
    return directory


def output(process: subprocess.Popen[str]) -> list[str]:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out.splitlines()


def natively(node: Node, tenant: dict[str, Any], *argv: str, **environment: str) -> list[str]:
    """Without slice and shim, on the same emulated GPU."""
    plain = {**os.environ, "VGPU_EMULATED_DIR": tenant["launch"]["environment"]["VGPU_EMULATED_DIR"]}
    plain |= {"LD_LIBRARY_PATH": EMULATOR, **environment}
    return output(subprocess.Popen(argv, env=plain, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE))


@pytest.mark.parametrize("tier", ["guard", "shim"])
def test_every_symbol_comes_back_as_it_does_natively(
    node: Node, tenant: dict[str, Any], built: Path, tier: str
) -> None:
    program = str(built / "symbols")
    native = natively(node, tenant, program)
    if tier == "guard":
        sliced = output(node.spawn(tenant, program))
    else:
        directory = tenant["launch"]["environment"]["VGPU_SLICE_DIR"]
        shim = str(native_dir() / "lib" / "libvgpu.so")
        sliced = natively(node, tenant, program, LD_PRELOAD=shim, VGPU_SLICE_DIR=directory, VGPU_TIER="shim")
    assert len(native) > 7000
    assert sum(not line.endswith(" -") for line in native) > 1000  # the others this driver does not have
    assert [pair for pair in zip(native, sliced, strict=True) if pair[0] != pair[1]] == []


def ways(lines: list[str]) -> dict[str, list[int]]:
    return {line.split()[0]: [int(word) for word in line.split()[1:]] for line in lines}


def test_every_way_to_a_function_leads_to_the_slice(node: Node, tenant: dict[str, Any], built: Path) -> None:
    native, sliced = (
        ways(natively(node, tenant, str(built / "layers"))),
        ways(output(node.spawn(tenant, str(built / "layers")))),
    )
    for way in ("handle", "default", "next", "address", "deep"):
        assert native[way] == [0, CARD], way
        assert sliced[way] == [0, QUOTA], way
    assert native["version"] == sliced["version"] == [-1, 0]  # the driver's functions have no versions
    assert native["malloc"] == sliced["malloc"] == [1]
    assert native["absent"] == sliced["absent"] == [1, 1]


@pytest.mark.parametrize("order", ["before", "behind"])
def test_a_library_that_hooks_the_same_gets_its_calls_and_no_circle(
    node: Node, tenant: dict[str, Any], built: Path, order: str
) -> None:
    hook = str(built / "layers.so")
    program = str(built / "layers")
    if order == "behind":  # the launcher puts the shim first
        seen = ways(output(node.spawn(tenant, program, env={"LD_PRELOAD": hook})))
    else:
        script = f'LD_PRELOAD="{hook}:$LD_PRELOAD" exec {program}'
        seen = ways(output(node.spawn(tenant, "sh", "-c", script)))
    for way in ("handle", "default", "address"):
        assert seen[way] == [0, QUOTA], way
    # natively the program's own look-ups by name in the global scope are what such a library hooks
    native = ways(natively(node, tenant, program, LD_PRELOAD=hook))
    assert native["hooked"][0] > 0
    # it lies between this program and the shim, or behind both: looked for behind the shim, it would not be found first
    assert seen["behind"] == native["behind"] == [1]
    if order == "before":
        assert seen["hooked"] == native["hooked"]


def test_a_library_that_nobody_else_sees_finds_the_driver_that_it_is_linked_with(
    node: Node, tenant: dict[str, Any], tmp_path: Path
) -> None:
    library = build(tmp_path / "local.so", HERE / "local.c", "-shared", "-fPIC", "-L", EMULATOR, "-l:libcuda.so.1")
    code = f"""
import ctypes, os
library = ctypes.CDLL({str(library)!r}, mode=os.RTLD_LOCAL)
library.find.restype = ctypes.c_void_p
assert not library.begin()
print([bool(library.find(name)) for name in (b"cuCtxSetCurrent", b"cuMemGetInfo_v2", b"cuTeleport", b"printf")])
"""
    assert natively(node, tenant, sys.executable, "-c", code) == ["[True, True, False, True]"]
    assert output(node.spawn(tenant, sys.executable, "-c", code)) == ["[True, True, False, True]"]


def test_what_nobody_here_has_heard_of_is_let_through_and_counted(
    node: Node, tenant: dict[str, Any], built: Path
) -> None:
    code = f"""
import ctypes
driver = ctypes.CDLL({str(built / "libcuda.so.1")!r})
assert driver.cuTeleport() == 42
def ask(name, version):
    function = ctypes.c_void_p()
    assert driver.cuGetProcAddress_v2(name, ctypes.byref(function), version, ctypes.c_ulonglong(0), (ctypes.c_int * 1)()) == 0
    return ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)(function.value)
print(ask(b"cuTeleport", 20000)(None, None, None), ask(b"cuMemGetInfo", 20000)(None, None, None))
"""
    assert output(node.spawn(tenant, sys.executable, "-c", code)) == ["42 7"]
    name = 'jupyter_vgpu_unknown_symbols_total{symbol="cuTeleport"}'
    wait_until(lambda: name in node.metrics(), 5, name)
    assert "cuMemGetInfo_v7" not in node.metrics()


def test_a_header_with_a_symbol_that_is_not_in_the_table_fails_the_build(tmp_path: Path) -> None:
    (tmp_path / "cuda.h").write_text(
        "typedef int CUresult;\nCUresult cuInit(unsigned f);\nCUresult cuTeleport(void);\n"
    )
    (tmp_path / "cudaTypedefs.h").write_text(
        "typedef CUresult (*PFN_cuInit_v2000)(unsigned);\ntypedef CUresult (*PFN_cuTeleport_v20000)(void);\n"
    )
    build_dir = tmp_path / "build"
    configure = ["cmake", "-S", str(ROOT / "shim"), "-B", str(build_dir), f"-DVGPU_CUDA_INCLUDE={tmp_path}"]
    subprocess.run(configure, check=True, capture_output=True)
    made = subprocess.run(["cmake", "--build", str(build_dir), "--target", "vgpu"], capture_output=True, text=True)
    assert made.returncode != 0
    assert "cuda_symbols.def lacks S(cuTeleport, cuTeleport, 20000, ANY, ?)" in made.stdout + made.stderr
