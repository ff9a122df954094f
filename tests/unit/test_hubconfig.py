"""setup_vgpu(c): what a hub's config is after it."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
from jupyter_vgpu_spawner import setup_vgpu
from jupyter_vgpu_spawner.service.settings import READ_SCOPE, VARIABLE, WRITE_SCOPE, Settings
from traitlets.config import Config

from jupyter_vgpu.quota import QuotaError

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
    assert {READ_SCOPE, WRITE_SCOPE} <= set(role["scopes"]) & (set(c.JupyterHub.custom_scopes) | set(role["scopes"]))


def test_what_is_there_stays() -> None:
    c = Config()
    c.JupyterHub.spawner_class = "vgpu-local"
    c.JupyterHub.services = [{"name": "culler"}]
    c.JupyterHub.load_roles.append({"name": "mine"})  # as people append to what has no value yet
    c.JupyterHub.custom_scopes = {"custom:mine": {"description": "mine"}}
    c.Authenticator.admin_users = {"root"}
    c.VGPUMixin.vgpu_db_url = "postgresql+psycopg://db/vgpu"
    c.VGPULocalProcessSpawner.gpu_core_limit = 30
    c.VGPUMixin.gpu_core_limit = 20  # the class goes first
    setup_vgpu(c)
    assert c.JupyterHub.spawner_class == "vgpu-local"
    assert [service["name"] for service in c.JupyterHub.services] == ["culler", "vgpu"]
    assert [role["name"] for role in c.JupyterHub.load_roles] == ["mine", "vgpu", "vgpu-admin"]
    assert "custom:mine" in c.JupyterHub.custom_scopes
    assert c.JupyterHub.load_roles[2]["users"] == ["root"]
    assert settings(c).db_url == "postgresql+psycopg://db/vgpu"
    assert settings(c).limits is not None
    assert settings(c).limits["cores"] == 30  # type: ignore[index]


def test_limits_that_are_computed_are_left_to_the_spawner() -> None:
    c = Config()
    c.VGPUMixin.gpu_mem_limit = lambda spawner: "4G"
    setup_vgpu(c)
    assert settings(c).bounds is None


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


def test_the_reference_page_is_up_to_date() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "make_reference.py"))
    assert (ROOT / "docs" / "reference.md").read_text() == made["page"](), "run 'make docs'"
