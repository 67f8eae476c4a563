"""The tables of the shop."""

from __future__ import annotations

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from cacheguard_sqlalchemy import outbox_table


class Model(DeclarativeBase):
    """Everything that `create_all` makes."""


class Product(Model):
    """Something that is sold."""

    __tablename__ = "products"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    category: Mapped[str] = mapped_column(index=True)
    cents: Mapped[int]


outbox = outbox_table(Model.metadata)
