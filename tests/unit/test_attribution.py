"""Which notebook holds the memory."""

from __future__ import annotations

from jupyter_vgpu.extension.attribution import Owner, attribute, owners_of_kernels

SESSIONS = [
    {"kernel": {"id": "k1"}, "path": "course/train.ipynb", "type": "notebook", "name": "train.ipynb"},
    {"kernel": {"id": "k2"}, "path": "console-1", "type": "console", "name": "Console 1"},
]
PARENTS = {10: 1, 20: 10, 21: 20, 30: 1, 40: 1, 50: 51, 51: 50}


def process(pid: int, memory: int, name: str = "python") -> dict[str, object]:
    return {"pid_in_slice": pid, "memory": memory, "cores": 5, "name": name, "busy": pid == 21, "last_active": pid}


def test_a_kernels_children_count_for_its_notebook() -> None:
    owners = owners_of_kernels({"k1": 10, "k2": 30}, SESSIONS)
    rows = attribute([process(10, 100), process(21, 50)], owners, PARENTS.get)
    train, console = rows
    assert (train["path"], train["memory"], train["pids"]) == ("course/train.ipynb", 150, [10, 21])
    assert (train["busy"], train["last_active"], train["cores"]) == (True, 21, 10)
    assert (console["name"], console["memory"], console["pids"]) == ("Console 1", 0, [])  # a kernel without a GPU


def test_a_kernel_that_was_never_active_says_so() -> None:
    assert attribute([], owners_of_kernels({"k1": 10}, SESSIONS), PARENTS.get)[0]["last_active"] is None


def test_each_kind_of_owner_is_named_as_what_it_is_and_the_largest_comes_first() -> None:
    owners = owners_of_kernels({"k1": 10, "k2": 30, "k3": 40}, SESSIONS) | {
        60: Owner("terminal", "Terminal 1", None, "1")
    }
    rows = attribute(
        [process(10, 1), process(30, 5), process(40, 3), process(60, 4), process(70, 2, "mine")], owners, PARENTS.get
    )
    assert [(row["kind"], row["name"]) for row in rows] == [
        ("console", "Console 1"),
        ("terminal", "Terminal 1"),
        ("kernel", "kernel without a notebook"),
        ("other", "mine"),
        ("notebook", "train.ipynb"),
    ]


def test_a_kernel_that_a_console_shares_is_the_notebooks_and_a_console_is_found_by_its_path() -> None:
    notebook = {"kernel": {"id": "k1"}, "path": "train.ipynb", "type": "notebook", "name": ""}
    console = {"kernel": {"id": "k1"}, "path": "console-1-uuid", "type": "console", "name": "Console 1"}
    for sessions in ([notebook, console], [console, notebook]):
        assert owners_of_kernels({"k1": 10}, sessions)[10] == Owner("notebook", "train.ipynb", "train.ipynb", "k1")
    assert owners_of_kernels({"k1": 10}, [console])[10] == Owner("console", "Console 1", "console-1-uuid", "k1")


def test_a_loop_in_the_process_tree_ends() -> None:
    assert attribute([process(50, 1, "loop")], {}, PARENTS.get)[0]["name"] == "loop"
