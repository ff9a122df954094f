"""JupyterHub spawners that give each server a slice of a GPU."""

from .docker import VGPUDockerSpawner
from .hubconfig import setup_vgpu
from .local import VGPULocalProcessSpawner, VGPUSimpleLocalProcessSpawner
from .mixin import VGPUMixin

__all__ = ["VGPUDockerSpawner", "VGPULocalProcessSpawner", "VGPUMixin", "VGPUSimpleLocalProcessSpawner", "setup_vgpu"]
