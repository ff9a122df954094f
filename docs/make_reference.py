"""Write docs/reference.md from the settings' help texts. Run by `make docs`; a test sees that it is up to date."""

from __future__ import annotations

import inspect
from pathlib import Path

from jupyter_vgpu_spawner import VGPUMixin, setup_vgpu
from jupyter_vgpu_spawner.limits import Limits
from jupyter_vgpu_spawner.queueing import Queueing

PAGE = Path(__file__).parent / "reference.md"


def _trait(name: str) -> str:
    trait = VGPUMixin.class_traits()[name]
    text = inspect.cleandoc(trait.help).replace("::\n", ":\n").replace("\n.. versionadded:: ", "\nSince ")
    return f"### {name}\n\nDefault: `{trait.default_value_repr()}`\n\n{text}"


def page() -> str:
    """The whole page."""
    own = [name for cls in (Limits, Queueing, VGPUMixin) for name in cls.class_own_traits(config=True)]
    parts = [
        "# All settings of the hub",
        "Made from the help texts by `docs/make_reference.py`; do not edit.",
        "## setup_vgpu",
        "```\nsetup_vgpu" + str(inspect.signature(setup_vgpu)) + "\n```",
        "```text\n" + inspect.cleandoc(setup_vgpu.__doc__ or "") + "\n```",
        "## Traits of every VGPU spawner",
        "Set on `c.VGPUMixin`, or on the class that is used, such as `c.VGPUDockerSpawner`.",
        *(_trait(name) for name in sorted(own)),
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
