"""A signed filter is built anew, from the rows or, when its log has become long, from itself."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence

from ...ports import Reply, Runtime
from .bits import Layers, Mirror
from .items import ITEMS_PER_BREATH, Made, Texts
from .layout import Shape, probe
from .rebuild import ALLOWANCE_MS, Begin, Rebuild
from .signatures import SPAN, Base, Signatures, is_signed, signature_of, texts_of
from .stored import CHUNKS_PER_SEND, EXTEND, LOG_LENGTH, Keys, Refusal, header_of, new_epoch


class SignedRebuild(Rebuild):
    """A rebuild of a signed filter: what is added meanwhile has to be signed, too, and goes into the new log."""

    def __init__(self, keys: Keys, first: Shape, lease: int, runtime: Runtime, secrets: Sequence[bytes]) -> None:
        super().__init__(keys, first, lease, runtime)
        self._secrets = secrets
        self._lineage = self._epoch
        self._complete = True
        self._server = ""
        self._old: Signatures | None = None  # of what is taken over; None: it was added without the secret
        self._before = b""  # the signature of the entry that was taken over last
        self._past = 0  # entries from before the beginning
        self._recent: deque[str] = deque(maxlen=LOG_LENGTH)  # added, maybe not committed: the next rebuild needs them
        self.base: Base | None = None
        self.signatures: Signatures | None = None
        self._waiting: Texts = []  # for the new log
        self._tail = (0, b"")
        self.seal: str = ""

    @property
    def server(self) -> str:
        """The server that the new filter is complete on."""
        return self._server

    def _mirror(self, seq: int) -> Mirror:  # noqa: ARG002 - we counted ourselves
        return Mirror(self._epoch, self._layers, self._tail)

    def _missing(self) -> tuple[str | int, ...]:
        epoch = new_epoch(self._runtime)
        return epoch, Base((self._first,), epoch).text, probe(self._first), 0, 0

    def _note_old(self, server: str, epoch: str, layers: str, *, whole: bool, kept: int) -> None:
        self._server, self._past = server, kept
        if is_signed(layers) and whole:
            self._old = Signatures(self._secrets, self._keys.meta, epoch, layers)

    async def _pause(self, seconds: float) -> None:
        # What Redis says of earlier losses is not signed: as if everything had been lost.
        await super()._pause(max(seconds, self._least_pause))

    _least_pause = 0.0

    async def run(self, items: Made, begin: Begin) -> Mirror:
        self._least_pause = max(begin.lag_ms, self._lease) / 1000
        return await super().run(items, begin)

    async def _take_over(self, entries: list[Reply]) -> None:
        for number, entry in enumerate(entries, self._taken):
            texts = self._opened(bytes(entry), past=number < self._past)
            for text in texts:
                self._layers.add(text)
            if self.base is None:
                self._recent += texts
            else:
                self._waiting += texts
        self._taken += len(entries)

    def _opened(self, entry: bytes, *, past: bool) -> Texts:
        if self._old is None:
            return texts_of(entry)
        text = self._old.opened(self._before, entry)
        self._before = signature_of(entry)
        if text is not None:
            return [text]
        if not past:
            raise Refusal(self._keys.name, "UNSIGNED")
        self._old = None
        return texts_of(entry)

    async def _upload(self) -> None:
        layers = self._layers
        if self.base is None:
            self._waiting = list(self._recent)
            held = len(self._waiting)
            self.base = Base(layers.shapes, self._lineage, held, stored=True, count=layers.count, filled=layers.filled)
            self.signatures = Signatures(self._secrets, self._keys.meta, self._epoch, self.base.text)
            await self._store(self._chunks(self.base, self.signatures), CHUNKS_PER_SEND // SPAN)
        await self._extend()

    def _chunks(self, base: Base, signatures: Signatures) -> Iterator[tuple[str, bytes]]:
        header = header_of(self._epoch)
        for layer, number in base.chunks:
            bits = signed_bits(self._layers, layer, number)
            chunk = header + bits + signatures.chunk(layer, number, bits)
            yield self._keys.chunk(self._epoch, layer, number), chunk

    async def _extend(self) -> None:
        """Append to the new log what waits for it."""
        assert self.signatures is not None  # noqa: S101 - made before
        new_log = EXTEND(self._keys.log_of(self._epoch))
        for start in range(0, len(self._waiting), ITEMS_PER_BREATH):
            texts = self._waiting[start : start + ITEMS_PER_BREATH]
            entries, tail = signed_entries(self.signatures, self._tail, texts)
            await self._runtime.commands.send(new_log(self._tail[0], 2 * ALLOWANCE_MS, *entries))
            self._tail = tail
        self._waiting = []

    def _described(self) -> tuple[str | int, ...]:
        assert self.base is not None  # noqa: S101 - as above
        assert self.signatures is not None  # noqa: S101
        self.seal = self.signatures.seal(self._server, *self._tail) if self._complete else ""
        shapes = self.base.shapes
        measures = self.base.text, probe(shapes[0]), self.base.count, 0, 0, len(self.base.chunks)
        return *measures, int(self._complete), self._tail[0], self.seal

    def _more_keys(self) -> tuple[str, ...]:
        return (self._keys.log_of(self._epoch),)


def signed_entries(
    signatures: Signatures, tail: tuple[int, bytes], texts: Texts
) -> tuple[list[bytes], tuple[int, bytes]]:
    """The entries for *texts* that follow *tail*, and the tail after them."""
    count, before = tail
    entries: list[bytes] = []
    for text in texts:
        entries.append(signatures.entry(before, text))
        before = signature_of(entries[-1])
    return entries, (count + len(entries), before)


def signed_bits(layers: Layers, layer: int, number: int) -> bytes:
    """The bits of one signed chunk."""
    least = number * SPAN
    numbers = range(least, min(least + SPAN, layers.shapes[layer].chunks))
    return b"".join(layers.chunk(layer, each) for each in numbers)


class Fold(SignedRebuild):
    """A rebuild from the filter itself: what is in its log goes into its bits."""

    _load: Callable[[], Awaitable[Mirror | None]]

    def of(self, load: Callable[[], Awaitable[Mirror | None]], lineage: str, *, complete: bool) -> None:
        """Say which filter it is made of."""
        self._load, self._lineage, self._complete = load, lineage, complete

    async def _pause(self, seconds: float) -> None:
        """No rows are read, so none has to be committed before."""

    async def _gather(self, items: Made) -> None:  # noqa: ARG002 - there are none
        mirror = await self._load()
        if mirror is None:
            raise Refusal(self._keys.name, "LOST")
        self._layers = mirror.layers

    def _opened(self, entry: bytes, *, past: bool) -> Texts:
        if self._old is None:
            raise Refusal(self._keys.name, "UNSIGNED")
        return super()._opened(entry, past=past)
