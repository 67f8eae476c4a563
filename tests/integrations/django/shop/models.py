from django.db import models


class Label(models.Model):
    text = models.CharField(max_length=50)

    class Meta:
        app_label = "shop"

    def __str__(self) -> str:
        return self.text


class Person(models.Model):
    name = models.CharField(max_length=50)
    email = models.CharField(max_length=50, default="")
    team_id = models.IntegerField(default=0)
    labels = models.ManyToManyField(Label, related_name="people")

    class Meta:
        app_label = "shop"

    def __str__(self) -> str:
        return self.name


class Employee(Person):
    salary = models.IntegerField(default=0)

    class Meta:
        app_label = "shop"


class Stranger(Person):
    class Meta:
        app_label = "shop"
        proxy = True
