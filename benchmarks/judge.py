"""What does it cost to know that a value comes back as itself? Paid when an entry is filled, never when it is read."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
import pydantic

from benchmarks.common import headline, options, rounds, table
from benchmarks.compare.racing import calls, race_runs
from cacheguard.codec import TAGGED, codec_for

AT = datetime(2024, 7, 1, 12, 30, tzinfo=UTC)


@dataclass
class Line:
    id: int
    name: str
    price: float
    at: datetime


@dataclass
class Circle:
    radius: int


@dataclass
class Square:
    side: int


class Model(pydantic.BaseModel):
    id: int
    name: str
    price: float | None = None


def line(number: int) -> Line:
    return Line(number, f"line number {number}", number / 7, AT)


def lines(count: int) -> list[Line]:
    return [line(number) for number in range(count)]


def rows(count: int) -> list[dict[str, Any]]:
    return [{"id": number, "name": f"line number {number}", "price": number / 7, "at": AT} for number in range(count)]


CASES: dict[str, tuple[Any, Any]] = {
    "100 B": (lines(2), list[Line]),
    "10 kB": (lines(140), list[Line]),
    "100 B, numbers": (list(range(60)), list[int]),
    "10 kB, numbers": (list(range(4000)), list[int]),
    "100 B, pydantic": ([Model(id=1, name="a model", price=1.5), Model(id=2, name="b")], list[Model]),
    "10 kB, pydantic": ([Model(id=number, name=f"model {number}") for number in range(300)], list[Model]),
    "10 kB, a union": ([Circle(1), Square(2)] * 250, list[Circle | Square]),
    "100 B, not annotated": (rows(2), None),
    "10 kB, not annotated": (rows(140), None),
}


def main() -> None:
    """Encoding without a check, a whole fill's encoding, and reading it."""
    chosen = options(__doc__ or "")
    headline(__doc__ or "")
    bare = msgspec.msgpack.Encoder()
    for name, (value, annotation) in CASES.items():
        codec = TAGGED if annotation is None else codec_for(annotation)
        payload = codec.encode(value)
        adapter = pydantic.TypeAdapter(annotation) if "pydantic" in name else None
        times = 10 if len(payload) > 1000 else 200
        contestants = {
            f"{name}: the library alone": calls(adapter.dump_json if adapter else bare.encode, [value] * times),
            f"{name}: stored, checked ({len(payload)} B)": calls(codec.encode, [value] * times),
            f"{name}: read": calls(codec.decode, [payload] * times),
        }
        table(race_runs(contestants, rounds(chosen, 20)), f"{name}: the library alone")


if __name__ == "__main__":
    main()
