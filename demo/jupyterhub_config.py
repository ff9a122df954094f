"""The demo's hub: two users and an admin, local processes, three slices to choose from. Started by demo.py."""

import os
import shutil
import sys
from pathlib import Path

from jupyter_vgpu_spawner import setup_vgpu

root = Path(os.environ["VGPU_DEMO_ROOT"])
port = int(os.environ["VGPU_DEMO_PORT"])
here = Path(__file__).parent

c = get_config()

c.JupyterHub.bind_url = f"http://127.0.0.1:{port}"
c.JupyterHub.hub_port = port + 1
c.ConfigurableHTTPProxy.api_url = f"http://127.0.0.1:{port + 2}"
c.ConfigurableHTTPProxy.command = os.environ["VGPU_DEMO_PROXY"].split()
c.ConfigurableHTTPProxy.pid_file = str(root / "proxy.pid")
c.JupyterHub.db_url = f"sqlite:///{root}/hub.sqlite"
c.JupyterHub.cookie_secret_file = str(root / "cookie_secret")

c.JupyterHub.authenticator_class = "shared-password"
c.SharedPasswordAuthenticator.user_password = os.environ["VGPU_DEMO_PASSWORD"]
c.Authenticator.allowed_users = {"alice", "bob", "dean"}

c.JupyterHub.spawner_class = "vgpu-simple"
c.VGPUMixin.vgpu_socket = str(root / "run" / "vgpud.sock")
c.VGPUMixin.gpu_mem_limit = "4G"
c.VGPUMixin.gpu_core_limit = 50
c.VGPUMixin.gpu_mem_ceiling = "8G"
c.VGPUMixin.gpu_core_ceiling = 100
c.VGPUMixin.gpu_slices = [
    {"memory": "1G", "cores": 25},
    {"memory": "2G", "cores": 50},
    {"memory": "4G", "cores": 50},
    {"memory": "8G", "cores": 100},  # for who is given more, on the admin page
]
c.SimpleLocalProcessSpawner.home_dir_template = str(root / "home" / "{username}")
c.Spawner.cmd = [sys.executable, "-m", "jupyterhub.singleuser"]
c.Spawner.args = ["--allow-root"] if os.geteuid() == 0 else []
c.Spawner.default_url = "/lab/tree/quickstart.ipynb"
# a login shell would look for programs where the system has them, and not in the environment of the demo
c.Spawner.args += ["--ServerApp.terminado_settings={'shell_command': ['bash']}"]


def of_user(part):
    """A directory of the user's own: nothing is written to the home of the one who runs the demo."""
    return lambda spawner: str(root / "jupyter" / spawner.user.name / part)


c.Spawner.environment = {
    "JUPYTER_CONFIG_DIR": of_user("config"),
    "JUPYTER_DATA_DIR": of_user("data"),
    "JUPYTER_RUNTIME_DIR": of_user("runtime"),
    "IPYTHONDIR": of_user("ipython"),
    "JUPYTER_CONFIG_PATH": str(root / "jupyter"),
}


def give_notebook(spawner):
    """Put the quick-start notebook into a new user's home."""
    home = root / "home" / spawner.user.name
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "quickstart.ipynb").exists():
        shutil.copy(here / "quickstart.ipynb", home)


c.Spawner.pre_spawn_hook = give_notebook

setup_vgpu(c, admins=["dean"], db_url=f"sqlite:///{root}/vgpu.sqlite")
