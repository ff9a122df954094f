"""What each user may have: the traits of the config, and what groups and the database say under them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from jupyterhub.traitlets import ByteSpecification, Callable
from jupyterhub.utils import maybe_future
from traitlets import Dict, Enum, Float, Integer, List, Unicode, Union
from traitlets.config import Configurable

from jupyter_vgpu.hours import Balance, End
from jupyter_vgpu.idle import Action, IdleRule
from jupyter_vgpu.quotas import Policy, Quota, QuotaError, parse_cores, parse_memory

from .database import Database, Metered
from .hours import Measure, Window, window_start
from .rules import GROUP_PROPERTY, MAX_GPUS, NO_MEMORY, Bounds, Entitlement, Rule, entitle, of_groups, parse_gpus

if TYPE_CHECKING:
    from jupyterhub.spawner import Spawner as _Base
else:
    _Base = Configurable

GROUP_SHARE = "share"
MIN_SHARE, MAX_SHARE = 0.01, 100

open_database = lru_cache(maxsize=4)(Database)


def group_rules(groups: Iterable[tuple[str, Any]]) -> tuple[list[Rule], list[str]]:
    """Rules of groups' properties, and what is wrong with those that are none: these give nothing."""
    rules, wrong = [], []
    for name, properties in groups:
        values = (properties or {}).get(GROUP_PROPERTY)
        if values is None:
            continue
        try:
            if not isinstance(values, dict):
                raise QuotaError(f"{GROUP_PROPERTY} is no object")
            rules.append(Rule.parse({name: value for name, value in values.items() if name != GROUP_SHARE}))
            _share_of(values)
        except ValueError as error:  # a number of thousands of digits is refused by Python itself
            wrong.append(f"group {name}: {error}")
    return rules, wrong


def group_share(properties: Any) -> float:
    """Of a group's properties: how much its members may hold beside those of others before these go first."""
    values = (properties or {}).get(GROUP_PROPERTY)
    try:
        return _share_of(values) if isinstance(values, dict) else 1.0
    except ValueError:  # as group_rules says
        return 1.0


def _share_of(values: dict[str, Any]) -> float:
    value = values.get(GROUP_SHARE, 1.0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not MIN_SHARE <= value <= MAX_SHARE:
        raise QuotaError(f"{GROUP_SHARE}={str(value)[:40]!r} is no share: give a number, {MIN_SHARE} to {MAX_SHARE}")
    return float(value)


class Limits(_Base):
    """The quota traits of every VGPU spawner."""

    gpu_mem_limit = Union(
        [Callable(), ByteSpecification()],
        default_value=None,
        allow_none=True,
        help="""
        GPU memory for each user's server, CUDA context included.

        An allocation beyond it fails with CUDA's own out-of-memory error. It is what a user has of whom neither a
        group nor an admin says anything. None: no GPU. May be a callable that takes the spawner::

            c.VGPUMixin.gpu_mem_limit = lambda spawner: "8G" if spawner.user.admin else "4G"

        .. versionadded:: 0.1
        """,
    ).tag(config=True)

    gpu_core_limit = Union(
        [Callable(), Float()],
        default_value=100.0,
        help="""
        Share of a GPU's compute for each user's server, in percent.

        Above 0 and up to 100. May be a callable that takes the spawner::

            c.VGPUMixin.gpu_core_limit = 25

        .. versionadded:: 0.1
        """,
    ).tag(config=True)

    gpu_policy = Union(
        [Callable(), Enum([str(policy) for policy in Policy])],
        default_value=str(Policy.HARD),
        help="""
        What happens to compute that others leave idle.

        `hard`: a server never gets more than its percent. `burst`: it gets its percent, and what is idle.
        May be a callable that takes the spawner::

            c.VGPUMixin.gpu_policy = "burst"

        .. versionadded:: 0.1
        """,
    ).tag(config=True)

    gpu_count_limit = Union(
        [Callable(), Integer()],
        default_value=1,
        help="""
        How many servers of a user may have a slice of a GPU at once.

        The other limits are each server's; with named servers this is what keeps a user from having them several
        times. Further servers can be started without a GPU. 0: no GPU. May be a callable that takes the spawner::

            c.VGPUMixin.gpu_count_limit = 2

        .. versionadded:: 0.1
        """,
    ).tag(config=True)

    gpu_count_ceiling = Integer(
        default_value=None,
        allow_none=True,
        min=0,
        max=MAX_GPUS,
        help="""
        The most servers with a slice at once that a group or an admin can give anybody.

        What is above is cut to it. None: `gpu_count_limit`, so that only less can be given::

            c.VGPUMixin.gpu_count_ceiling = 4

        .. versionadded:: 0.1
        """,
    ).tag(config=True)

    gpu_mem_ceiling = ByteSpecification(
        default_value=None,
        allow_none=True,
        help="""
        The most GPU memory that a group, an admin or a form can give anybody.

        What is above is cut to it. None: `gpu_mem_limit`, so that only less can be given::

            c.VGPUMixin.gpu_mem_ceiling = "40G"

        .. versionadded:: 0.1
        """,
    ).tag(config=True)

    gpu_core_ceiling = Float(
        default_value=None,
        allow_none=True,
        help="""
        The most compute that a group, an admin or a form can give anybody, in percent.

        What is above is cut to it. None: `gpu_core_limit`, so that only less can be given::

            c.VGPUMixin.gpu_core_ceiling = 50

        .. versionadded:: 0.1
        """,
    ).tag(config=True)

    gpu_policy_ceiling = Enum(
        [str(policy) for policy in Policy],
        default_value=None,
        allow_none=True,
        help="""
        `burst` where a group or an admin may give it.

        None: `gpu_policy`, so that with `hard` there nobody can be given `burst`::

            c.VGPUMixin.gpu_policy_ceiling = "burst"

        .. versionadded:: 0.1
        """,
    ).tag(config=True)

    gpu_slices = List(
        Dict(),
        help="""
        The slices that a user may choose from on the spawn page.

        Each with `memory` and `cores`; those above the user's quota are not offered. With a `model` only a GPU with
        these words in its name, or that the node labels so (`NodeApp.gpu_labels`), will do; `MIG`, or a profile such as
        `MIG 1g.10gb`, is for a part of a GPU, which nothing else asks for by accident. With `exclusive`
        nobody else is on the GPU meanwhile; that is for who may have 100 percent, and counts as that.
        Empty, or all of those for any GPU are larger: the quota itself is the one slice::

            c.VGPUMixin.gpu_slices = [
                {"memory": "4G", "cores": 25},
                {"memory": "70G", "cores": 100, "model": "H100", "exclusive": True},
            ]

        .. versionadded:: 0.1
        """,
    ).tag(config=True)

    gpu_hours = Float(
        default_value=None,
        allow_none=True,
        min=0,
        help="""
        GPU-hours for each user in a window (see `gpu_hours_window`).

        An hour of a whole GPU is one; an hour of a quarter is a quarter. Who has used them up can start servers
        without a GPU only. None: no end. Needs `vgpu_db_url` and the service, which counts them::

            c.VGPUMixin.gpu_hours = 20

        .. versionadded:: 0.1
        """,
    ).tag(config=True)

    gpu_hours_ceiling = Float(
        default_value=None,
        allow_none=True,
        min=0,
        help="""
        The most GPU-hours that a group or an admin can give anybody in a window.

        What is above is cut to it, and so are hours without an end. None: as many as they say::

            c.VGPUMixin.gpu_hours_ceiling = 100

        .. versionadded:: 0.1
        """,
    ).tag(config=True)

    gpu_hours_window = Enum(
        [str(window) for window in Window],
        default_value=str(Window.ROLLING),
        help="""
        The window that GPU-hours are counted in.

        `rolling`: the last seven days. `week`: since Monday, 0:00 UTC::

            c.VGPUMixin.gpu_hours_window = "week"

        .. versionadded:: 0.1
        """,
    ).tag(config=True)

    gpu_hours_warnings = List(
        Float(min=0.01, max=1),
        [0.8, 0.95],
        help="""
        At which parts of the GPU-hours a user is warned.

        Once at each in JupyterLab, and from the first on by the spawn page. Empty: only when they are used up::

            c.VGPUMixin.gpu_hours_warnings = [0.5, 0.9]

        .. versionadded:: 0.1
        """,
    ).tag(config=True)

    gpu_hours_grace = Float(
        0.0,
        min=0,
        help="""
        GPU-hours that are let pass beyond `gpu_hours`, with a warning.

        So nobody loses the GPU in the middle of something without having been told. 0: what is used up is used up::

            c.VGPUMixin.gpu_hours_grace = 1

        .. versionadded:: 0.1
        """,
    ).tag(config=True)

    gpu_hours_end = Enum(
        [str(end) for end in End],
        default_value=str(End.REFUSE),
        help="""
        What follows when the GPU-hours and the grace are used up.

        `refuse`: no new server with a GPU; one that runs goes on. `stop`: the service stops those that run, too::

            c.VGPUMixin.gpu_hours_end = "stop"

        .. versionadded:: 0.1
        """,
    ).tag(config=True)

    gpu_hours_of = Enum(
        [str(measure) for measure in Measure],
        default_value=str(Measure.HELD),
        help="""
        What is counted as GPU-hours.

        `held`: the time that a slice is held, by its percent. `used`: the time that its work was on the GPU::

            c.VGPUMixin.gpu_hours_of = "used"

        .. versionadded:: 0.1
        """,
    ).tag(config=True)

    gpu_idle_minutes = Float(
        default_value=None,
        allow_none=True,
        help="""
        After how many minutes without work something is done about who holds GPU memory.

        The user is told a while before; `gpu_idle_action` says what is done. `setup_vgpu` sets both. None: nothing::

            setup_vgpu(c, gpu_idle_minutes=30)

        .. versionadded:: 0.1
        """,
    ).tag(config=True)

    gpu_idle_action = Enum(
        [str(action) for action in Action],
        default_value=str(Action.SERVER),
        help="""
        What is done about who holds GPU memory and rests.

        `notify`: the user is told. `kernel`: the server itself shuts down kernels that rest, one by one. `server`: the
        hub's culler stops the server where all of it rests::

            setup_vgpu(c, gpu_idle_minutes=30, gpu_idle_action="kernel")

        .. versionadded:: 0.1
        """,
    ).tag(config=True)

    vgpu_db_url = Unicode(
        help="""
        The database with users' quotas and GPU-hours, as SQLAlchemy writes it.

        The service keeps it; `setup_vgpu` sets both. Empty: nobody has a quota of their own::

            c.VGPUMixin.vgpu_db_url = "postgresql+psycopg://vgpu@db.example.org/vgpu"

        .. versionadded:: 0.1
        """
    ).tag(config=True)

    def idle_rule(self) -> IdleRule | None:
        """What becomes of who holds GPU memory and rests; None: nothing."""
        if self.gpu_idle_minutes is None:
            return None
        return IdleRule.after(self.gpu_idle_minutes, self.gpu_idle_action)

    async def _resolve(self, value: Any) -> Any:
        return await maybe_future(value(self)) if callable(value) else value

    async def gpu_bounds(self) -> Bounds:
        """What the config says of this user: the default, and what nobody passes. Raises QuotaError."""
        memory = await self._resolve(self.gpu_mem_limit)
        cores = parse_cores(await self._resolve(self.gpu_core_limit))
        return bounds_of(
            memory,
            cores,
            await self._resolve(self.gpu_policy),
            mem_ceiling=self.gpu_mem_ceiling,
            core_ceiling=self.gpu_core_ceiling,
            policy_ceiling=self.gpu_policy_ceiling,
            gpus=await self._resolve(self.gpu_count_limit),
            most_gpus=self.gpu_count_ceiling,
            hours=self.gpu_hours,
            most_hours=self.gpu_hours_ceiling,
        )

    async def gpu_entitlement(self) -> Entitlement:
        """What this user may have. Raises QuotaError for what the config says, DatabaseError where it can't be read."""
        bounds = await self.gpu_bounds()
        rules, wrong = group_rules((group.name, group.properties) for group in getattr(self.user, "groups", ()))
        for words in wrong:
            self.log.error("%s", words)
        user = await asyncio.to_thread(self._database.rule, self.user.name) if self._database else Rule()
        return entitle(bounds, of_groups(rules), user)

    async def gpu_balance(self, entitlement: Entitlement) -> Balance:
        """GPU-hours spent, and allowed. Raises DatabaseError."""
        if entitlement.hours is None or not self._database:
            return Balance(0, None)
        since = window_start(Window(self.gpu_hours_window), datetime.now(UTC))
        metered = await asyncio.to_thread(self._database.metered, since, [self.user.name])
        mine = metered.get(self.user.name, Metered())
        spent = mine.held if self.gpu_hours_of == Measure.HELD else mine.used
        return Balance(spent, entitlement.hours, self.gpu_hours_grace)

    @property
    def _database(self) -> Database | None:
        return open_database(self.vgpu_db_url) if self.vgpu_db_url else None


def bounds_of(
    memory: Any,
    cores: Any,
    policy: Any,
    *,
    mem_ceiling: Any = None,
    core_ceiling: Any = None,
    policy_ceiling: Any = None,
    gpus: Any = 1,
    most_gpus: Any = None,
    hours: float | None = None,
    most_hours: float | None = None,
) -> Bounds:
    """Bounds of the traits' values; a ceiling of None is the limit itself. Raises QuotaError."""
    default = Quota(parse_memory(memory) if memory else NO_MEMORY, parse_cores(cores), Policy(policy))
    ceiling = Quota(
        parse_memory(mem_ceiling, "gpu_mem_ceiling") if mem_ceiling is not None else default.memory,
        parse_cores(core_ceiling) if core_ceiling is not None else default.cores,
        Policy(policy_ceiling or policy),
    )
    count = parse_gpus(gpus)
    most = count if most_gpus is None else parse_gpus(most_gpus)
    return Bounds(default, ceiling, hours, count, most, most_hours)
