"""jupyter-vgpu: slices of a GPU for notebooks, with limits that hold."""

__version__ = "0.1.0"
