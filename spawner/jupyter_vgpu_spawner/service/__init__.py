"""The hub's GPU service: who holds what, users' quotas, GPU-hours. Run by the hub; see `setup_vgpu`."""
