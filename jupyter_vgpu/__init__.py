"""jupyter-vgpu: slices of a GPU for notebooks, with limits that hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jupyter_server.serverapp import ServerApp

__version__ = "0.1.0"


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": "jupyter_vgpu"}]


def _jupyter_labextension_paths() -> list[dict[str, str]]:
    return [{"src": "labextension", "dest": "jupyter-vgpu"}]


def _load_jupyter_server_extension(server_app: ServerApp) -> None:
    from .extension.handlers import setup

    setup(server_app)
