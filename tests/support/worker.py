"""A CUDA program that a test steers: one JSON command a line on stdin, one JSON answer a line on stdout."""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time

from cuda.bindings import driver, nvrtc

SPIN = rb"""
extern "C" __global__ void spin(long long ticks) {
    long long start = clock64();
    while (clock64() - start < ticks) ;
}
"""


def check(answer: tuple) -> object:
    if answer[0] != driver.CUresult.CUDA_SUCCESS:
        raise SystemExit(f"{answer[0].name}")
    return answer[1] if len(answer) > 1 else None


def compile_ptx(source: bytes) -> bytes:
    _, program = nvrtc.nvrtcCreateProgram(source, b"kernel.cu", 0, None, None)
    (error,) = nvrtc.nvrtcCompileProgram(program, 1, [b"--gpu-architecture=compute_80"])
    if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise SystemExit(error.name)
    _, size = nvrtc.nvrtcGetPTXSize(program)
    text = b" " * size
    nvrtc.nvrtcGetPTX(program, text)
    return text


def load_spin() -> object:
    module = check(driver.cuModuleLoadData(compile_ptx(SPIN)))
    return check(driver.cuModuleGetFunction(module, b"spin"))


def run_spin(spin: object, milliseconds: int, blocks: int = 1) -> None:
    arguments = ((milliseconds * 1_000_000,), (ctypes.c_longlong,))
    check(driver.cuLaunchKernel(spin, blocks, 1, 1, 1, 1, 1, 0, 0, arguments, 0))
    check(driver.cuCtxSynchronize())


def main() -> None:
    check(driver.cuInit(0))
    device = check(driver.cuDeviceGet(0))
    context = check(driver.cuDevicePrimaryCtxRetain(device))
    check(driver.cuCtxSetCurrent(context))
    blocks: list[int] = []
    spin = None

    def answer(**values: object) -> None:
        print(json.dumps(values), flush=True)

    answer(ready=os.getpid())
    for line in sys.stdin:
        command = json.loads(line)
        match command["op"]:
            case "alloc":
                error, address = driver.cuMemAlloc(command["bytes"])
                if error == driver.CUresult.CUDA_SUCCESS:
                    blocks.append(int(address))
                answer(error=error.name)
            case "managed":
                error, address = driver.cuMemAllocManaged(command["bytes"], 1)
                if error == driver.CUresult.CUDA_SUCCESS:
                    ctypes.memset(int(address), 7, 4096)  # the host may write to it
                    blocks.append(int(address))
                answer(error=error.name)
            case "fill":  # until refused
                error = driver.CUresult.CUDA_SUCCESS
                while error == driver.CUresult.CUDA_SUCCESS:
                    error, address = driver.cuMemAlloc(command["bytes"])
                    if error == driver.CUresult.CUDA_SUCCESS:
                        blocks.append(int(address))
                answer(error=error.name, blocks=len(blocks))
            case "churn":  # allocate and free for a while: every call has to succeed
                end, rounds, worst = time.monotonic() + command["seconds"], 0, 0.0
                while time.monotonic() < end:
                    began = time.monotonic()
                    address = check(driver.cuMemAlloc(4 << 20))
                    check(driver.cuMemFree(address))
                    worst = max(worst, time.monotonic() - began)
                    rounds += 1
                answer(rounds=rounds, worst=worst)
            case "free":
                for address in blocks:
                    check(driver.cuMemFree(address))
                blocks.clear()
                answer(error="CUDA_SUCCESS")
            case "info":
                free, total = check_pair(driver.cuMemGetInfo())
                answer(free=free, total=total, device_total=check(driver.cuDeviceTotalMem(device)))
            case "spin":  # how many 5 ms kernels are done in so many seconds
                spin = spin or load_spin()
                done, end = 0, time.monotonic() + command["seconds"]
                while time.monotonic() < end:
                    run_spin(spin, 5)
                    done += 1
                answer(done=done)
            case "evade":  # 10 ms kernels, each in a way that a pace may lose sight of
                spin = spin or load_spin()
                done, end = 0, time.monotonic() + command["seconds"]
                arguments = ((10_000_000,), (ctypes.c_longlong,))
                while time.monotonic() < end:
                    if command["how"] == "release":
                        check(driver.cuDevicePrimaryCtxRetain(device))
                        run_spin(spin, 10)
                        check(driver.cuDevicePrimaryCtxRelease(device))
                    else:
                        stream = check(driver.cuStreamCreate(0))
                        check(driver.cuLaunchKernel(spin, 1, 1, 1, 1, 1, 1, 0, stream, arguments, 0))
                        if command["how"] == "wait":
                            check(driver.cuStreamSynchronize(stream))
                        check(driver.cuStreamDestroy(stream))
                    done += 1
                check(driver.cuCtxSynchronize())
                answer(done=done, seconds=time.monotonic() - end + command["seconds"])
            case "queue":  # many at once, then waits for all
                spin = spin or load_spin()
                stream = check(driver.cuStreamCreate(0)) if command["stream"] == "own" else 0
                began = time.monotonic()
                arguments = ((command["milliseconds"] * 1_000_000,), (ctypes.c_longlong,))
                for _ in range(command["count"]):
                    check(driver.cuLaunchKernel(spin, 1, 1, 1, 1, 1, 1, 0, stream, arguments, 0))
                check(driver.cuStreamSynchronize(stream))
                answer(seconds=time.monotonic() - began)
            case "reset":  # the context goes, the process stays
                check(driver.cuDevicePrimaryCtxReset(device))
                spin = None
                answer(error="CUDA_SUCCESS")
            case "kernel":  # a single one
                spin = spin or load_spin()
                run_spin(spin, command["milliseconds"], command.get("blocks", 1))
                answer(error="CUDA_SUCCESS")


def check_pair(answer: tuple) -> tuple[int, int]:
    if answer[0] != driver.CUresult.CUDA_SUCCESS:
        raise SystemExit(answer[0].name)
    return int(answer[1]), int(answer[2])


if __name__ == "__main__":
    main()
