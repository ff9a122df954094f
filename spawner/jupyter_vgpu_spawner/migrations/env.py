"""What alembic runs: the migrations, in the connection that Database gives."""

from alembic import context

connection = context.config.attributes["connection"]
# SQLite changes a table by making it anew. The version's table is our own, for the database may be the hub's too.
context.configure(connection=connection, render_as_batch=True, version_table="vgpu_version")
with context.begin_transaction():
    context.run_migrations()
