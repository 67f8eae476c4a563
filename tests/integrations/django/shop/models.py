from typing import Any

from django.db import models


class Label(models.Model):
    text: Any = models.CharField(max_length=50)

    class Meta:
        app_label = "shop"

    def __str__(self) -> str:
        return str(self.text)


class Person(models.Model):
    name: Any = models.CharField(max_length=50)
    email: Any = models.CharField(max_length=50, default="")
    team_id: Any = models.IntegerField(default=0)
    labels = models.ManyToManyField(Label, related_name="people")

    class Meta:
        app_label = "shop"

    def __str__(self) -> str:
        return str(self.name)


class Employee(Person):
    salary: Any = models.IntegerField(default=0)

    class Meta:
        app_label = "shop"


class Stranger(Person):
    class Meta:
        app_label = "shop"
        proxy = True
