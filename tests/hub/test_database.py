"""The hub's database, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from jupyter_vgpu_spawner.database import Database, DatabaseError, Metered, MigrationError
from jupyter_vgpu_spawner.queue_store import LIFETIMES_KEPT, SERVERS_MAX, TooMany
from jupyter_vgpu_spawner.rules import Rule
from jupyter_vgpu_spawner.tables import Base
from sqlalchemy import create_engine, text
from support.postgres import Postgres

from jupyter_vgpu.quotas import Policy, Quota
from jupyter_vgpu.turn import Stage

GIB = 1 << 30
RULE = Rule(8 * GIB, 37.5, Policy.BURST, ("1GiB-25", "2GiB-50"), 20, 3)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/hub.sqlite"
    server: Postgres = request.getfixturevalue("postgres")
    return server.database()


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    made = Database(url)
    made.upgrade()
    yield made
    made.close()


def test_a_rule_comes_back_as_it_was_given(database: Database) -> None:
    database.set_rule("alice", RULE, "root")
    assert database.rule("alice") == RULE
    assert database.rule("bob") == Rule()
    assert database.rules() == {"alice": RULE}


def test_every_change_is_audited_with_who_from_and_to(database: Database) -> None:
    database.set_rule("alice", RULE, "root")
    database.set_rule("alice", Rule(memory=4 * GIB, cores=37.5), "dean")
    database.set_rule("alice", Rule(), "dean")
    said = [(change.actor, change.field, change.old, change.new) for change in database.changes()]
    assert said[:2] == [("dean", "cores", "37.5", None), ("dean", "memory", str(4 * GIB), None)]
    assert ("dean", "memory", str(8 * GIB), str(4 * GIB)) in said
    assert ("root", "slices", None, "1GiB-25, 2GiB-50") in said
    assert database.rules() == {}
    assert database.set_rule("alice", Rule(), "dean") == []  # nothing changed, nothing is noted
    assert len(database.changes()) == len(said)


def test_two_admins_at_once_leave_one_rule_and_both_traces(database: Database) -> None:
    database.set_rule("alice", Rule(memory=GIB), "root")

    def change(actor: str, sizes: range) -> None:
        for size in sizes:
            database.set_rule("alice", Rule(memory=size * GIB), actor)

    threads = [
        threading.Thread(target=change, args=arguments) for arguments in (("a", range(2, 22)), ("b", range(32, 52)))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    trace = [(change.old, change.new) for change in reversed(database.changes())]
    assert len(trace) == 41
    assert all(before[1] == after[0] for before, after in itertools.pairwise(trace))  # none is lost
    assert str(database.rule("alice").memory) == trace[-1][1]


def test_hours_add_up_by_user_and_window(database: Database) -> None:
    database.meter(100, {"alice": Metered(0.5, 0.25), "bob": Metered(1, 1)})
    database.meter(100, {"alice": Metered(0.5, 0)})
    database.meter(200, {"alice": Metered(2, 1)})
    assert database.metered(0) == {"alice": Metered(3, 1.25), "bob": Metered(1, 1)}
    assert database.metered(101) == {"alice": Metered(2, 1)}
    assert database.metered(0, ["bob", "eve"]) == {"bob": Metered(1, 1)}
    database.forget_meter(150)
    assert database.metered(0) == {"alice": Metered(2, 1)}


def test_migrations_go_up_and_down_with_data(url: str) -> None:
    database = Database(url)
    database.upgrade("0001")
    with create_engine(url).begin() as connection:
        connection.execute(
            text('INSERT INTO vgpu_user_rules ("user", memory, cores) VALUES (:user, :memory, 25)'),
            {"user": "alice", "memory": 2 * GIB},
        )
    database.upgrade()
    assert database.rule("alice") == Rule(memory=2 * GIB, cores=25)
    database.set_rule("alice", RULE, "root")
    database.set_rule("bob", Rule(gpus=2), "root")
    database.downgrade("0001")
    database.upgrade()
    # hours and gpus had no place
    assert database.rules() == {"alice": Rule(8 * GIB, 37.5, Policy.BURST, ("1GiB-25", "2GiB-50"))}
    assert database.changes()
    database.downgrade("base")
    with pytest.raises(DatabaseError):
        database.rules()
    database.close()


def test_hours_places_and_lifetimes_outlive_the_migrations_that_have_them(database: Database) -> None:
    database.meter(480000, {"alice": Metered(1.5, 0.5)})
    database.queue.join("alice", "", SMALL, {"gpu_slice": "1GiB-25"})
    database.queue.join("bob", "second", LARGE, {})
    database.queue.note_lifetime(60)
    (first, second) = database.queue.entries()
    assert database.queue.move(second, Stage.CALLED, "soon", "GPU-1")
    database.queue.note_standings({first.key: (3, "The turn comes in about a minute."), second.key: (1, "now")})
    before = database.queue.entries()
    # who is called has no number any more
    assert [(entry.number, entry.when) for entry in before] == [(3, "The turn comes in about a minute."), (0, "")]
    for revision in ("0005", "0004", "0003"):
        database.downgrade(revision)
        database.upgrade()
        assert database.queue.entries() == [replace(each, number=0, when="") for each in before]
        assert database.queue.lifetimes() == [60]
    database.downgrade("0002")  # where there was no queue
    database.upgrade()
    assert (database.queue.entries(), database.queue.lifetimes()) == ([], [])
    assert database.metered(480000) == {"alice": Metered(1.5, 0.5)}


def test_the_migrations_make_what_the_models_say(url: str) -> None:
    database = Database(url)
    database.upgrade()
    with create_engine(url).connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": "vgpu_version"})
        assert compare_metadata(context, Base.metadata) == []
    database.close()


def test_times_are_utc_whatever_zone_the_server_is_in(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGTZ", "Asia/Tokyo")
    database = Database(url)
    database.upgrade()
    database.note("root", "alice/", "server", "running", "stopped")
    at = database.changes()[0].at
    assert at.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - at) < timedelta(minutes=1)
    database.close()


def test_the_hubs_own_database_will_do_and_a_newer_one_is_told(url: str) -> None:
    with create_engine(url).begin() as connection:  # as the hub's own alembic leaves it
        connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)"))
        connection.execute(text("INSERT INTO alembic_version VALUES ('f460b0348206')"))
    database = Database(url)
    database.upgrade()
    database.set_rule("alice", RULE, "root")
    with create_engine(url).begin() as connection:
        connection.execute(text("UPDATE vgpu_version SET version_num = '9999'"))
    with pytest.raises(MigrationError, match="9999"):
        database.upgrade()
    database.close()


def test_a_name_that_is_sql_is_a_name(database: Database) -> None:
    name = "'; DROP TABLE vgpu_user_rules; --"
    database.set_rule(name, RULE, name)
    assert database.rules() == {name: RULE}
    assert database.changes()[0].subject == name


def test_hours_are_told_by_day(database: Database) -> None:
    for hour, held in ((24 * 10 - 1, 1.0), (24 * 10, 2.0), (24 * 10 + 23, 3.0), (24 * 11, 4.0)):
        database.meter(hour, {"alice": Metered(held, 1), "bob": Metered(1, 1)})
    assert database.by_day(10, ["alice", "eve"]) == {"alice": {10: Metered(5, 2), 11: Metered(4, 1)}}
    assert database.by_day(12, ["alice"]) == {}
    assert database.by_day(0, []) == {}


SMALL, LARGE = Quota(GIB, 25, Policy.BURST), Quota(4 * GIB, 50, Policy.BURST)


def test_who_waits_comes_back_as_it_was(database: Database) -> None:
    database.queue.join("alice", "", LARGE, {"gpu_slice": "4GiB-50", "image": "torch"})
    database.queue.join("bob", "second", SMALL, {})
    first, second = database.queue.entries()
    assert (first.key, first.waiting.quota, first.stage) == (("alice", ""), LARGE, Stage.WAITING)
    assert first.options == {"gpu_slice": "4GiB-50", "image": "torch"}
    assert database.queue.entry("bob", "second") == second
    assert database.queue.move(second, Stage.CALLED, gpu="GPU-1")
    called = database.queue.entry("bob", "second")
    assert called is not None
    assert (called.stage, called.gpu) == (Stage.CALLED, "GPU-1")
    assert database.queue.leave("alice", "")
    assert not database.queue.leave("alice", "")


def test_which_gpu_is_waited_for_is_kept_and_a_wish_for_another_is_a_new_one(database: Database) -> None:
    alone = replace(LARGE, model="H100", exclusive=True)
    database.queue.join("alice", "", alone, {})
    (entry,) = database.queue.entries()
    assert entry.waiting.quota == alone
    for quota, keeps in ((replace(alone, exclusive=False), True), (alone, False), (replace(alone, model=""), False)):
        since = database.queue.entries()[0].waiting.since
        database.queue.join("alice", "", quota, {})
        assert (database.queue.entries()[0].waiting.since == since) == keeps
    database.queue.join("bob", "", SMALL, {})
    database.queue.join("eve", "", alone, {})
    database.downgrade("0003")
    database.upgrade()
    assert [each.key for each in database.queue.entries()] == [("bob", "")]


def test_less_keeps_the_place_and_more_or_an_end_does_not(database: Database) -> None:
    database.queue.join("alice", "", LARGE, {})
    since = database.queue.entries()[0].waiting.since
    database.queue.join("alice", "", SMALL, {})
    assert database.queue.entries()[0].waiting.since == since
    database.queue.join("alice", "", LARGE, {})
    assert database.queue.entries()[0].waiting.since > since
    entry = database.queue.entries()[0]
    assert database.queue.move(entry, Stage.ENDED, "why")
    assert database.queue.entries()[0].words == "why"
    assert not database.queue.move(entry, Stage.CALLED)  # of what it was before
    database.queue.join("alice", "", SMALL, {})
    assert database.queue.entries()[0].waiting.since > entry.waiting.since
    assert database.queue.entries()[0].words == ""


def test_a_form_that_is_sent_often_at_once_is_one_place(database: Database) -> None:
    with ThreadPoolExecutor(8) as threads:
        joins = [threads.submit(database.queue.join, "alice", "", LARGE, {}) for _ in range(8)]
    assert [join.exception() for join in joins] == [None] * 8
    assert len(database.queue.entries()) == 1


def test_a_user_has_so_many_places_and_no_more(database: Database) -> None:
    for number in range(SERVERS_MAX):
        database.queue.join("eve", f"x{number}", SMALL, {})
    with pytest.raises(TooMany, match="5 servers of yours wait already"):
        database.queue.join("eve", "one-more", SMALL, {})
    database.queue.join("eve", "x0", LARGE, {})  # what is there may change
    database.queue.join("bob", "", SMALL, {})
    assert len(database.queue.entries()) == SERVERS_MAX + 1
    ended = next(entry for entry in database.queue.entries() if entry.waiting.server == "x1")
    database.queue.move(ended, Stage.ENDED, "no luck")  # it does not wait any more
    database.queue.join("eve", "one-more", SMALL, {})


def test_a_row_that_can_not_be_read_keeps_nobody_else(database: Database, url: str) -> None:
    database.queue.join("alice", "", SMALL, {})
    database.queue.join("bob", "", SMALL, {})
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE vgpu_queue SET state = 'dancing' WHERE \"user\" = 'alice'"))
    engine.dispose()
    assert [entry.key for entry in database.queue.entries()] == [("bob", "")]
    assert database.queue.entry("alice", "") is None


def test_the_latest_lifetimes_are_kept(database: Database) -> None:
    for seconds in range(LIFETIMES_KEPT + 5):
        database.queue.note_lifetime(seconds)
    assert sorted(database.queue.lifetimes()) == list(range(5, LIFETIMES_KEPT + 5))


def test_a_lock_that_somebody_keeps_holds_nobody_up_for_ever(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jupyter_vgpu_spawner.database.STATEMENT_MS", 500)
    database = Database(url)
    database.upgrade()
    with create_engine(url).connect() as other:
        if other.dialect.name == "postgresql":
            other.execute(text("LOCK TABLE vgpu_user_rules IN ACCESS EXCLUSIVE MODE"))
        else:
            other.exec_driver_sql("BEGIN IMMEDIATE")
        began = time.monotonic()
        with pytest.raises(DatabaseError):
            database.set_rule("alice", RULE, "root")
        assert time.monotonic() - began < 8
        other.rollback()
    database.set_rule("alice", RULE, "root")
    assert database.rule("alice") == RULE
    database.close()
