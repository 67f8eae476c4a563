"""Where added items go in Redis."""

from __future__ import annotations

from struct import Struct

from ...ports import Runtime, ScriptCall
from .items import Texts
from .layout import Hashes, Shape, chunk_and_bit, chunks_of, describe, hashes_of, next_shape, parse, positions, probe
from .stored import ADD, GROW, LOG_LENGTH, Keys, header_of, new_epoch

ITEMS_PER_CALL = 50
_BITS_PER_CALL = 1000


class Plan:
    """Where items go: the epoch and the layers of the filter in Redis. Without `shapes`, they are not ours to fill."""

    __slots__ = ("epoch", "fresh", "hashes", "items_per_call", "layers", "probe", "shapes")

    epoch: str
    fresh: bool
    shapes: tuple[Shape, ...]

    def __init__(self, epoch: str, shapes: tuple[Shape, ...], *, fresh: bool = False) -> None:
        self.epoch, self.shapes, self.fresh = epoch, shapes, fresh
        self.layers: str = describe(shapes)
        self.probe: str = probe(shapes[0]) if shapes else ""
        self.hashes: tuple[Hashes, ...] = tuple(map(hashes_of, shapes))
        bits = sum(shape.slices for shape in shapes) or 1
        self.items_per_call: int = max(1, min(ITEMS_PER_CALL, _BITS_PER_CALL // bits))

    @classmethod
    def new(cls, runtime: Runtime, first: Shape) -> Plan:
        """A filter that is not there yet: the call that uses this plan creates it."""
        return cls(new_epoch(runtime), (first,), fresh=True)

    @classmethod
    def read(cls, epoch: str, layers: str, expected: str) -> Plan:
        """The filter that Redis has: its epoch, its layers and its probe as they stand there."""
        try:
            shapes = parse(layers)
        except ValueError:
            return cls._foreign(epoch, layers)
        return cls(epoch, shapes) if probe(shapes[0]) == expected else cls._foreign(epoch, layers)

    @classmethod
    def _foreign(cls, epoch: str, layers: str) -> Plan:
        plan = cls(epoch, ())
        plan.layers = layers
        return plan

    def grown(self) -> Plan:
        """The same filter with one layer more."""
        return Plan(self.epoch, (*self.shapes, next_shape(self.shapes)))


def add_call(plan: Plan, keys: Keys, texts: Texts, lease: int, *, create: bool) -> ScriptCall:
    """The call that adds *texts*; *create*: it may make the filter if there is none."""
    chunk_keys: dict[str, int] = {}
    slices = [shape.slices for shape in plan.shapes]
    packed = Struct(f">{2 * sum(slices)}H")
    args: list[str | bytes | int] = []
    for text in texts:
        pairs: list[int] = []
        for layer, (shape, hashes) in enumerate(zip(plan.shapes, plan.hashes, strict=True)):
            for position in positions(shape, hashes, text):
                chunk, bit = chunk_and_bit(position)
                key = keys.chunk(plan.epoch, layer, chunk)
                pairs += chunk_keys.setdefault(key, len(chunk_keys) + 4), bit
        args += text, packed.pack(*pairs)
    room, total = (plan.shapes[-1].capacity, chunks_of(plan.shapes)) if plan.shapes else (0, 0)
    return ADD(keys.meta, keys.log, keys.side, *chunk_keys)(
        plan.epoch,
        header_of(plan.epoch),
        plan.layers,
        plan.probe,
        ",".join(map(str, slices)),
        lease,
        int(create),
        room,
        total,
        LOG_LENGTH,
        *args,
    )


def grow_call(plan: Plan, grown: Plan, keys: Keys) -> ScriptCall:
    """The call that gives the filter of *plan* the layers of *grown*, if nobody else was faster."""
    return GROW(keys.meta)(plan.epoch, plan.layers, grown.layers, grown.shapes[-1].capacity, chunks_of(grown.shapes))
