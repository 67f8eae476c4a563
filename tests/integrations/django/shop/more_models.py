"""Models that are related in every way; only the tests that name them use them."""

from __future__ import annotations

from typing import Any

from django.db import models

from .models import Label


class Org(models.Model):  # noqa: DJ008 - nobody shows them
    slug: Any = models.CharField(max_length=20, unique=True, default="")

    class Meta:
        app_label = "shop"


class Member(models.Model):  # noqa: DJ008 - nobody shows them
    email: Any = models.CharField(max_length=50)
    level: Any = models.IntegerField(default=0)
    price: Any = models.DecimalField(max_digits=6, decimal_places=2, default=0)
    org: Any = models.ForeignKey(Org, null=True, on_delete=models.SET_NULL)
    home: Any = models.ForeignKey(
        Org, null=True, on_delete=models.SET(None), to_field="slug", related_name="at_home", db_constraint=False
    )
    boss: Any = models.ForeignKey("self", null=True, on_delete=models.SET_NULL, related_name="team")
    labels: Any = models.ManyToManyField(Label, related_name="members")
    friends: Any = models.ManyToManyField("self")
    follows: Any = models.ManyToManyField("self", symmetrical=False, related_name="followers")
    clubs: Any = models.ManyToManyField("Club", through="Membership", related_name="members")

    class Meta:
        app_label = "shop"

    @property
    def domain(self) -> str:
        return str(self.email).rpartition("@")[2]


class Junior(Member):  # noqa: DJ008 - as above
    toy: Any = models.CharField(max_length=20, default="")

    class Meta:
        app_label = "shop"


class Guest(Member):  # noqa: DJ008 - as above
    class Meta:
        app_label = "shop"
        proxy = True


class Club(models.Model):  # noqa: DJ008 - nobody shows them
    class Meta:
        app_label = "shop"


class Membership(models.Model):  # noqa: DJ008 - nobody shows them
    member: Any = models.ForeignKey(Member, on_delete=models.CASCADE)
    club: Any = models.ForeignKey(Club, on_delete=models.CASCADE)

    class Meta:
        app_label = "shop"


class Log(models.Model):  # noqa: DJ008 - nobody shows them
    text: Any = models.CharField(max_length=20)

    class Meta:
        app_label = "shop"
