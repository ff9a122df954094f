"""`jupyter vgpu node`: the daemon's process."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import logging
import os
import resource
import signal
import socket
import ssl
import time
from pathlib import Path
from typing import Any

from jupyter_core.application import JupyterApp
from tornado.netutil import bind_sockets
from traitlets import Bool, Dict, Enum, Float, Int, List, Unicode
from traitlets.config import Config

from .. import __version__
from ..client import Tls
from ..paths import ADMIN_SOCKET, default_data_dir, default_run_dir
from ..quotas import QuotaError, parse_memory
from .boards import Boards
from .gpus import NoGpu, discover, emulate, label, share_by_mps
from .guard import GuardError
from .handlers import (
    admin_application,
    board_application,
    metrics_application,
    serve,
    serve_tcp,
    tenant_application,
)
from .manager import Limits, Manager
from .metrics import registry
from .mps import MpsError
from .placement import Strategy
from .store import Store

_SAMPLE_SECONDS = 1.0
_MPS_SECONDS = 5.0


class NodeApp(JupyterApp):
    """Run the GPU node daemon: tenants, quotas and the guard of this machine's GPUs."""

    name = "jupyter-vgpu-node"
    version = __version__
    description = __doc__ or ""
    examples = """
    jupyter vgpu node                                  # share this machine's GPUs
    jupyter vgpu node --emulate --emulated-memory=8G   # no GPU here: emulate one
    """

    run_dir = Unicode(
        help="""
        Directory of sockets and shared state.

        It should be on a memory file system. Default: `/run/vgpu` for root, else below `$XDG_RUNTIME_DIR`::

            c.NodeApp.run_dir = "/run/vgpu"
        """
    ).tag(config=True)
    data_dir_path = Unicode(
        help="""
        Directory of the tenants' database.

        It outlives a reboot. Default: `/var/lib/vgpu` for root, else `~/.local/share/vgpu`::

            c.NodeApp.data_dir_path = "/var/lib/vgpu"
        """
    ).tag(config=True)
    emulate = Bool(
        False,
        help="""
        Emulate GPUs on the CPU instead of using real ones.

        Programs in a slice get a libcuda that runs PTX on the CPU; everything else is the same::

            c.NodeApp.emulate = True
        """,
    ).tag(config=True)
    emulated_memory = Unicode(
        "8G",
        help="""
        Memory of each emulated GPU.

        Taken from the host's memory as programs touch it::

            c.NodeApp.emulated_memory = "8G"
        """,
    ).tag(config=True)
    emulated_gpus = Int(
        1,
        min=1,
        max=64,
        help="""
        How many GPUs to emulate.

        They are alike; each has `emulated_memory`::

            c.NodeApp.emulated_gpus = 2
        """,
    ).tag(config=True)
    emulated_mig = Int(
        0,
        min=0,
        max=7,
        help="""
        Into how many parts the last emulated GPU is divided, as by MIG.

        Each has an eighth of its memory and a seventh of its compute, and is for one slice that asks for the model
        `MIG`. 0: it is a whole GPU::

            c.NodeApp.emulated_mig = 7
        """,
    ).tag(config=True)
    memory_overcommit = Float(
        1.0,
        min=0.1,
        help="""
        How much memory may be promised, as a factor of what each GPU has.

        Above 1 slices are promised more than there is: an allocation inside its quota may then be refused
        by the driver when all use theirs at once. Parts of GPUs (MIG) give what they have::

            c.NodeApp.memory_overcommit = 1.0
        """,
    ).tag(config=True)
    core_overcommit = Float(
        1.0,
        min=0.1,
        help="""
        How much compute may be promised, as a factor of each GPU.

        Above 1 all shares shrink in proportion while the tenants that use the GPU have over 100 percent together.
        Parts of GPUs (MIG) give what they have::

            c.NodeApp.core_overcommit = 4.0
        """,
    ).tag(config=True)
    gpu_labels = Dict(
        help="""
        Names of GPUs beside their model's, by index or UUID.

        A slice may ask for one, as for a model (`gpu_slices`)::

            c.NodeApp.gpu_labels = {"0": ["teaching"], "1": ["research"]}
        """
    ).tag(config=True)
    mps_gpus = List(
        Unicode(),
        help="""
        GPUs that slices share at the same time, by NVIDIA's Multi-Process Service, by index or UUID.

        Programs of several slices run side by side there, each on its part of the GPU, instead of in turns; what keeps
        them to their slices is the shim and MPS, not the guard, and a fault in one may end the others'. So such a GPU
        is for slices that ask for the model `MPS` alone, which are offered to users that a group or an admin names
        them for (`slices`). Containers there share the host's IPC::

            c.NodeApp.mps_gpus = ["1"]
        """,
    ).tag(config=True)
    metrics_address = Unicode(
        help="""
        Where Prometheus finds the metrics: an address and a port.

        The admin socket has them too, but Prometheus speaks no Unix sockets. Names of users and servers are in them,
        so give an address that only Prometheus reaches. Empty: nowhere else::

            c.NodeApp.metrics_address = "127.0.0.1:9414"
        """
    ).tag(config=True)
    api_address = Unicode(
        help="""
        Where a hub on another machine finds the daemon: an address and a port.

        Whoever gets in here has every slice of the node, so it is for TLS alone, with certificates on both sides: set
        `api_cert`, `api_key` and `api_ca` too. Empty: the admin socket is the only way in::

            c.NodeApp.api_address = "10.0.0.7:9413"
        """
    ).tag(config=True)
    api_cert = Unicode(
        help="""
        The certificate that the daemon shows at `api_address`: a file of PEM.

        It names the host as the hub's `vgpu_nodes` does. Let it be for servers only (extendedKeyUsage serverAuth), so
        that one node can't speak to another as the hub::

            c.NodeApp.api_cert = "/etc/vgpu/node.crt"
        """
    ).tag(config=True)
    api_key = Unicode(
        help="""
        The key of `api_cert`: a file of PEM that only this daemon's user reads.

        It stays on this machine, other than `api_ca`, which hub and nodes have alike::

            c.NodeApp.api_key = "/etc/vgpu/node.key"
        """
    ).tag(config=True)
    api_ca = Unicode(
        help="""
        Who may come in at `api_address`: the authority that signed the hub's certificate, a file of PEM.

        Sign nothing with it but hub and nodes::

            c.NodeApp.api_ca = "/etc/vgpu/ca.crt"
        """
    ).tag(config=True)
    placement = Enum(
        [str(strategy) for strategy in Strategy],
        default_value=str(Strategy.SPREAD),
        help="""
        Which GPU of the node a new slice goes to.

        `spread`: the one with the most free memory, so that neighbours are few, while over a quarter of the GPUs are
        empty; then as `binpack`: the first where it leaves little that others can't use, so that whole GPUs stay free
        for large slices::

            c.NodeApp.placement = "binpack"
        """,
    ).tag(config=True)
    gpu_mem_oversubscribe = Float(
        1.0,
        min=1.0,
        max=100.0,
        help="""
        How much memory a tenant may have with managed memory (cudaMallocManaged), as a factor of its memory quota.

        1 counts managed memory as any other. Above it, managed memory may overflow into host memory: what is the
        device's own stays within the quota, both together within the factor. What of it is on the GPU is the driver's
        to choose, and it makes room for others when they allocate::

            c.NodeApp.gpu_mem_oversubscribe = 2.0
        """,
    ).tag(config=True)
    force_shim_tier = Bool(
        False,
        help="""
        Hold every slice by the shim alone, also where the guard could.

        For comparing the two: a program that goes round the shim is noticed in this tier, not held::

            c.NodeApp.force_shim_tier = True
        """,
    ).tag(config=True)
    allow_shim_tier = Bool(
        help="""
        Let a server start in the weaker tier where the guard can't hold it.

        The guard needs to reach into the tenant's processes: root, or the same user and no Yama restriction.
        Default: only when the daemon is not root. Slices on GPUs of MPS and on parts of GPUs (MIG) are always in the
        shim tier. The tier in force is shown to the user::

            c.NodeApp.allow_shim_tier = False
        """
    ).tag(config=True)

    aliases = {  # noqa: RUF012 (as traitlets declares it)
        **JupyterApp.aliases,
        "run-dir": "NodeApp.run_dir",
        "data-dir": "NodeApp.data_dir_path",
        "emulated-memory": "NodeApp.emulated_memory",
        "emulated-gpus": "NodeApp.emulated_gpus",
        "emulated-mig": "NodeApp.emulated_mig",
        "memory-overcommit": "NodeApp.memory_overcommit",
        "placement": "NodeApp.placement",
        "metrics": "NodeApp.metrics_address",
        "api": "NodeApp.api_address",
        "core-overcommit": "NodeApp.core_overcommit",
        "mem-oversubscribe": "NodeApp.gpu_mem_oversubscribe",
    }
    flags = {  # noqa: RUF012
        **JupyterApp.flags,
        "emulate": ({"NodeApp": {"emulate": True}}, "Emulate GPUs on the CPU."),
        "allow-shim-tier": (
            {"NodeApp": {"allow_shim_tier": True}},
            "Allow the weaker tier where the guard can't hold.",
        ),
    }

    def _run_dir_default(self) -> str:
        return str(default_run_dir())

    def _data_dir_path_default(self) -> str:
        return str(default_data_dir())

    def _allow_shim_tier_default(self) -> bool:
        return os.geteuid() != 0

    def _unknown_options(self) -> list[str]:
        """What was given and means nothing, such as a word that is spelled wrong."""
        own = self.class_trait_names(config=True)
        section = self.config.get(type(self).__name__, {})
        return [
            *(f"--{name}" for name, value in self.config.items() if not isinstance(value, Config)),
            *(f"{type(self).__name__}.{name}" for name in section if name not in own),
            *self.extra_args,
        ]

    def start(self) -> None:
        super().start()
        if unknown := self._unknown_options():
            self.exit_with(f"{unknown[0]} is no option: 'jupyter vgpu node --help-all' tells which there are")
        level: Any = self.log_level
        logging.basicConfig(level=level, format="%(asctime)s %(levelname).1s %(name)s: %(message)s", datefmt="%H:%M:%S")
        gc.freeze()  # modules stay: each look for garbage through all of them would hold up the answers
        try:
            asyncio.run(self._run())
        except (NoGpu, GuardError, MpsError, QuotaError) as error:
            self.exit_with(str(error))
        except OSError as error:
            where = error.filename or f"{self.run_dir} or {self.data_dir_path}"
            self.exit_with(
                f"can't use {where}: {error.strerror}; give --run-dir and --data-dir that this user may write"
            )

    def exit_with(self, message: str) -> None:
        self.log.critical(message)
        self.exit(1)

    def _lock(self, run_dir: Path) -> int:
        """Held for life, so that a second daemon on the same directory says so instead of breaking the first."""
        run_dir.mkdir(parents=True, exist_ok=True)
        run_dir.chmod(0o711)
        fd = os.open(run_dir / "vgpud.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.exit_with(f"another node daemon runs in {run_dir}: stop it, or give --run-dir another directory")
        return fd

    async def _run(self) -> None:
        run_dir = Path(self.run_dir)
        tls = self._tls()
        api_sockets, metrics_sockets = self._bind("api_address"), self._bind("metrics_address")
        lock = self._lock(run_dir)
        # each tenant has two sockets, listeners and connections of its own
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        if self.emulate:
            memory = parse_memory(self.emulated_memory, "--emulated-memory")
            emulate(run_dir / "emulated", memory, self.emulated_gpus, self.emulated_mig)
        gpus = share_by_mps(label(discover(), self.gpu_labels), self.mps_gpus)
        ended = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, ended.set)

        limits = Limits(
            self.memory_overcommit,
            self.core_overcommit,
            self.gpu_mem_oversubscribe,
            self.allow_shim_tier or self.force_shim_tier,
            self.force_shim_tier,
            Strategy(self.placement),
        )
        store = Store(Path(self.data_dir_path) / "vgpud.sqlite")
        manager = Manager(
            run_dir,
            store,
            gpus,
            limits,
            lambda tenant_id, path: serve(tenant_application(manager, tenant_id), str(path), 0o666),
        )
        manager.start()
        boards = Boards(
            run_dir, store, lambda board_id, path: serve(board_application(manager, boards, board_id), str(path), 0o666)
        )
        boards.start()
        metrics = registry(manager)
        admin = admin_application(manager, boards, metrics)
        stops = [
            serve(admin, str(run_dir / ADMIN_SOCKET), 0o600),
            serve_tcp(admin, api_sockets, tls),
            serve_tcp(metrics_application(manager, metrics), metrics_sockets),
        ]
        sampler = asyncio.create_task(self._sample(manager))
        looker = asyncio.create_task(self._look_at_mps(manager))
        for gpu in gpus:
            self.log.info("GPU %d: %s, %s", gpu.index, gpu.name, gpu.uuid)
        self.log.info("serving on %s", run_dir / ADMIN_SOCKET)
        await ended.wait()
        sampler.cancel()
        looker.cancel()
        for stop in [*stops, boards.stop]:
            stop()
        (run_dir / ADMIN_SOCKET).unlink(missing_ok=True)
        manager.stop()
        os.close(lock)

    def _tls(self) -> ssl.SSLContext | None:
        """For the API on the network; None: there is none."""
        if not self.api_address:
            return None
        for trait in ("api_cert", "api_key", "api_ca"):
            if not Path(getattr(self, trait) or "/nonexistent").is_file():
                self.exit_with(
                    f"api_address={self.api_address!r} needs {trait}, and {getattr(self, trait)!r} is no file: the API "
                    "is served with certificates on both sides, or on the admin socket alone"
                )
        try:
            return Tls(self.api_ca, self.api_cert, self.api_key).context(ssl.Purpose.CLIENT_AUTH)
        except (ssl.SSLError, OSError) as error:
            self.exit_with(f"api_cert, api_key and api_ca can't be used together: {error}")
            raise

    def _bind(self, trait: str) -> list[socket.socket]:
        """Before anything is started that would have to be ended again."""
        where = getattr(self, trait)
        if not where:
            return []
        host, _, port = where.rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65535:
            self.exit_with(f"{trait}={where!r} is no address and port: give one such as '127.0.0.1:9414'")
        try:
            return bind_sockets(int(port), host.strip("[]"))
        except OSError as error:
            self.exit_with(f"can't serve at {trait}={where!r}: {error.strerror}; give an address of this machine")
            raise

    async def _look_at_mps(self, manager: Manager) -> None:
        while manager.mps.is_wanted:
            await asyncio.sleep(_MPS_SECONDS)
            await asyncio.to_thread(manager.mps.look)

    async def _sample(self, manager: Manager) -> None:
        """Compute use, once a second, off the event loop."""
        since = time.time()
        while True:
            await asyncio.sleep(_SAMPLE_SECONDS)
            now = time.time()
            await asyncio.to_thread(manager.samples.take, int(since * 1e6))
            manager.samples.publish()
            since = now


main = NodeApp.launch_instance
