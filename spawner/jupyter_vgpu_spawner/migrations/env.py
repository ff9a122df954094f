"""What alembic runs: the migrations, in the connection that Database gives."""

from alembic import context

connection = context.config.attributes["connection"]
# SQLite changes a table by making it anew
context.configure(connection=connection, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
