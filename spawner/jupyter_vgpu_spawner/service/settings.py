"""What `setup_vgpu` tells the service, through one environment variable."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.engine import make_url

from jupyter_vgpu.hours import End

from ..fleet import Fleet
from ..hours import Measure, Window
from ..limits import bounds_of
from ..nodes import NodeConfig
from ..rules import Bounds

VARIABLE = "JUPYTER_VGPU_SERVICE"
READ_SCOPE = "custom:vgpu:read"
WRITE_SCOPE = "custom:vgpu:write"


@dataclass(frozen=True, slots=True)
class Settings:
    """nodes: see `as_settings`. hub: see `vgpu_hub`.

    limits: arguments of `bounds_of`; None where the config computes them for each user, so that nobody else can.
    slices: keys of those that may be chosen; empty: the quota itself is the one.
    """

    db_url: str
    nodes: Sequence[Mapping[str, str]]
    hub: str
    limits: Mapping[str, Any] | None
    slices: Sequence[str] = ()
    hours: float | None = None
    most_hours: float | None = None
    window: str = Window.ROLLING
    measure: str = Measure.HELD
    grace: float = 0.0
    warnings: Sequence[float] = ()
    end: str = End.REFUSE
    queue: bool = False

    @classmethod
    def from_environment(cls) -> Settings:
        values = json.loads(os.environ[VARIABLE])
        return cls(**(json.loads(Path(values["file"]).read_text()) if "file" in values else values))

    def as_environment(self) -> dict[str, str]:
        """A password goes into a file for the hub's user alone: the hub keeps environments in its database."""
        values = asdict(self)
        url = make_url(self.db_url)
        if url.password is None and not any("password" in name for name in url.query):
            return {VARIABLE: json.dumps(values)}
        path = Path.cwd() / "vgpu_service.json"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "w") as file:
            os.fchmod(fd, 0o600)
            json.dump(values, file)
        return {VARIABLE: json.dumps({"file": str(path)})}

    @property
    def fleet(self) -> Fleet:
        """The node daemons."""
        return Fleet([NodeConfig(**node) for node in self.nodes])

    @property
    def bounds(self) -> Bounds | None:
        """Raises QuotaError."""
        return None if self.limits is None else bounds_of(**self.limits, hours=self.hours, most_hours=self.most_hours)
