"""GPU-hours: a quota of them, and what was used."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    with op.batch_alter_table("vgpu_user_rules") as table:
        table.add_column(sa.Column("hours", sa.Float))
    op.create_table(
        "vgpu_meter",
        sa.Column("user", sa.String(255), primary_key=True),
        sa.Column("hour", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("held", sa.Float, nullable=False),
        sa.Column("used", sa.Float, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("vgpu_meter")
    with op.batch_alter_table("vgpu_user_rules") as table:
        table.drop_column("hours")
