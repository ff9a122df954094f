"""A hostile tenant on the emulated GPU: bare driver calls, no CUDA. One JSON line when it is under way.

hostile.py MODE [ARGUMENT]: stall | flood | keep MIB | forge MIB | garbage SECONDS
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import random
import struct
import sys
import threading
import time

LIBC = ctypes.CDLL(None, use_errno=True)
ALLOC, FREE, CONTROL, DUP, HEAP, XFER = 0x2B, 0x29, 0x2A, 0x34, 0x4A, 211
ROOT_CLIENT, DEVICE, MEMORY = 0x41, 0x80, 0x40


def call(fd: int, nr: int, size: int, address: int) -> int:
    request = 3 << 30 | size << 16 | ord("F") << 8 | nr
    return int(LIBC.ioctl(fd, ctypes.c_ulong(request), ctypes.c_void_p(address)))


def alloc(fd: int, root: int, parent: int, handle: int, kind: int, params: bytes = b"") -> tuple[int, int]:
    """(status, handle)"""
    blob = ctypes.create_string_buffer(params, max(len(params), 8))
    where = ctypes.addressof(blob) if params else 0
    args = ctypes.create_string_buffer(
        struct.pack("<IIIIQQIIII", root, parent, handle, kind, where, 0, 0, 0, 0xFFFF, 0), 48
    )
    if call(fd, ALLOC, 48, ctypes.addressof(args)) < 0:
        return 0xFFFFFFFF, 0
    return struct.unpack_from("<I", args, 40)[0], struct.unpack_from("<I", args, 8)[0]


def memory(size: int) -> bytes:
    params = bytearray(128)
    struct.pack_into("<Q", params, 64, size)
    return bytes(params)


def open_client() -> tuple[int, int]:
    fd = os.open(os.path.join(os.environ["VGPU_EMULATED_DIR"], "gpu0"), os.O_RDWR)
    status, root = alloc(fd, 0, 0, 0, ROOT_CLIENT)
    assert status == 0, status
    assert alloc(fd, root, root, 0x100, DEVICE, bytes(56))[0] == 0
    return fd, root


def say(**values: object) -> None:
    print(json.dumps(values), flush=True)


def stall() -> None:
    """Arguments on pages that never come: whoever reads them waits."""
    fd, _ = open_client()
    region = mmap.mmap(-1, 16 * mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(region))
    faults = LIBC.syscall(323, os.O_CLOEXEC | os.O_NONBLOCK)
    if faults < 0:
        say(error=f"userfaultfd: {os.strerror(ctypes.get_errno())}")
        return
    handshake = ctypes.create_string_buffer(struct.pack("<QQQ", 0xAA, 0, 0), 24)
    register = ctypes.create_string_buffer(struct.pack("<QQQQ", address, 16 * mmap.PAGESIZE, 1, 0), 32)
    assert LIBC.ioctl(faults, ctypes.c_ulong(0xC018AA3F), handshake) == 0
    assert LIBC.ioctl(faults, ctypes.c_ulong(0xC020AA00), register) == 0
    for page in range(8):
        threading.Thread(target=call, args=(fd, ALLOC, 48, address + page * mmap.PAGESIZE), daemon=True).start()
    time.sleep(0.3)
    say(stalled=8)
    sys.stdin.readline()
    os._exit(0)


def forge(mib: int) -> None:
    """Memory that no call was made for: here by writing it into the emulated device."""
    fd, root = open_client()
    assert alloc(fd, root, 0x100, 0x200, MEMORY, memory(6 << 20))[0] == 0
    device = mmap.mmap(fd, 0)
    at = device.find(struct.pack("<IIIIQ", root, 0x100, 0x200, MEMORY, 6 << 20))
    assert at > 0
    struct.pack_into("<Q", device, at + 16, mib << 20)
    (used,) = struct.unpack_from("<Q", device, 16)  # of the whole card
    struct.pack_into("<Q", device, 16, used + ((mib - 6) << 20))
    say(forged=mib)
    sys.stdin.readline()


def flood() -> None:
    """Calls that come to nothing, as fast as they go."""
    fd, root = open_client()
    args = ctypes.create_string_buffer(struct.pack("<IIII", root, root, 0xDEAD, 0), 16)
    say(flooding=True)
    for thread in range(4):
        threading.Thread(target=_spin, args=(fd, ctypes.addressof(args)), daemon=True, name=str(thread)).start()
    sys.stdin.readline()
    os._exit(0)


def _spin(fd: int, address: int) -> None:
    while True:
        call(fd, FREE, 16, address)


def keep(size: int) -> None:
    """The maker of a client ends, its child keeps the file."""
    fd, root = open_client()
    assert alloc(fd, root, 0x100, 0x200, MEMORY, memory(size))[0] == 0
    if os.fork():
        os._exit(0)
    say(child=os.getpid())
    sys.stdin.readline()


def garbage(seconds: float) -> None:
    fd, root = open_client()
    chance = random.Random(7)
    buffer = ctypes.create_string_buffer(4096)
    end, calls = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        struct.pack_into(
            "<64I", buffer, 0, *(chance.choice((root, 0, 0x100, chance.getrandbits(32))) for _ in range(64))
        )
        address = chance.choice((ctypes.addressof(buffer), ctypes.addressof(buffer), 0, 4096, 2**47 - 4096))
        size = chance.choice((16, 28, 32, 48, 184, chance.randrange(16384)))
        call(fd, chance.choice((ALLOC, FREE, CONTROL, DUP, HEAP, XFER, 0x41, 217)), size, address)
        calls += 1
    status, _ = alloc(fd, root, root, 0x300, DEVICE, bytes(56))
    if status == 0x23:  # it freed its own client on the way
        fd, root = open_client()
        status = 0
    say(calls=calls, after=status)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["stall"]:
            stall()
        case ["flood"]:
            flood()
        case ["forge", mib]:
            forge(int(mib))
        case ["keep", mib]:
            keep(int(mib) << 20)
        case ["garbage", seconds]:
            garbage(float(seconds))
