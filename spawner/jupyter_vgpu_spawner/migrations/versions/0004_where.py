"""Which GPU somebody waits for: a model, and whether alone."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("vgpu_queue", sa.Column("model", sa.String(64), nullable=False, server_default=""))
    op.add_column("vgpu_queue", sa.Column("exclusive", sa.Boolean, nullable=False, server_default=sa.false()))


def downgrade() -> None:
    # what they want could not be told any more
    op.execute(sa.text("DELETE FROM vgpu_queue WHERE model <> '' OR exclusive"))
    with op.batch_alter_table("vgpu_queue") as table:
        table.drop_column("exclusive")
        table.drop_column("model")
