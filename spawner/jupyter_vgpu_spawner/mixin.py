"""What every VGPU spawner does: quota traits, the spawn page, and a slice's life beside its server's."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from weakref import WeakValueDictionary

from jinja2 import Environment, PackageLoader, select_autoescape
from jupyterhub.utils import maybe_future
from tornado import web
from traitlets import default

from jupyter_vgpu.client import BOARDS_PATH, DaemonAway, DaemonError, board_path, tenant_path
from jupyter_vgpu.hours import Balance
from jupyter_vgpu.idle import LABEL as IDLE_LABEL
from jupyter_vgpu.paths import ENV_BOARD_DIR, ENV_NO_QUOTA, ENV_QUEUE_URL
from jupyter_vgpu.quotas import Quota, QuotaError
from jupyter_vgpu.turn import Stage

from .choices import (
    FIELD,
    NO_GPU,
    Choice,
    allowed_slices,
    beyond,
    capacity,
    choices,
    describe,
    pick,
    slice_key,
    why_none_fits,
    why_not,
    why_too_many,
)
from .database import DatabaseError
from .errors import DAEMON_AWAY, DAEMON_AWAY_FORM, DATABASE_AWAY, NO_GPU_FOR, START_WITHOUT, Told, quiet, words_of
from .hours import Window, why_spent
from .nodes import BOARD_KEY, NODE_KEY, ONLY, TENANT_KEY, Packing
from .queue_store import Entry
from .queueing import Queueing
from .rules import CHOSEN_LABEL, DEFAULT_LABEL, HUB_LABEL, USER_LABEL, WHOLE_LABEL, Chosen, as_whole
from .turns import is_possible

Json = dict[str, Any]
_templates = Environment(
    loader=PackageLoader("jupyter_vgpu_spawner"), autoescape=select_autoescape(), trim_blocks=True, lstrip_blocks=True
)


_starting: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()


def _one_at_a_time(user: str) -> asyncio.Lock:
    """Held while a server of this user gets its slice."""
    return _starting.setdefault(user, asyncio.Lock())


@dataclass(frozen=True, slots=True)
class Offer:
    """What a user may choose from. why_none: in words, where none of it can be had, or no slice is within the quota.

    Without slices and without words the user is to have no GPU. beyond: what the hub has, and this user may not have.
    """

    slices: list[Quota] = field(default_factory=list)
    whole: Quota | None = None
    balance: Balance = field(default_factory=Balance)
    why_none: str = ""
    beyond: list[Choice] = field(default_factory=list)


def _apply_nothing(_spawner: Any, _options: Json) -> None:
    """start() reads them itself; of what is in a dict of traits and is no trait the hub would complain each time."""


class VGPUMixin(Queueing):
    """Give each server a slice of a GPU. Goes before a Spawner class in the bases."""

    _node: str = ONLY
    _tenant: str | None = None
    _launch: Json | None = None
    _board: str | None = None
    _board_dir: str = ""

    # --- quota ---

    async def _offer(self, entries: list[Entry]) -> Offer:
        """What may be chosen. entries: all in the queue. Raises HTTPError."""
        try:
            entitlement = await self.gpu_entitlement()
            balance = await self.gpu_balance(entitlement)
        except QuotaError as error:
            raise Told(500, f"This hub's GPU settings are wrong; tell its admins: {error}") from error
        except DatabaseError as error:
            self.log.error("quota of %s: %s", self.user.name, error)
            raise Told(503, DATABASE_AWAY) from error
        if entitlement.quota is None:
            return Offer(balance=balance)
        slices = allowed_slices(self.gpu_slices, entitlement.quota, entitlement.slices)
        others = beyond(self.gpu_slices, entitlement.quota, slices)
        if not slices:
            why = why_none_fits(entitlement.quota)
            return Offer(whole=entitlement.quota, balance=balance, why_none=why, beyond=others)
        spent = why_spent(balance, Window(self.gpu_hours_window), datetime.now(UTC))
        many = why_too_many(self._others_with_gpu(), self._others_in_queue(entries), entitlement.gpus)
        return Offer(slices, entitlement.quota, balance, spent or many, others)

    def _others_with_gpu(self) -> list[str]:
        """Names of this user's other servers that have a slice; the default one's is empty."""
        others = getattr(self.user, "spawners", {}).items()
        return sorted(name for name, each in others if each is not self and getattr(each, "_tenant", None))

    async def chosen_quota(self, entries: list[Entry]) -> tuple[Quota | None, Quota | None]:
        """What this server gets: the user's choice among what is allowed; and what might be had. None: no GPU.

        `user_options` also come by REST and from the database, so they are checked here again. entries: all in the
        queue. Raises HTTPError.
        """
        if self._wants_none:
            return None, None
        offer = await self._offer(entries)
        quota = self._pick(self.user_options.get(FIELD), offer)
        return quota, offer.whole

    @property
    def _wants_none(self) -> bool:
        """The user has chosen to have no GPU."""
        return bool(self.user_options.get(FIELD) == NO_GPU)

    def _pick(self, key: Any, offer: Offer) -> Quota | None:
        if not offer.slices:
            if key is not None and offer.why_none:
                raise Told(403, f"{NO_GPU_FOR}{offer.why_none}.{START_WITHOUT}")
            return None
        try:
            quota = pick(key if key is not None else slice_key(offer.slices[0]), offer.slices)
        except QuotaError as error:
            raise Told(400, str(error)) from error
        if quota and offer.why_none:
            raise Told(403, f"{NO_GPU_FOR}{offer.why_none}.{START_WITHOUT}")
        return quota

    # --- spawn page ---

    @default("options_form")
    def _default_options_form(self) -> Any:
        return self.vgpu_options_form

    @default("options_from_form")
    def _default_options_from_form(self) -> Any:
        return self.vgpu_options_from_form

    @default("apply_user_options")
    def _default_apply_user_options(self) -> Any:
        return _apply_nothing

    async def get_options_form(self) -> str:
        """With the slices below a form of the admin's own; one that is set to nothing stays nothing."""
        form = str(await super().get_options_form() or "")
        return form if not form or self.options_form == self.vgpu_options_form else await self._with_slices(form)

    async def run_options_from_form(self, form_data: dict[str, list[str]]) -> Json:
        """With the slice, where an admin's own function makes something of the form."""
        options: Json | None = await maybe_future(super().run_options_from_form(form_data))
        if self.options_from_form == self.vgpu_options_from_form:
            return options or {}
        return await self._with_choice(dict(options or {}), form_data)

    async def options_from_query(self, query_data: dict[str, list[str]]) -> Json:
        """The same of a link that starts a server."""
        if self.options_from_form == self.vgpu_options_from_form:
            options: Json = await maybe_future(super().options_from_query(query_data))
            return options
        return await self.run_options_from_form(query_data)

    async def vgpu_options_form(self, spawner: Any) -> str:
        """The allowed slices with what is free now. What the base class would show comes first."""
        base = getattr(super(), "_default_options_form", None)
        form = base() if base else ""
        return await self._with_slices(str(await maybe_future(form(spawner)) if callable(form) else form))

    async def _with_slices(self, form: str) -> str:
        trouble = ""
        entries: list[Entry] = []
        try:
            entries = await self._entries()
            offer = await self._offer(entries)
        except web.HTTPError as error:  # a GPU can't be had now: that must not keep anybody from working without one
            offer, trouble = Offer(), words_of(error)
        if not offer.slices and not trouble:
            if not offer.why_none:
                return form
            trouble = f"{NO_GPU_FOR}{offer.why_none}."
        lines = [Choice(slice_key(quota), describe(quota), offer.why_none or "not now") for quota in offer.slices]
        models: list[str] = []
        mine = self._mine(entries)
        try:
            view = await self.fleet.gpus()
            gpus = view.gpus
            models = capacity(gpus)
            if offer.slices and not offer.why_none:
                line = self._line(view, entries) if self._queue else None
                lines = choices(offer.slices, gpus, line, bool(view.away))
        except DaemonError as error:
            self.log.error("spawn page of %s: %s", self.user.name, error)
            trouble = trouble or DAEMON_AWAY_FORM
        except web.HTTPError as error:
            trouble = trouble or words_of(error)
        selected = next((line.key for line in lines if not line.why_not), NO_GPU)
        page = _templates.get_template("slices.html")
        balance = offer.balance
        hours = "" if balance.allowed is None else f"You have used {balance}; {balance.left:.1f} are left."
        low = balance.is_low(self.gpu_hours_warnings)
        return form + page.render(
            field=FIELD,
            no_gpu=NO_GPU,
            lines=[*lines, *offer.beyond],
            selected=selected,
            trouble=trouble,
            hours=hours,
            low=low,
            models=models,
            queue_url=self._queue_url,
            mine=mine if mine and mine.stage != Stage.ENDED else None,
            waits_for=describe(mine.waiting.quota) if mine else "",
        )

    async def vgpu_options_from_form(self, form_data: dict[str, list[str]], spawner: Any = None) -> Json:
        """The form's choice; refused in words while the form is still on the screen. Reserves nothing."""
        base = getattr(super(), "_default_options_from_form", None)
        from_form = base() if base else None
        options: Json = dict(await maybe_future(from_form(form_data))) if from_form else {}
        return await self._with_choice(options, form_data)

    async def _with_choice(self, options: Json, form_data: dict[str, list[str]]) -> Json:
        quiet(self.log)
        options.pop(FIELD, None)
        if form_data.get(FIELD) == [NO_GPU]:
            return options | {FIELD: NO_GPU}
        entries = await self._entries()
        offer = await self._offer(entries)
        if not offer.slices:
            return options
        key = (form_data.get(FIELD) or [slice_key(offer.slices[0])])[0]
        if quota := self._pick(key, offer):
            await self._check_room(quota, options | {FIELD: key}, entries)
        return options | {FIELD: key}

    async def _check_room(self, quota: Quota, options: Json, entries: list[Entry]) -> None:
        view = await self._look_for(self.fleet.gpus())
        line, away = self._line(view, entries), bool(view.away)
        if self._queue and (away or is_possible(quota, line.spaces)):
            if line.must_wait(quota):
                await self._wait_in_queue(quota, options)
        elif reason := why_not(quota, view.gpus, away):
            raise Told(
                409, f"No room for {describe(quota)} now; {reason}. Choose a smaller slice, or start without a GPU."
            )

    # --- the slice's life ---

    @property
    def tenant_name(self) -> str:
        """The tenant's name at vgpud: one for each server of each user."""
        return f"{self.user.name}/{self.name}"

    async def _open_slice(self) -> None:
        async with _one_at_a_time(self.user.name):  # else two servers at once would each be the only one
            await self._open_slice_alone()

    async def _open_slice_alone(self) -> None:
        # who wants no GPU starts without the database too
        entries = [] if self._wants_none else await self._entries()
        quota, whole = await self.chosen_quota(entries)
        await self.close_slice()
        self._node = self.fleet.home
        labels = {USER_LABEL: self.user.name} | ({HUB_LABEL: self.vgpu_hub} if self.vgpu_hub else {})
        # without what an earlier server left, whose end nobody saw
        looking = self.fleet.gpus_without(self.tenant_name, self.vgpu_hub)
        if quota is None:
            with suppress(DaemonError):  # it needs none of them
                await looking
            await self._open_board(labels)
            return
        view = await self._look_for(looking)
        gpu = await self._check_turn(quota, view)
        bounds = await self.gpu_bounds()
        labels |= {DEFAULT_LABEL: json.dumps(bounds.default.as_json()), WHOLE_LABEL: as_whole(whole)}
        labels[CHOSEN_LABEL] = Chosen.of(quota, whole).as_label()
        if rule := self.idle_rule():
            labels[IDLE_LABEL] = rule.as_label()
        body = {"name": self.tenant_name, **quota.as_json(), "ceiling": bounds.ceiling.as_json(), "labels": labels}
        if gpu:
            body["gpu"] = gpu
        try:
            tenant = await self.fleet.place(view, quota, body | self.slice_owner(), Packing(self.vgpu_placement))
        except DaemonAway as error:
            self.log.error("%s", error)
            raise Told(503, DAEMON_AWAY) from error
        except DaemonError as error:
            raise Told(error.status, f"No GPU slice for this server: {error}") from error
        self._node, self._tenant, self._launch = tenant["node"], tenant["id"], tenant["launch"]

    async def _open_board(self, labels: Json) -> None:
        """A server without a GPU hears by its notice board when its user's turn in the queue comes."""
        if not self._queue:
            return
        try:
            board = await self.fleet.request(
                self._node, "POST", BOARDS_PATH, {"name": self.tenant_name, "labels": labels}
            )
        except DaemonError as error:  # it works without one
            self.log.warning("no notice board for %s: %s", self.tenant_name, error)
            return
        self._board, self._board_dir = board["id"], board["directory"]

    def slice_owner(self) -> Json:
        """Fields that say who alone may enter the slice; a container's mount says it for itself."""
        return {}

    async def close_slice(self) -> None:
        """Remove the tenant, if there is one, or the notice board. Safe to call again."""
        tenant, self._tenant, self._launch = self._tenant, None, None
        board, self._board, self._board_dir = self._board, None, ""
        path = tenant_path(tenant) if tenant else board_path(board) if board else None
        if path is None:
            return
        try:
            await self.fleet.request(self._node, "DELETE", path)
        except DaemonError as error:
            if error.status != 404:
                self.log.error("what vgpud has of %s is not removed: %s", self.tenant_name, error)

    async def start(self) -> Any:
        """Open the slice, then start the server in it; a server that does not start leaves no slice."""
        quiet(self.log)
        try:
            await self._open_slice()
        except Told as error:
            await self._note_refusal(error)
            raise
        try:
            return await super().start()
        except BaseException:
            await self.close_slice()
            raise

    async def stop(self, now: bool = False) -> None:
        await super().stop(now)
        await self.close_slice()

    async def run_post_stop_hook(self) -> Any:
        """Also called where stop() is not: for a server that ended by itself, or never came up."""
        await self.close_slice()
        return await maybe_future(super().run_post_stop_hook())

    def get_state(self) -> Json:
        state: Json = super().get_state()
        held = {TENANT_KEY: self._tenant, BOARD_KEY: self._board}
        return state | {NODE_KEY: self._node} | {key: held_id for key, held_id in held.items() if held_id}

    def load_state(self, state: Json) -> None:
        super().load_state(state)
        self._tenant, self._board = state.get(TENANT_KEY), state.get(BOARD_KEY)
        self._node = self.fleet.known_as(state.get(NODE_KEY, ONLY))
        if self._node not in self.fleet.configs:
            self.log.error("%s is on node %r, which this hub has no more", self.tenant_name, self._node)

    def get_env(self) -> dict[str, str]:
        """The server's environment, with what a program in the slice needs, or who has none."""
        env: dict[str, str] = super().get_env()
        if self._queue:
            env[ENV_QUEUE_URL] = self._queue_url
        if not self._launch and not self._wants_none:
            env[ENV_NO_QUOTA] = "1"
        if self._board_dir:
            env[ENV_BOARD_DIR] = self.board_directory()
        return env | self.slice_environment() if self._launch else env

    def board_directory(self) -> str:
        """The notice board's, on the server's side."""
        return self._board_dir

    def slice_environment(self) -> dict[str, str]:
        """What the launcher and the shim look at. Paths are those of the server's side."""
        return dict(self._launch["environment"]) if self._launch else {}

    def slice_prefix(self) -> list[str]:
        """What goes before the server's command; empty without a GPU."""
        if not self._launch:
            return []
        return [f"{self._launch['native']}/bin/vgpu-run", "--dir", self._launch["directory"], "--"]
