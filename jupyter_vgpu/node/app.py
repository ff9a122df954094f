"""`jupyter vgpu node`: the daemon's process."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jupyter_core.application import JupyterApp
from prometheus_client import CollectorRegistry
from traitlets import Bool, Dict, Enum, Float, Int, Unicode

from .. import __version__
from ..paths import ADMIN_SOCKET, default_data_dir, default_run_dir
from ..quotas import QuotaError, parse_memory
from .gpus import NoGpu, discover, emulate, label
from .guard import GuardError
from .handlers import admin_application, metrics_application, serve, serve_tcp, tenant_application
from .manager import Limits, Manager
from .metrics import registry
from .placement import Strategy
from .store import Store

_SAMPLE_SECONDS = 1.0


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

        ::

            c.NodeApp.emulated_gpus = 2
        """,
    ).tag(config=True)
    memory_overcommit = Float(
        1.0,
        min=0.1,
        help="""
        How much memory may be promised, as a factor of what each GPU has.

        Above 1 slices are promised more than there is: an allocation inside its quota may then be refused
        by the driver when all use theirs at once::

            c.NodeApp.memory_overcommit = 1.0
        """,
    ).tag(config=True)
    core_overcommit = Float(
        1.0,
        min=0.1,
        help="""
        How much compute may be promised, as a factor of each GPU.

        Above 1 all shares shrink in proportion while the tenants that use the GPU have over 100 percent together::

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
    metrics_address = Unicode(
        help="""
        Where Prometheus finds the metrics: an address and a port.

        The admin socket has them too, but Prometheus speaks no Unix sockets. Names of users and servers are in them,
        so give an address that only Prometheus reaches. Empty: nowhere else::

            c.NodeApp.metrics_address = "127.0.0.1:9414"
        """
    ).tag(config=True)
    placement = Enum(
        [str(strategy) for strategy in Strategy],
        default_value=str(Strategy.SPREAD),
        help="""
        Which GPU of the node a new slice goes to.

        `spread`: the one with the most free memory, so that neighbours are few. `binpack`: the first where it leaves
        little that others can't use, so that whole GPUs stay free for large slices::

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
        Default: only when the daemon is not root. The tier in force is shown to the user::

            c.NodeApp.allow_shim_tier = False
        """
    ).tag(config=True)

    aliases = {  # noqa: RUF012 (as traitlets declares it)
        **JupyterApp.aliases,
        "run-dir": "NodeApp.run_dir",
        "data-dir": "NodeApp.data_dir_path",
        "emulated-memory": "NodeApp.emulated_memory",
        "emulated-gpus": "NodeApp.emulated_gpus",
        "memory-overcommit": "NodeApp.memory_overcommit",
        "placement": "NodeApp.placement",
        "metrics": "NodeApp.metrics_address",
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

    def start(self) -> None:
        super().start()
        level: Any = self.log_level
        logging.basicConfig(level=level, format="%(asctime)s %(levelname).1s %(name)s: %(message)s", datefmt="%H:%M:%S")
        try:
            asyncio.run(self._run())
        except (NoGpu, GuardError, QuotaError) as error:
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
        lock = self._lock(run_dir)
        # each tenant has two sockets, listeners and connections of its own
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        if self.emulate:
            emulate(run_dir / "emulated", parse_memory(self.emulated_memory, "--emulated-memory"), self.emulated_gpus)
        gpus = label(discover(), self.gpu_labels)
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
        manager = Manager(
            run_dir,
            Store(Path(self.data_dir_path) / "vgpud.sqlite"),
            gpus,
            limits,
            lambda tenant_id, path: serve(tenant_application(manager, tenant_id), str(path), 0o666),
        )
        manager.start()
        metrics = registry(manager)
        stop_api = serve(admin_application(manager, metrics), str(run_dir / ADMIN_SOCKET), 0o600)
        stop_metrics = self._serve_metrics(manager, metrics)
        sampler = asyncio.create_task(self._sample(manager))
        for gpu in gpus:
            self.log.info("GPU %d: %s, %s", gpu.index, gpu.name, gpu.uuid)
        self.log.info("serving on %s", run_dir / ADMIN_SOCKET)
        await ended.wait()
        sampler.cancel()
        stop_api()
        stop_metrics()
        (run_dir / ADMIN_SOCKET).unlink(missing_ok=True)
        manager.stop()
        os.close(lock)

    def _serve_metrics(self, manager: Manager, metrics: CollectorRegistry) -> Callable[[], None]:
        if not self.metrics_address:
            return lambda: None
        host, _, port = self.metrics_address.rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65535:
            self.exit_with(
                f"metrics_address={self.metrics_address!r} is no address and port: give one such as '127.0.0.1:9414'"
            )
        return serve_tcp(metrics_application(manager, metrics), host.strip("[]"), int(port))

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
