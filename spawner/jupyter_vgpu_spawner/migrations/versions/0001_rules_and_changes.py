"""Users' quotas and the audit log."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "vgpu_user_rules",
        sa.Column("user", sa.String(255), primary_key=True),
        sa.Column("memory", sa.BigInteger),
        sa.Column("cores", sa.Float),
        sa.Column("policy", sa.String(16)),
        sa.Column("slices", sa.JSON),
    )
    op.create_table(
        "vgpu_changes",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.String(255), nullable=False),
        sa.Column("subject", sa.String(255), nullable=False),
        sa.Column("field", sa.String(32), nullable=False),
        sa.Column("old", sa.String(1024)),
        sa.Column("new", sa.String(1024)),
    )
    op.create_index("ix_vgpu_changes_at", "vgpu_changes", ["at"])


def downgrade() -> None:
    op.drop_table("vgpu_changes")
    op.drop_table("vgpu_user_rules")
