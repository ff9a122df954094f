"""A GPU's slices drawn to scale. Pure; no template, for a thousand of them would be most of the page's time."""

from __future__ import annotations

from collections.abc import Iterable

from markupsafe import Markup, escape

from jupyter_vgpu.api import Json
from jupyter_vgpu.quotas import format_bytes, format_percent

WIDTH, HEIGHT, USED_FROM = 1000, 20, 11
_SHOWN = {"memory": format_bytes, "cores": format_percent}


def draw(tenants: Iterable[Json], field: str, total: float) -> Markup:
    """Rectangles of an SVG that is WIDTH by HEIGHT: what each slice was promised, and in the lower part what it uses.

    field: `memory` or `cores`. total: how much of it the GPU has.
    """
    show, scale = _SHOWN[field], WIDTH / total if total else 0.0
    slices, used, x = [], [], 0.0
    for tenant in tenants:
        quota = tenant["quota"][field]
        width, part = quota * scale, min(tenant["usage"][field], quota) * scale
        title = f"{escape(tenant['name'])}: {show(quota)}"
        size = f'x="{x:.2f}" width="{width:.2f}" height="{HEIGHT}"'
        slices.append(f'<rect class="vgpu-slice" {size}><title>{title}</title></rect>')
        if part:
            used.append(f"M{x:.2f} {USED_FROM}h{part:.2f}V{HEIGHT}h-{part:.2f}z")
        x += width
    if used:
        slices.append(f'<path class="vgpu-used" d="{"".join(used)}"></path>')
    return Markup("\n".join(slices))  # noqa: S704 (what is anybody's word is escaped above)
