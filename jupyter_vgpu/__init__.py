"""jupyter-vgpu: slices of a GPU for notebooks, with limits that hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .inside import NoSlice, Process, Usage, quota, usage

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell
    from jupyter_server.serverapp import ServerApp

__all__ = ["NoSlice", "Process", "Usage", "quota", "usage"]

__version__ = "0.1.0"


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": "jupyter_vgpu"}]


def _jupyter_labextension_paths() -> list[dict[str, str]]:
    return [{"src": "labextension", "dest": "jupyter-vgpu"}]


def _load_jupyter_server_extension(server_app: ServerApp) -> None:
    from .extension.handlers import setup

    setup(server_app)


def load_ipython_extension(shell: InteractiveShell) -> None:
    """`%load_ext jupyter_vgpu`."""
    from .magics import load

    load(shell)


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """`%unload_ext jupyter_vgpu`."""
    from .magics import unload

    unload(shell)
