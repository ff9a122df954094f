"""The service's pages: whatever somebody may name, it stays text."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from jupyter_vgpu_spawner.database import Change, Metered
from jupyter_vgpu_spawner.queue_store import Entry
from jupyter_vgpu_spawner.rules import Entitlement, Rule
from jupyter_vgpu_spawner.service.dispatcher import Standing
from jupyter_vgpu_spawner.service.manager import Person, State
from jupyter_vgpu_spawner.service.pages import SHOWN, _Part, _templates
from jupyter_vgpu_spawner.turns import Waiting

from jupyter_vgpu.quotas import Quota
from jupyter_vgpu.turn import Stage

GIB = 1 << 30
EVIL = "<img src=x onerror=alert(1)>\"' onmouseover='alert(2)"
PAGES = ("admin.html", "live.html", "queue.html", "standings.html", "audit.html", "error.html")


def values() -> dict[str, Any]:
    """What the pages are made of, with a hostile name wherever one can stand."""
    quota = Quota(GIB, 25, model=EVIL)
    tenant = {
        "name": f"{EVIL}/{EVIL}",
        "id": "1",
        "node": EVIL,
        "gpu": {"uuid": "GPU-1", "index": 0},
        "quota": {"memory": GIB, "cores": 25},
        "usage": {"memory": 1, "cores": 1},
        "tier": "guard",
    }
    room = {"total": 8 * GIB, "reserved": GIB, "free": 7 * GIB}
    gpu = {"uuid": "GPU-1", "index": 0, "node": EVIL, "name": EVIL, "labels": [EVIL], "emulated": False}
    gpu |= {"memory": room, "cores": {"total": 100, "reserved": 25, "free": 75}, "taken": False, "closed": EVIL}
    person = Person(
        EVIL,
        (EVIL,),
        Rule(slices=(EVIL,)),
        Entitlement(quota, None, 5, dict.fromkeys(("memory", "cores", "policy", "gpus"), "user"), 1),
        Metered(),
        [tenant],
        is_known=False,
    )
    said = {EVIL: {"message": EVIL, "closed": True, "since": 0}}
    state = State([EVIL, "other"], [gpu], [tenant], said, [person], 1, [EVIL], away={EVIL: EVIL})
    waiting = Waiting(EVIL, EVIL, quota, time.time())
    queue = [
        Standing(Entry(waiting, {}, stage, time.time(), EVIL), number, closed=EVIL)
        for number, stage in enumerate(reversed(Stage))
    ]
    change = Change(datetime.now(UTC), EVIL, EVIL, EVIL, EVIL, EVIL)
    common = {"base": "/services/vgpu/", "hub": "/hub/", "user": {"name": EVIL}, "xsrf": "", "xsrf_token": "t"}
    scopes = {"may_write": True, "may_read": True, "has_queue": True}
    shown = {"message": EVIL, "trouble": EVIL, "queue_trouble": EVIL, "troubles": [EVIL], "words": EVIL, "status": 400}
    return {
        **common,
        **scopes,
        **shown,
        "state": state,
        "people": [person],
        "held": {EVIL: [tenant]},
        "queue": queue,
        "standings": queue,
        "servers": {EVIL: True},
        "now": time.time(),
        "part": _Part(EVIL, "own", "1"),
        "shown": SHOWN,
        "wrong": (EVIL, "memory"),
        "unsaid": {"message": EVIL, "closed": True, "node": EVIL},
        "trends": {},
        "most": 0,
        "typed": {EVIL: dict.fromkeys(("memory", "cores", "policy", "gpus", "hours", "slices"), EVIL)},
        "window": "rolling",
        "spent": lambda metered: metered.held,
        "changes": [change],
    }


@pytest.mark.parametrize("name", PAGES)
def test_a_hostile_name_is_text_wherever_it_stands(name: str) -> None:
    page = _templates.get_template(name).render(**values())
    assert "&lt;img src=x" in page  # it is there
    assert "<img src=x" not in page
    tags = re.findall(r"<[a-zA-Z][^>]*>", page)
    assert not [tag for tag in tags if re.search(r"\son\w+\s*=", re.sub(r"\"[^\"]*\"", "", tag))]  # nor an attribute


def test_what_is_not_known_is_not_told_as_nothing() -> None:
    known = values()
    state = known["state"]
    assert "not known now" not in _templates.get_template("admin.html").render(**known)
    person = replace(known["people"][0], tenants=[])
    blind = known | {
        "state": replace(state, gpus=[], tenants=[], is_blind=True),
        "people": [person],
        "held": {"a": []},
    }
    page = _templates.get_template("admin.html").render(**blind)
    assert page.count("not known now") == 2  # the GPUs, and the user's servers
    assert "No GPU is known" not in page
    assert "not known now</span></template>" in _templates.get_template("live.html").render(**blind).replace("\n", "")


def test_a_field_that_is_wrong_is_where_the_admin_goes_on() -> None:
    page = _templates.get_template("admin.html").render(**values())
    (field,) = re.findall(r"<input[^>]*aria-invalid=\"true\"[^>]*>", page)
    assert 'name="memory"' in field
    assert "autofocus" in field
    assert 'aria-describedby="vgpu-wrong"' in field
    assert page.count('id="vgpu-wrong"') == 1


def test_every_page_is_looked_at() -> None:
    parts = {"base.html", "gpus.html", "waits.html", "servers.html"}  # of the others
    assert set(_templates.list_templates()) == {*PAGES, *parts}
