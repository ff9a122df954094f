"""VGPUDockerSpawner beside DockerSpawner's own options, without an engine."""

from __future__ import annotations

import asyncio
import re
from html import unescape
from types import SimpleNamespace
from typing import Any

import pytest
from jupyter_vgpu_spawner import VGPUDockerSpawner
from tornado.web import HTTPError


def spawner(**traits: Any) -> VGPUDockerSpawner:
    user = SimpleNamespace(name="alice", url="/user/alice/", server=None, orm_user=None)
    return VGPUDockerSpawner(user=user, vgpu_socket="/nowhere/vgpud.sock", **traits)


def launch(mps: str | None = None, **environment: str) -> dict[str, Any]:
    """As vgpud says it."""
    return {
        "native": "/opt/native",
        "directory": "/run/vgpu/tenants/t",
        "environment": {"CUDA_VISIBLE_DEVICES": "GPU-1", **environment},
        "devices": ["/dev/nvidia0"],
        "emulated_device": None,
        "mps": mps,
    }


def test_the_image_form_of_docker_spawner_stays() -> None:
    made = spawner(allowed_images=["first", "second"])
    form = asyncio.run(made.options_form(made))
    assert '<option value="second"' in form
    assert "fieldset" not in form  # no GPU for this user
    assert asyncio.run(made.options_from_form({"image": ["second"]})) == {"image": "second"}


def test_both_forms_show_together_and_say_when_the_daemon_is_away() -> None:
    made = spawner(allowed_images=["first", "second"], gpu_mem_limit="4G", gpu_core_limit=25)
    form = asyncio.run(made.options_form(made))
    assert '<option value="second"' in form
    assert "4 GiB of GPU memory, 25 % of its compute" in form
    assert "does not answer now" in form
    options = asyncio.run(made.options_from_form({"image": ["second"], "gpu_slice": ["none"]}))
    assert options == {"image": "second", "gpu_slice": "none"}


def test_who_may_have_less_than_any_slice_is_told() -> None:
    whole = [{"memory": "40G", "cores": 100, "model": "H100"}]
    made = spawner(gpu_mem_limit="4G", gpu_core_limit=25, gpu_slices=whole)
    words = "none of this hub's GPU slices is within what you may have (4 GiB of GPU memory, 25 % of its compute)"
    form = unescape(asyncio.run(made.options_form(made)))
    assert f"No GPU for this server: {words}: ask its admins for more." in form
    assert re.findall('type="radio"[^>]* value="([^"]+)"([^>]*)', form)[0][1].startswith(" disabled")
    assert "more memory than you may have (4 GiB)" in form
    assert re.findall('value="([^"]+)" checked', form) == ["none"]
    assert asyncio.run(made.chosen_quota([]))[0] is None  # nothing was asked for
    made.user_options = {"gpu_slice": "40GiB-100-H100"}
    with pytest.raises(HTTPError, match=re.escape(words)):
        asyncio.run(made.chosen_quota([]))


def test_limits_may_be_callables_of_the_spawner() -> None:
    made = spawner(gpu_mem_limit=lambda s: "8G" if s.user.name == "alice" else None, gpu_core_limit=lambda _: 30)
    quota = asyncio.run(made.gpu_entitlement()).quota
    assert quota is not None
    assert (quota.memory, quota.cores) == (8 << 30, 30)


def test_an_admins_own_form_is_kept_and_the_slices_follow_it() -> None:
    async def theirs(asked: Any) -> str:
        return f'<select name="course" aria-label="Course of {asked.user.name}"></select>'

    def taken(form: dict[str, list[str]], spawner: Any) -> dict[str, str]:
        return {"course": f"{form['course'][0]} of {spawner.user.name}", "gpu_slice": "99GiB-100"}

    form = {"course": ["ml"], "gpu_slice": ["none"]}
    # DockerSpawner's own function takes the image alone
    for more, options in (({}, {}), ({"options_from_form": taken}, {"course": "ml of alice"})):
        made = spawner(gpu_mem_limit="4G", options_form=theirs, **more)
        page = asyncio.run(made.get_options_form())
        assert page.startswith('<select name="course" aria-label="Course of alice">')
        assert page.count("<fieldset") == 1
        assert asyncio.run(made.run_options_from_form(form)) == {**options, "gpu_slice": "none"}
        assert asyncio.run(made.options_from_query(form)) == {**options, "gpu_slice": "none"}
    assert asyncio.run(spawner(gpu_mem_limit="4G", options_form=lambda _: None).get_options_form()) == ""
    made = spawner(gpu_mem_limit="4G", options_form="<p>Welcome</p>")
    assert "<p>Welcome</p>" in asyncio.run(made.get_options_form())
    assert asyncio.run(made.get_options_form()).count("<fieldset") == 1
    assert asyncio.run(spawner(gpu_mem_limit="4G").get_options_form()).count("<fieldset") == 1


def test_who_wants_no_spawn_page_sets_the_form_to_nothing() -> None:
    assert asyncio.run(spawner(options_form="", gpu_mem_limit="4G").get_options_form()) == ""


def test_the_users_config_is_not_changed_by_a_slice() -> None:
    configured = {"devices": ["/dev/fuse:/dev/fuse:rw"], "init": True}
    made = spawner(extra_host_config=configured, volumes={"/data": "/data"}, cmd=["start.sh"])
    made._launch = launch(VGPU_SLICE_DIR="/run/vgpu/tenants/t")
    binds = made.volume_binds
    assert binds["/data"] == {"bind": "/data", "mode": "rw"}
    assert binds["/run/vgpu/tenants/t"] == {"bind": "/run/vgpu/slice", "mode": "ro"}
    assert made.slice_environment()["NVIDIA_VISIBLE_DEVICES"] == "GPU-1"
    assert asyncio.run(made.get_command())[:5] == [
        "/opt/vgpu/bin/vgpu-run",
        "--dir",
        "/run/vgpu/slice",
        "--",
        "start.sh",
    ]
    assert configured == {"devices": ["/dev/fuse:/dev/fuse:rw"], "init": True}
    assert made.volumes == {"/data": "/data"}
    made._launch = None
    assert list(made.volume_binds) == ["/data"]


def test_a_container_under_mps_gets_the_service_and_the_hosts_ipc() -> None:
    made = spawner(extra_host_config={"init": True})
    made._launch = launch("/run/vgpu-node/mps", CUDA_MPS_PIPE_DIRECTORY="/run/vgpu-node/mps")
    assert made.volume_binds["/run/vgpu-node/mps"] == {"bind": "/run/vgpu/mps", "mode": "rw"}
    assert made.slice_environment()["CUDA_MPS_PIPE_DIRECTORY"] == "/run/vgpu/mps"
    config = asyncio.run(made._with_devices(made.extra_host_config)(made))
    assert config == {"init": True, "devices": ["/dev/nvidia0:/dev/nvidia0:rw"], "ipc_mode": "host"}
