"""How many servers of a user may have a GPU at once."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("vgpu_user_rules", sa.Column("gpus", sa.Integer))


def downgrade() -> None:
    with op.batch_alter_table("vgpu_user_rules") as table:
        table.drop_column("gpus")
    # a rule that said nothing else
    op.execute(
        sa.text(
            "DELETE FROM vgpu_user_rules WHERE memory IS NULL AND cores IS NULL AND policy IS NULL"
            " AND slices IS NULL AND hours IS NULL"
        )
    )
