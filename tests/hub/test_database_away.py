"""A hub on PostgreSQL, and what is left to its users while that is away."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import requests
from support.node import Node, wait_until
from support.postgres import Postgres

sys.path.insert(0, str(Path(__file__).parent))
from hub import Admin, Hub

GIB = 1 << 30
CONFIG = """
c.Authenticator.allowed_users = {{"alice", "dean"}}
from jupyter_vgpu_spawner import setup_vgpu
setup_vgpu(c, admins=["dean"], db_url="{url}")
"""


def test_a_database_that_is_away_keeps_nobody_from_working(node: Node, postgres: Postgres) -> None:
    hub = Hub(node, CONFIG.format(url=postgres.database()))
    try:
        wait_until(lambda: requests.get(f"{hub.url}/services/vgpu/health", timeout=5).ok, 30, "the service answers")
        admin = Admin(hub)
        wait_until(lambda: "The database with" not in admin.page(), 30, "the tables are made")
        assert admin.post("edit", user="alice", memory="2G").status_code == 200
        alice = hub.user("alice")
        postgres.kill()
        page = admin.page()
        assert "The database with the users" in page
        assert "Emulated vGPU device 0" in page
        assert "quotas of this hub can" in alice.spawn_page()
        with pytest.raises(AssertionError, match="quotas of this hub can"):
            alice.spawn("2GiB-50")
        alice.spawn("none")
        alice.stop()
        headers = {"Authorization": f"token {admin.user.token()}"}
        url = f"{hub.url}/services/vgpu/api/users/alice/quota"
        refused = requests.put(url, json={"memory": "1G"}, headers=headers, timeout=60)
        assert (refused.status_code, "this was not done" in refused.json()["error"]) == (503, True)
        hub.stop()
        hub.start()  # without its database too
        postgres.start()
        again = Admin(hub)
        wait_until(lambda: "The database with" not in again.page(), 30, "it is there again")
        assert again.person("alice")["rule"] == {"memory": 2 * GIB}
        alice = hub.user("alice")
        alice.spawn("2GiB-50")
        assert node.show("alice/")["quota"]["memory"] == 2 * GIB
        alice.stop()
    finally:
        hub.stop()
