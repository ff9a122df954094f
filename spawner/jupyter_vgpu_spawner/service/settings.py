"""What `setup_vgpu` tells the service, through one environment variable."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..hours import Measure, Window
from ..limits import bounds_of
from ..rules import Bounds

VARIABLE = "JUPYTER_VGPU_SERVICE"
READ_SCOPE = "custom:vgpu:read"
WRITE_SCOPE = "custom:vgpu:write"


@dataclass(frozen=True, slots=True)
class Settings:
    """limits: arguments of `bounds_of`; None where the config computes them for each user, so that nobody else can."""

    db_url: str
    socket: str
    limits: Mapping[str, Any] | None
    window: str = Window.ROLLING
    measure: str = Measure.HELD

    @classmethod
    def from_environment(cls) -> Settings:
        return cls(**json.loads(os.environ[VARIABLE]))

    def as_environment(self) -> dict[str, str]:
        return {VARIABLE: json.dumps(asdict(self))}

    @property
    def bounds(self) -> Bounds | None:
        """Raises QuotaError."""
        return None if self.limits is None else bounds_of(**self.limits)
