"""The service and its admin page on a real JupyterHub: quotas by group and user, live changes, hours, and denial."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
import requests
from jupyter_vgpu_spawner.service.routes import application
from prometheus_client.parser import text_string_to_metric_families
from support.node import Node, wait_until
from tornado.routing import PathMatches
from tornado.web import RequestHandler

sys.path.insert(0, str(Path(__file__).parent))
from hub import Admin, Hub

GIB = 1 << 30
API = "services/vgpu/api"

CONFIG = """
c.Authenticator.allowed_users = {"alice", "bob", "dean", "eve<b>"}
c.JupyterHub.load_groups = {
    "physics": {"users": ["alice"], "properties": {"vgpu": {"memory": "2G"}}},
    "broken": {"users": ["bob"], "properties": {"vgpu": {"memory": "lots"}}},
}
c.JupyterHub.services = [
    {"name": "other", "api_token": "other-services-secret-token"},
    {"name": "registrar", "api_token": "registrars-secret-token-for-tests"},
]
c.JupyterHub.load_roles = [
    {"name": "watcher", "services": ["other"], "scopes": ["custom:vgpu:read", "access:services!service=vgpu"]},
    {"name": "registrar", "services": ["registrar"], "scopes": ["groups"]},
]
c.VGPUMixin.gpu_mem_limit = "1G"
c.VGPUMixin.gpu_core_limit = 25
c.VGPUMixin.gpu_mem_ceiling = "6G"
c.VGPUMixin.gpu_core_ceiling = 75
c.VGPUMixin.gpu_slices = []
from jupyter_vgpu_spawner import setup_vgpu
setup_vgpu(c, admins=["dean"], db_url="sqlite:///{root}/vgpu.sqlite")
"""


@pytest.fixture
def admin(hub: Hub) -> Iterator[Admin]:
    made = Admin(hub)
    yield made
    for name in ("alice", "bob"):
        made.post("edit", user=name)


def test_default_then_group_then_user_under_the_ceiling(hub: Hub, admin: Admin) -> None:
    assert admin.person("bob")["quota"] == {"memory": GIB, "cores": 25, "policy": "hard"}
    assert admin.person("alice")["quota"]["memory"] == 2 * GIB  # her group's
    assert admin.post("edit", user="alice", memory="3G", cores="50").status_code == 200
    assert admin.person("alice")["quota"] == {"memory": 3 * GIB, "cores": 50, "policy": "hard"}
    admin.post("edit", user="alice", memory="64G", cores="100", policy="burst")
    assert admin.person("alice")["quota"] == {"memory": 6 * GIB, "cores": 75, "policy": "hard"}
    assert "6 GiB (ceiling), 75 % (ceiling), hard (ceiling)" in admin.page()
    assert "6 GiB of GPU memory, 75 % of its compute" in hub.user("alice").spawn_page()


def test_a_running_server_follows_its_quota_at_once(hub: Hub, admin: Admin, shared_node: Node) -> None:
    bob = hub.user("bob")
    bob.spawn("1GiB-25")
    try:
        assert bob.get("vgpu/slice")["quota"]["memory"] == GIB
        admin.post("edit", user="bob", memory="4G", cores="60")
        wait_until(lambda: bob.get("vgpu/slice")["quota"]["memory"] == 4 * GIB, 2, "the student's own view")
        assert shared_node.show("bob/")["quota"]["cores"] == 60
        admin.post("edit", user="bob", memory="512M")
        assert bob.get("vgpu/slice")["quota"] == {"memory": GIB // 2, "cores": 25, "policy": "hard"}
        answer = admin.post("edit", user="bob", memory="0")  # takes effect at the next start
        assert answer.status_code == 200
        assert "bob/ keeps its slice of 512 MiB, 25 % hard until its server stops" in answer.text
        assert shared_node.show("bob/")["quota"]["memory"] == GIB // 2
    finally:
        bob.stop()
    bob.spawn_page()  # there is nothing to choose: the server starts
    wait_until(lambda: bob.model()["servers"].get("", {}).get("ready"), 30, "a server without a GPU")
    bob.session.get(f"{hub.url}/user/bob/lab", timeout=60).raise_for_status()  # the server's own login
    assert bob.get("vgpu/slice")["reason"] == "no-quota"
    assert shared_node.client.request("GET", "/api/tenants")["tenants"] == []
    bob.stop()


def test_a_quota_that_has_no_room_is_kept_and_the_admin_is_told(hub: Hub, admin: Admin, shared_node: Node) -> None:
    bob = hub.user("bob")
    bob.spawn("1GiB-25")
    other = shared_node.tenant("6G", 20, "somebody")
    try:
        page = admin.post("edit", user="bob", memory="5G").text
        assert "bob/ stays at 1 GiB, 25 % hard" in page
        assert "does not fit on GPU 0 beside the others" in page
        assert admin.person("bob")["rule"] == {"memory": 5 * GIB}
    finally:
        shared_node.client.request("DELETE", f"/api/tenants/{other['id']}")
        bob.stop()


def test_the_audit_log_tells_who_changed_what_and_leaves_as_csv(admin: Admin) -> None:
    admin.post("edit", user="alice", memory="3G")
    admin.post("edit", user="alice", memory="4G")
    line = admin.page("audit").split("<tbody>")[1].split("</tr>")[0]
    for word in ("dean", "alice", "memory", "3 GiB", "4 GiB"):
        assert word in line
    rows = list(csv.DictReader(io.StringIO(admin.page("audit.csv"))))
    assert (rows[0]["who"], rows[0]["whose"], rows[0]["from"], rows[0]["to"]) == (
        "dean",
        "alice",
        str(3 * GIB),
        str(4 * GIB),
    )
    assert {row["user"] for row in csv.DictReader(io.StringIO(admin.page("users.csv")))} >= {"alice", "bob", "dean"}


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"user": "alice", "memory": "1G", "expected": "[]"}, "not a JSON object"),
        ({"user": "alice", "memory": "1G", "expected": "{"}, "is not JSON"),
        ({"user": "alice", "memory": "lots"}, "is not a size"),
        ({"user": "alice", "cores": "140"}, "is not a percentage"),
        ({"user": "alice", "policy": "nice"}, "give &#39;hard&#39; or &#39;burst&#39;"),
        ({"user": "nobody-here", "memory": "1G"}, "this hub has no user &#39;nobody-here&#39;"),
        ({"user": "<script>alert(1)</script>", "memory": "1G"}, "&lt;script&gt;"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_changed(admin: Admin, form: dict[str, str], words: str) -> None:
    before = admin.page("audit.csv")
    answer = admin.post("edit", **form)
    assert answer.status_code in (400, 404)
    assert words in answer.text
    assert "<script>alert" not in answer.text
    assert admin.page("audit.csv") == before


def test_prometheus_reads_the_same_numbers(hub: Hub, admin: Admin) -> None:
    admin.post("edit", user="alice", hours="12")
    headers = {"Authorization": "token other-services-secret-token"}
    answer = requests.get(f"{hub.url}/services/vgpu/metrics", headers=headers, timeout=30)
    assert answer.status_code == 200
    found = {
        (sample.name, sample.labels.get("user"), sample.labels.get("measure")): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    assert found["jupyter_vgpu_user_gpu_hours_allowed", "alice", None] == 12
    held = admin.person("alice")["hours"]["held"]
    assert found["jupyter_vgpu_user_gpu_hours", "alice", "held"] == pytest.approx(held, abs=0.01)
    assert found["jupyter_vgpu_user_slices", "alice", None] == 0
    assert found["jupyter_vgpu_queue_servers", None, None] == 0


def test_a_name_with_html_is_text(hub: Hub, admin: Admin) -> None:
    hub.user("eve<b>")
    wait_until(lambda: "eve&lt;b&gt;" in admin.page(), 30, "she is on the page")
    assert "eve<b>" not in admin.page()


def test_a_groups_broken_quota_gives_nothing_and_is_shown(admin: Admin) -> None:
    assert "group broken: memory=&#39;lots&#39; is not a size" in admin.page()
    assert admin.person("bob")["quota"]["memory"] == GIB


def test_a_server_is_stopped_from_the_page(hub: Hub, admin: Admin, shared_node: Node) -> None:
    bob = hub.user("bob")
    bob.spawn("1GiB-25")
    stale = admin.post("stop", server="bob/", slice="0" * 32)  # of a page that shows the server before this one
    assert (stale.status_code, "bob/ was started anew meanwhile" in stale.text) == (409, True)
    found = re.search(r'name="server" value="bob/"><input type="hidden" name="slice" value="(\w+)"', admin.page())
    assert found
    stopped = admin.post("stop", server="bob/", slice=found[1])
    assert "The server bob/ is being stopped." in stopped.text
    assert (stopped.request.method, [each.status_code for each in stopped.history]) == ("GET", [303])  # for a reload
    assert "is being stopped" not in admin.page()
    wait_until(lambda: not shared_node.client.request("GET", "/api/tenants")["tenants"], 30, "slice and server end")
    assert admin.post("stop", server="bob/").status_code == 404


def test_everybody_with_a_slice_is_told_of_maintenance(hub: Hub, admin: Admin, shared_node: Node) -> None:
    bob = hub.user("bob")
    try:
        assert (
            "Everybody with a slice is told." in admin.post("maintenance", message="Restart at 18:00", closed="1").text
        )
        assert "Maintenance, no new slices: Restart at 18:00" in admin.page("live")
        assert "Memory: 0 B of 8 GiB promised, no new slices now" in admin.page("live")
        assert "no new ones now: Restart at 18:00" in bob.spawn_page()
        with pytest.raises(AssertionError, match="You wait for 1 GiB"):
            bob.spawn("1GiB-25")
        time.sleep(5)  # some looks of the queue
        assert bob.model()["servers"] == {}
        place = bob.session.get(f"{hub.url}/services/vgpu/queue", timeout=30).text
        assert "No new slices are given now: Restart at 18:00" in place
        assert admin.get("api/queue").json()["queue"][0]["closed"] == "Restart at 18:00"
        answer = admin.post("maintenance", message="x" * 111)
        assert (answer.status_code, "Nothing was changed" in answer.text) == (400, True)
        answer = admin.post("maintenance", message=" ", closed="1")  # which ends nothing
        assert (answer.status_code, "Maintenance, no new slices: Restart at 18:00" in answer.text) == (400, True)
    finally:
        assert "The maintenance is over." in admin.post("maintenance", over="1").text
    assert "Restart at 18:00" not in admin.page("live")
    wait_until(lambda: bob.model()["servers"].get("", {}).get("ready"), 60, "who waited gets the slice")
    bob.stop()
    audit = admin.page("audit.csv")
    assert "dean,node,maintenance,,Restart at 18:00 (no new slices)" in audit
    assert "dean,node,maintenance,,over" in audit
    assert "dean,node,maintenance,, " not in audit  # of what says nothing nothing is noted


def test_hours_are_counted_and_when_they_are_used_up_only_the_gpu_is_refused(hub: Hub, admin: Admin) -> None:
    bob = hub.user("bob")
    bob.spawn("1GiB-25")
    wait_until(lambda: admin.person("bob")["hours"]["held"] > 0, 30, "the first look counts")
    held = admin.person("bob")["hours"]["held"]
    began = time.monotonic()
    wait_until(lambda: admin.person("bob")["hours"]["held"] > held, 30, "and the next")
    more = admin.person("bob")["hours"]["held"] - held
    assert 0 < more <= (time.monotonic() - began + 20) * 0.25 / 3600
    assert re.search(
        r'aria-label="By day, today last: (0\.0, ){6}0\.0"', admin.page()
    )  # of minutes: a tenth is not full
    bob.stop()
    admin.post("edit", user="bob", hours="0.00001")
    page = bob.spawn_page()
    assert "your GPU-hours are used up" in page
    assert "disabled aria-describedby" in page
    with pytest.raises(AssertionError, match="your GPU-hours are used up .*You can start without a GPU"):
        bob.spawn("1GiB-25")
    bob.spawn("none")
    bob.stop()


ROUTES = (
    ("GET", ""),
    ("GET", "live"),
    ("GET", "audit"),
    ("GET", "audit.csv"),
    ("GET", "users.csv"),
    ("GET", "metrics"),
    ("GET", "edit"),
    ("GET", "stop"),
    ("GET", "remove"),
    ("POST", "live"),
    ("POST", "edit"),
    ("POST", "stop"),
    ("POST", "remove"),
    ("GET", "maintenance"),
    ("POST", "maintenance"),
    ("GET", "api/queue"),
    ("DELETE", "api/queue/alice/"),
    ("GET", "api/state"),
    ("PUT", "api/users/alice/quota"),
    ("DELETE", "api/users/alice/quota"),
    ("PATCH", "api/slices/alice%2F"),
    ("DELETE", "api/slices/alice%2F"),
)


# Of the user who asks: see test_queue.py; and of everybody.
OWN = {("GET", "queue"), ("GET", "queue/live"), ("GET", "queue/leave"), ("POST", "queue/leave")}
OPEN = {("GET", "health"), ("GET", "oauth_callback"), ("GET", "static/vgpu.css"), ("GET", "api/nowhere")}


def test_no_route_is_forgotten_here() -> None:
    known = {*ROUTES, *OWN, *OPEN}
    rules = application(Mock(), None, "/", "/", b"secret").wildcard_router.rules
    served = [
        (method.upper(), rule.matcher.regex)
        for rule in rules
        if isinstance(rule.matcher, PathMatches)
        for method in ("get", "head", "post", "put", "patch", "delete")
        if getattr(rule.target, method) is not getattr(RequestHandler, method)
    ]
    assert len(served) > 20
    lacking = [
        (method, where.pattern)
        for method, where in served
        if not any(method in (asked, "HEAD") and where.match(f"/{path}") for asked, path in known)
    ]
    assert lacking == []


def test_a_path_that_the_api_has_not_is_told_as_the_api_tells(hub: Hub) -> None:
    for path in ("", "/nowhere"):
        answer = requests.get(f"{hub.url}/{API}{path}", timeout=30)
        assert (answer.status_code, answer.json()) == (404, {"error": "the API has no such path"})


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_nobody_without_the_scope_gets_anywhere(hub: Hub, admin: Admin, method: str, path: str) -> None:
    before = admin.page("audit.csv")
    url = f"{hub.url}/services/vgpu/{path}"
    alice = Admin(hub, "alice")
    xsrf = {"X-XSRFToken": alice.user.xsrf("/services/vgpu/") or ""}
    own = alice.user.session.request(method, url, data={"user": "alice", "memory": "6G"}, headers=xsrf, timeout=30)
    if path:
        assert own.status_code == 403
    else:  # the hub's menu leads there
        assert own.url == f"{hub.url}/services/vgpu/queue"
        assert "Your place in the GPU queue" in own.text
    token = alice.user.token()
    for headers in ({}, {"Authorization": "token nonsense"}, {"Authorization": f"token {token}"}):
        answer = requests.request(
            method, url, headers=headers, json={"memory": "6G"}, timeout=30, allow_redirects=False
        )
        assert answer.status_code in (302, 403), (headers, answer.text)
        if answer.status_code == 302:
            location = answer.headers["Location"]
            own_place = not path and token in str(headers) and location == "/services/vgpu/queue"
            assert own_place or "/hub/api/oauth2/authorize" in location
    assert admin.page("audit.csv") == before


@pytest.mark.parametrize("header", [{}, {"Authorization": "x"}, {"Authorization": "token nonsense"}])
@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_page_of_another_users_server_can_not_act_for_the_admin(
    hub: Hub, admin: Admin, method: str, path: str, header: dict[str, str]
) -> None:
    """It is of the same site, so the admin's cookies go with it, and it may set headers; it does not know the token."""
    before = admin.page("audit.csv")
    headers = header | {"Sec-Fetch-Mode": "cors", "Sec-Fetch-Site": "same-origin"}
    answer = admin.user.session.request(
        method,
        f"{hub.url}/services/vgpu/{path}",
        data={"user": "alice", "memory": "6G"},
        headers=headers,
        timeout=30,
        allow_redirects=False,
    )
    assert answer.status_code in (302, 403), answer.text
    assert "alice" not in answer.text
    assert admin.page("audit.csv") == before


@pytest.mark.parametrize("mode", ["navigate", "cors", None])
@pytest.mark.parametrize("header", [{}, {"Authorization": "Basic eA=="}])
def test_a_form_whose_cookie_is_gone_is_refused_and_nothing_hangs(
    hub: Hub, admin: Admin, mode: str | None, header: dict[str, str]
) -> None:
    """As from an old tab after a new login, or with the cookie taken away by a page of the same site."""
    cookies = {cookie.name: str(cookie.value) for cookie in admin.user.session.cookies if cookie.name != "_xsrf"}
    headers = header | ({"Sec-Fetch-Mode": mode} if mode else {})
    form = {"_xsrf": "2|made|up|token", "server": "bob/"}
    answer = requests.post(
        admin.base + "stop", data=form, cookies=cookies, headers=headers, timeout=20, allow_redirects=False
    )
    assert answer.status_code in (302, 403)
    assert admin.get("health").status_code == 200
    assert "alice" in admin.page()


@pytest.mark.parametrize(
    ("method", "path"), [route for route in ROUTES if route[0] != "GET" and route != ("POST", "live")]
)
def test_who_may_only_read_changes_nothing(hub: Hub, admin: Admin, method: str, path: str) -> None:
    before = admin.page("audit.csv")
    url = f"{hub.url}/services/vgpu/{path}"
    headers = {"Authorization": "token other-services-secret-token"}
    assert requests.get(f"{hub.url}/{API}/state", headers=headers, timeout=30).status_code == 200
    answer = requests.request(method, url, headers=headers, json={"memory": "6G"}, timeout=30, allow_redirects=False)
    assert answer.status_code == 403
    assert admin.page("audit.csv") == before


def test_the_api_changes_quotas_and_slices_for_a_token_that_may(hub: Hub, admin: Admin, shared_node: Node) -> None:
    headers = {"Authorization": f"token {admin.user.token()}"}
    url = f"{hub.url}/{API}/users/bob/quota"
    answer = requests.put(url, json={"memory": "3G", "hours": 5}, headers=headers, timeout=30)
    assert answer.json() == {"rule": {"memory": 3 * GIB, "hours": 5.0}, "troubles": []}
    refused = requests.put(url, json={"memroy": "3G"}, headers=headers, timeout=30)
    assert (refused.status_code, "memory, cores, policy" in refused.json()["error"]) == (400, True)
    bob = hub.user("bob")
    bob.spawn("3GiB-25")
    try:
        one = f"{hub.url}/{API}/slices/bob%2F"
        assert (
            requests.patch(one, json={"memory": "2G"}, headers=headers, timeout=30).json()["quota"]["memory"] == 2 * GIB
        )
        more = requests.patch(one, json={"memory": "5G"}, headers=headers, timeout=30)
        assert more.json()["quota"]["memory"] == 5 * GIB
        time.sleep(22)  # the service looks twice: what an admin gave this slice stays
        assert shared_node.show("bob/")["quota"]["memory"] == 5 * GIB
        requests.patch(one, json={"memory": "2G"}, headers=headers, timeout=30)
        above = requests.patch(one, json={"memory": "7G"}, headers=headers, timeout=30)
        assert (above.status_code, "above this slice's ceiling: give at most 6 GiB" in above.json()["error"]) == (
            403,
            True,
        )
        assert shared_node.show("bob/")["quota"]["memory"] == 2 * GIB
        noted = [row for row in csv.DictReader(io.StringIO(admin.page("audit.csv"))) if row["whose"] == "bob/"]
        of_2g, of_7g = ("".join(f"{size} GiB, 25 % hard") for size in (2, 7))
        assert [(row["who"], row["what"], row["from"], row["to"]) for row in noted[:3]] == [
            ("dean", "slice", of_7g, f"refused: {of_2g}"),
            ("dean", "slice", of_2g, of_7g),
            ("dean", "slice", "5 GiB, 25 % hard", of_2g),
        ]
        requests.delete(one, headers=headers, timeout=60).raise_for_status()
        assert "stopped" in admin.page("audit").split("<tbody>")[1].split("</tr>")[0]
        wait_until(lambda: not bob.model()["servers"], 30, "it is stopped")
    finally:
        if bob.model()["servers"]:
            bob.stop()
    assert requests.delete(url, headers=headers, timeout=30).json() == {"rule": {}, "troubles": []}


def test_what_another_admin_changed_meanwhile_is_not_written_over(admin: Admin) -> None:
    admin.post("edit", user="alice", memory="3G")
    answer = admin.post("edit", user="alice", cores="10", expected="{}")  # a page of before
    assert (answer.status_code, "was changed meanwhile" in answer.text) == (409, True)
    assert re.search(r'aria-label="Memory of alice"[^>]*value="3G"', answer.text)  # a second click keeps it
    assert admin.person("alice")["rule"] == {"memory": 3 * GIB}
    now = json.dumps(admin.person("alice")["rule"])
    assert admin.post("edit", user="alice", cores="10", expected=now).status_code == 200


def test_a_slice_that_was_made_smaller_by_its_group_is_cut_soon(hub: Hub, admin: Admin, shared_node: Node) -> None:
    alice, bob = hub.user("alice"), hub.user("bob")
    bob.spawn("1GiB-25")
    shared_node.client.request("PATCH", "/api/tenants/bob%2F", {"memory": "2G"})  # by root at the node: stays
    alice.spawn("2GiB-25")
    headers = {"Authorization": "token registrars-secret-token-for-tests"}
    group = f"{hub.url}/hub/api/groups/physics/properties"
    try:
        changed = requests.put(group, json={"vgpu": {"memory": "512M"}}, headers=headers, timeout=30)
        assert changed.status_code == 200, changed.text
        wait_until(lambda: shared_node.show("alice/")["quota"]["memory"] == GIB // 2, 25, "the slice is cut")

        def noted() -> dict[str, str]:
            return next(row for row in csv.DictReader(io.StringIO(admin.page("audit.csv"))) if row["whose"] == "alice/")

        wait_until(lambda: noted()["to"] == "512 MiB, 25 % hard", 5, "it is in the log")
        assert (noted()["who"], noted()["from"]) == ("the service, as groups or quotas say now", "2 GiB, 25 % hard")
        requests.put(group, json={"vgpu": {"memory": "60G"}}, headers=headers, timeout=30)  # above the ceiling
        wait_until(lambda: shared_node.show("alice/")["quota"]["memory"] == 6 * GIB, 25, "a group passes it neither")
        requests.put(group, json={"vgpu": {"memory": "2G"}}, headers=headers, timeout=30)
        wait_until(lambda: shared_node.show("alice/")["quota"]["memory"] == 2 * GIB, 25, "and grows with it")
        assert shared_node.show("bob/")["quota"]["memory"] == 2 * GIB
    finally:
        alice.stop()
        bob.stop()


def test_a_tenant_of_nobody_in_the_hub_is_out_of_reach(hub: Hub, admin: Admin, shared_node: Node) -> None:
    """A program that the node's admin runs, with a name like a server's."""
    job = shared_node.tenant("1G", 10, "alice/job")
    headers = {"Authorization": f"token {admin.user.token()}"}
    try:
        one = f"{hub.url}/{API}/slices/alice%2Fjob"
        assert requests.patch(one, json={"memory": "2G"}, headers=headers, timeout=30).status_code == 404
        assert requests.delete(one, headers=headers, timeout=30).status_code == 404
        assert admin.person("alice")["servers"] == []
        assert shared_node.show("alice/job")["quota"]["memory"] == GIB
    finally:
        shared_node.client.request("DELETE", f"/api/tenants/{job['id']}")


def test_a_daemon_that_is_away_leaves_the_page_and_a_killed_service_comes_back(
    hub: Hub, admin: Admin, shared_node: Node
) -> None:
    shared_node.kill()
    wait_until(lambda: "does not answer at" in admin.page(), 5, "the page says who is away")
    assert "alice" in admin.page()
    shared_node.start()
    assert "does not answer at" not in admin.page()
    os.kill(service_pid(shared_node), signal.SIGKILL)
    wait_until(lambda: admin.get("health").ok, 60, "the hub starts it again")
    assert "alice" in Admin(hub).page()


def test_what_was_changed_while_the_service_was_away_is_followed(hub: Hub, admin: Admin, shared_node: Node) -> None:
    alice = hub.user("alice")
    alice.spawn("2GiB-25")
    service = service_pid(shared_node)
    headers = {"Authorization": "token registrars-secret-token-for-tests"}
    group = f"{hub.url}/hub/api/groups/physics/properties"
    try:
        wait_until(lambda: admin.person("alice")["hours"]["held"] > 0, 30, "it was looked at")
        os.kill(service, signal.SIGSTOP)
        requests.put(group, json={"vgpu": {"memory": "512M"}}, headers=headers, timeout=30)
        os.kill(service, signal.SIGKILL)
        wait_until(lambda: shared_node.show("alice/")["quota"]["memory"] == GIB // 2, 90, "the slice is cut")
    finally:
        requests.put(group, json={"vgpu": {"memory": "2G"}}, headers=headers, timeout=30)
        wait_until(lambda: admin.get("health").ok, 60, "the hub starts it again")
        alice.stop()


def service_pid(node: Node) -> int:
    for entry in Path("/proc").iterdir():
        try:
            service = entry.name.isdigit() and b"jupyter_vgpu_spawner.service" in (entry / "cmdline").read_bytes()
            if service and str(node.root).encode() in (entry / "environ").read_bytes():
                return int(entry.name)
        except OSError:
            continue
    raise AssertionError("no service")
