"""Where those who wait stand, for the spawn page."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("vgpu_queue", sa.Column("number", sa.Integer, nullable=False, server_default="0"))
    op.add_column("vgpu_queue", sa.Column("forecast", sa.String(1024), nullable=False, server_default=""))


def downgrade() -> None:
    with op.batch_alter_table("vgpu_queue") as table:
        table.drop_column("number")
        table.drop_column("forecast")
