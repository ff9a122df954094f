"""Write docs/reference.md from the settings' help texts. Run by `make docs`; a test sees that it is up to date."""

from __future__ import annotations

import inspect
from pathlib import Path

from jupyter_vgpu_spawner import VGPUDockerSpawner, VGPUMixin, setup_vgpu
from jupyter_vgpu_spawner.limits import Limits
from jupyter_vgpu_spawner.queueing import Queueing
from traitlets import HasTraits

from jupyter_vgpu.node.app import NodeApp

PAGE = Path(__file__).parent / "reference.md"


def helps() -> dict[type[HasTraits], dict[str, str]]:
    """Help texts of all settings, by class and name."""
    hub = [name for cls in (Limits, Queueing, VGPUMixin) for name in cls.class_own_traits(config=True)]
    own = {VGPUMixin: hub, VGPUDockerSpawner: list(VGPUDockerSpawner.class_own_traits(config=True))}
    own[NodeApp] = list(NodeApp.class_own_traits(config=True))
    return {
        cls: {name: inspect.cleandoc(str(cls.class_traits()[name].help)) for name in sorted(names)}
        for cls, names in own.items()
    }


def _section(cls: type[HasTraits]) -> list[str]:
    return [_trait(cls, name, text) for name, text in helps()[cls].items()]


def _trait(cls: type[HasTraits], name: str, text: str) -> str:
    shown = text.replace("::\n", ":\n").replace("\n.. versionadded:: ", "\nSince ")
    return f"### {name}\n\nDefault: `{cls.class_traits()[name].default_value_repr()}`\n\n{shown}"


def page() -> str:
    """The whole page."""
    parts = [
        "# All settings",
        "Made from the help texts by `docs/make_reference.py`; do not edit.",
        "## setup_vgpu",
        "```\nsetup_vgpu" + str(inspect.signature(setup_vgpu)) + "\n```",
        "```text\n" + inspect.cleandoc(setup_vgpu.__doc__ or "") + "\n```",
        "## Traits of every VGPU spawner",
        "Set on `c.VGPUMixin`, or on the class that is used, such as `c.VGPUDockerSpawner`.",
        *_section(VGPUMixin),
        "## Traits of vgpu-docker alone",
        "Set on `c.VGPUDockerSpawner` or `c.DockerSpawner`; all of DockerSpawner's own work as before.",
        *_section(VGPUDockerSpawner),
        "## Traits of a node",
        "Set on `c.NodeApp` in a config file of `jupyter vgpu node`, or as `--NodeApp.name=value`.",
        *_section(NodeApp),
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
