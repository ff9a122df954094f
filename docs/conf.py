"""Sphinx configuration: `make docs` writes build/docs."""

from jupyter_vgpu import __version__

project = "jupyter-vgpu"
author = "The jupyter-vgpu developers"
release = version = __version__
extensions = ["myst_parser"]
myst_heading_anchors = 2
