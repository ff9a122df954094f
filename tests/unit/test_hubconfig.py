"""setup_vgpu(c): what a hub's config is after it."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
from dockerspawner import DockerSpawner
from jupyter_vgpu_spawner import setup_vgpu
from jupyter_vgpu_spawner.docker import VGPUDockerSpawner
from jupyter_vgpu_spawner.mixin import VGPUMixin
from jupyter_vgpu_spawner.service.settings import READ_SCOPE, VARIABLE, WRITE_SCOPE, Settings
from traitlets.config import Config

from jupyter_vgpu.quotas import QuotaError

ROOT = Path(__file__).parents[2]
GIB = 1 << 30


def settings(c: Config) -> Settings:
    service = next(service for service in c.JupyterHub.services if service["name"] == "vgpu")
    return Settings(**json.loads(service["environment"][VARIABLE]))


def test_three_lines_are_enough() -> None:
    c = Config()
    c.VGPUMixin.gpu_mem_limit = "4G"
    setup_vgpu(c, admins=["dean"], admin_groups=["staff"])
    assert c.JupyterHub.spawner_class == "vgpu-docker"
    assert c.VGPUMixin.vgpu_db_url == settings(c).db_url == f"sqlite:///{Path.cwd()}/vgpu.sqlite"
    bounds = settings(c).bounds
    assert bounds is not None
    assert (bounds.default.memory, bounds.default.cores, bounds.ceiling.memory) == (4 * GIB, 100, 4 * GIB)
    role = next(role for role in c.JupyterHub.load_roles if role["name"] == "vgpu-admin")
    assert (role["users"], role["groups"]) == (["dean"], ["staff"])
    assert {READ_SCOPE, WRITE_SCOPE} <= set(role["scopes"])
    assert set(c.JupyterHub.custom_scopes) == {READ_SCOPE, WRITE_SCOPE}


def test_what_is_there_stays() -> None:
    c = Config()
    c.JupyterHub.spawner_class = "vgpu-local"
    c.JupyterHub.services = [{"name": "culler"}]
    c.JupyterHub.load_roles.append({"name": "mine"})  # as people append to what has no value yet
    c.JupyterHub.custom_scopes.update({"custom:mine": {"description": "mine"}})
    c.Authenticator.admin_users = {"root"}
    c.VGPUMixin.vgpu_db_url = "postgresql+psycopg://db/vgpu"
    c.VGPULocalProcessSpawner.gpu_core_limit = 30
    c.VGPUMixin.gpu_core_limit = 20  # the class goes first
    c.VGPUDockerSpawner.gpu_core_limit = 99  # and is not this one
    c.LocalProcessSpawner.gpu_hours = 7  # a base of it
    c.VGPULocalProcessSpawner.vgpu_socket = "/elsewhere/vgpud.sock"
    setup_vgpu(c)
    assert c.JupyterHub.spawner_class == "vgpu-local"
    assert [service["name"] for service in c.JupyterHub.services] == ["culler", "vgpu"]
    assert [role["name"] for role in c.JupyterHub.load_roles] == ["user", "mine", "vgpu", "vgpu-admin"]
    assert "custom:mine" in c.JupyterHub.custom_scopes
    assert c.JupyterHub.load_roles[3]["users"] == ["root"]
    assert settings(c).db_url == "postgresql+psycopg://db/vgpu"
    assert settings(c).limits is not None
    assert (settings(c).limits["cores"], settings(c).hours) == (30, 7)  # type: ignore[index]
    assert [node["vgpud"] for node in settings(c).nodes] == ["/elsewhere/vgpud.sock"]


def test_users_may_open_the_queues_page_and_what_they_may_besides_stays() -> None:
    c = Config()
    setup_vgpu(c)
    assert c.VGPUMixin.gpu_queue is settings(c).queue is True
    assert c.JupyterHub.load_roles[0] == {"name": "user", "scopes": ["self", "access:services!service=vgpu"]}
    c = Config()
    c.JupyterHub.load_roles = [{"name": "user", "scopes": ["self", "access:services!service=wiki"]}]
    setup_vgpu(c)
    assert c.JupyterHub.load_roles[0]["scopes"] == [
        "self",
        "access:services!service=wiki",
        "access:services!service=vgpu",
    ]
    c = Config()
    c.VGPUDockerSpawner.gpu_queue = False
    setup_vgpu(c)
    assert settings(c).queue is False
    assert [role["name"] for role in c.JupyterHub.load_roles] == ["vgpu", "vgpu-admin"]
    assert "servers" not in set(c.JupyterHub.load_roles[0]["scopes"])


def test_what_can_not_be_is_said_when_the_hub_starts() -> None:
    c = Config()
    c.JupyterHub.spawner_class = "simple"
    with pytest.raises(ValueError, match="gives no GPU slices: take vgpu-docker"):
        setup_vgpu(c)
    c = Config()
    c.VGPUMixin.vgpu_db_url = "sqlite:///a"
    with pytest.raises(ValueError, match="said twice"):
        setup_vgpu(c, db_url="sqlite:///b")
    c = Config()
    c.VGPUMixin.gpu_slices = [{"memory": "4G"}]
    with pytest.raises(QuotaError, match="each slice is a dict with 'memory' and 'cores'"):
        setup_vgpu(c)
    with pytest.raises(ValueError, match="gpu_idle_action='sleep' is unknown: give one of notify, kernel, server"):
        setup_vgpu(Config(), gpu_idle_minutes=5, gpu_idle_action="sleep")
    with pytest.raises(ValueError, match="gpu_idle_minutes=0 is no time"):
        setup_vgpu(Config(), gpu_idle_minutes=0)


def test_a_password_is_in_a_file_of_the_hubs_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    c = Config()
    setup_vgpu(c, db_url="postgresql+psycopg://vgpu:secret@db/vgpu")
    other = Config()
    other.VGPUMixin.gpu_mem_ceiling = "40G"
    other.VGPUDockerSpawner.gpu_mem_ceiling = None  # said, and so it holds
    other.VGPUMixin.gpu_slices.append({"memory": "1G", "cores": 25})
    setup_vgpu(other, db_url="postgresql+psycopg://vgpu@db/vgpu?password=secret")
    assert "secret" not in json.dumps(other.JupyterHub.services[0]["environment"])
    setup_vgpu(c := Config(), db_url="postgresql+psycopg://vgpu:secret@db/vgpu")
    environment = c.JupyterHub.services[0]["environment"]
    assert "secret" not in json.dumps(environment)  # the hub writes it into its database
    file = tmp_path / "vgpu_service.json"
    assert file.stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv(VARIABLE, environment[VARIABLE])
    assert Settings.from_environment().db_url == "postgresql+psycopg://vgpu:secret@db/vgpu"


def test_limits_that_are_computed_are_left_to_the_spawner() -> None:
    c = Config()
    c.VGPUMixin.gpu_mem_limit = lambda spawner: "4G"
    setup_vgpu(c)
    assert settings(c).bounds is None


def names(c: Config) -> list[str]:
    return [service["name"] for service in c.JupyterHub.services]


@pytest.mark.parametrize("section", ["VGPUMixin", "VGPUDockerSpawner"])
def test_idle_minutes_of_the_trait_bring_the_culler_too(section: str) -> None:
    c = Config()
    c[section].gpu_idle_minutes = 30
    with pytest.raises(ValueError, match="gpu_idle_minutes is said twice: by setup_vgpu's gpu_idle_minutes=5"):
        setup_vgpu(c, gpu_idle_minutes=5)
    setup_vgpu(c)
    assert names(c) == ["vgpu", "vgpu-idle"]
    told = Config({section: {"gpu_idle_minutes": 30, "gpu_idle_action": "notify"}})
    setup_vgpu(told)
    assert names(told) == ["vgpu"]  # nobody's server is stopped


def test_containers_that_are_to_be_kept_are_refused() -> None:
    c = Config()
    c.DockerSpawner.remove = False
    with pytest.raises(ValueError, match="remove=False keeps containers"):
        setup_vgpu(c)
    c.JupyterHub.spawner_class = "vgpu-local"  # has none
    setup_vgpu(c)
    assert VGPUDockerSpawner().remove

    class Own(VGPUMixin, DockerSpawner):
        """As an admin may write one."""

    own = Config()
    own.JupyterHub.spawner_class = Own
    setup_vgpu(own)
    assert Own(config=own).remove


def test_a_service_of_that_name_is_not_made_twice() -> None:
    c = Config()
    setup_vgpu(c)
    with pytest.raises(ValueError, match="has a service named 'vgpu' already: call setup_vgpu once"):
        setup_vgpu(c)


def test_a_limit_that_is_none_is_said_when_the_hub_starts() -> None:
    c = Config()
    c.VGPUMixin.gpu_mem_limit = "lots"
    with pytest.raises(QuotaError, match="memory='lots' is not a size"):
        setup_vgpu(c)


MADE = runpy.run_path(str(ROOT / "docs" / "make_reference.py"))


@pytest.mark.parametrize(
    ("name", "text"),
    [(f"{cls.__name__}.{name}", text) for cls, texts in MADE["helps"]().items() for name, text in texts.items()],
)
def test_each_setting_says_what_it_is_what_follows_and_how_it_is_set(name: str, text: str) -> None:
    first, semantics, rest = text.split("\n\n", 2)
    assert first.endswith(".")
    assert "\n" not in first
    assert len(semantics.removesuffix("::")) > 20
    example = next(line for line in rest.splitlines() if line.startswith("    "))
    assert "c." in example or "setup_vgpu(" in example, name


def test_the_reference_page_is_up_to_date() -> None:
    assert (ROOT / "docs" / "reference.md").read_text() == MADE["page"](), "run 'make docs'"
