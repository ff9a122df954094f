"""The config file of the idle-culler that `setup_vgpu` starts."""

from jupyter_vgpu_spawner.idle import arbiter_from_environment

c = get_config()  # type: ignore[name-defined]  # noqa: F821
c.IdleCuller.cull_arbiter_hook = arbiter_from_environment()
