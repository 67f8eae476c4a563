"""A shared filter where the guard has a secret: what is not signed for its place is answered with "maybe".

Whoever can write to Redis but does not know the secret can make such a filter say "maybe". To make it deny an item that
was added, he can only bring back an older state of it, and that deceives no process which has seen a newer one::

    here:        add x, signed after entry 41 -> entry 42
    attacker:    takes entry 42 away
    elsewhere:   add y, signed after entry 41 -> another entry 42
    here:        entry 42 is not the one this process has seen: "maybe"
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ...errors import CacheGuardError
from ...events import log
from ...ports import Runtime
from .bits import Layers, Mirror
from .info import BloomInfo, info_of
from .items import ITEMS_PER_BREATH, Made, Texts
from .layout import CHUNK_BYTES, HEADER_BYTES, Shape, next_shape, probe
from .rebuild import SILENCE, Begin
from .shared import ATTEMPTS, NOBODY, RELOAD, STATES, Shared
from .signatures import SIGNATURE_BYTES, SPAN, Base, Signatures, is_signed, signature_of
from .signed_rebuild import Fold, SignedRebuild, signed_entries
from .stored import (
    APPEND,
    CHUNKS_PER_SEND,
    LOG_LENGTH,
    ForgedError,
    News,
    Refusal,
    UnusableError,
    header_of,
    new_epoch,
    text_of,
)

MOST_LOGGED = LOG_LENGTH + 32_768  # then the log's entries are moved into the bits, but for the last 65,536
_ADDS_PER_CALL = 400
_LOADS = 3

Tail = tuple[int, bytes]


class SignedMirror(Mirror):
    """A mirror of a filter whose signatures were right."""

    __slots__ = ("base", "layers_text", "sealed", "signatures")

    def __init__(self, epoch: str, base: Base, signatures: Signatures, layers: Layers) -> None:
        super().__init__(epoch, layers)
        self.base: Base = base
        self.signatures: Signatures = signatures
        self.layers_text: str = base.text
        self.sealed: tuple[str, str] = ("", "")
        """The server and the seal that were found right."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the next entry of the log goes."""

    epoch: str
    layers: str
    tail: Tail
    lineage: str
    foreign: bool = False
    fresh: bool = False


class Signed(Shared):
    """A filter in Redis that is signed with the guard's secret."""

    mirror: Mirror
    again: float

    def __init__(self, *args: Any, secrets: Sequence[bytes], **options: Any) -> None:
        super().__init__(*args, **options)
        self._secrets = secrets
        self._place: _Place | None = None
        self._seen: tuple[str, Tail] = ("", (0, b""))  # of an epoch, the newest state that this process knows of
        self._refused = ""  # an epoch that was found to be forged

    # Reading

    def _signatures(self, epoch: str, layers: str) -> Signatures:
        return Signatures(self._secrets, self._keys.meta, epoch, layers)

    def _base(self, news: News) -> Base:
        """The measures of the filter in Redis. Raises `UnusableError` if this process cannot work with them."""
        try:
            base = Base.parse(news.layers)
        except ValueError:
            if is_signed(news.layers):
                raise UnusableError("is signed as this release does not know") from None
            raise UnusableError("is not signed, and this guard has a secret") from None
        self._checked(base.shapes, news)
        return base

    def _usable(self, news: News) -> tuple[Shape, ...]:
        return self._base(news).shapes

    def _is_sound(self, news: News) -> bool:
        self._base(news)
        sealed = self._signatures(news.epoch, news.layers).sealed(news.run, news.seal)
        return sealed is not None and news.epoch != self._refused

    def _learn(self, mirror: Mirror, tail: Tail, news: News, asked: float) -> bool:
        if news.state != "complete" or news.items is None or not isinstance(mirror, SignedMirror):
            return False
        if (news.epoch, news.layers) != (mirror.epoch, mirror.layers_text) or (news.run, news.seal) != mirror.sealed:
            return False
        texts, tail = self._opened(mirror.signatures, tail, news.items)
        with self.lock:
            for text in texts:
                mirror.layers.add(text)
            if tail[0] > mirror.tail[0]:
                mirror.tail = tail
            self._see(mirror.epoch, mirror.tail)
            self._trust(mirror, asked)
        return True

    def _opened(self, signatures: Signatures, tail: Tail, entries: Sequence[bytes]) -> tuple[Texts, Tail]:
        """The items of *entries*, and the tail after them."""
        count, before = tail
        texts: Texts = []
        for entry in entries:
            text = signatures.opened(before, entry)
            if text is None:
                raise self._forged("an added item is not signed as it should be")
            texts.append(text)
            before = signature_of(entry)
        return texts, (count + len(texts), before)

    def _forged(self, what: str) -> ForgedError:
        return ForgedError(f"was written by somebody without the secret, or with another one: {what}")

    def _see(self, epoch: str, tail: Tail) -> None:
        if self._seen[0] != epoch or tail[0] > self._seen[1][0]:
            self._seen = (epoch, tail)

    async def _confirm(self, runtime: Runtime) -> Mirror | None:
        try:
            return await super()._confirm(runtime)
        except ForgedError as error:
            await self._refuse(runtime, error)
            return None

    async def _refuse(self, runtime: Runtime, error: ForgedError) -> None:
        """Trust this epoch no longer; say so once."""
        epoch, self.mirror = self._seen_epoch, Mirror("", Layers(()))
        if self._refused != epoch:
            self._refused = epoch
            await self._lose(runtime, str(error))
        self.rest(runtime, RELOAD)

    _seen_epoch = ""  # the epoch that was looked at last

    async def _ask(self, runtime: Runtime, epoch: str, seq: int, lease: int) -> News:
        seen = self._seen
        news = await super()._ask(runtime, epoch, seq, lease)
        self._seen_epoch = news.epoch
        if news.state == "complete" and news.epoch == seen[0] and news.seq < seen[1][0]:
            raise self._forged("an older state of it is in Redis")
        return news

    async def _load(self, runtime: Runtime, news: News) -> Mirror | None:
        for _ in range(_LOADS):
            mirror = await self._read(runtime, news)
            if mirror is None:
                epoch, news = news.epoch, await self._ask(runtime, "", 0, 0)
                if news.epoch == epoch or news.state != "complete":
                    return None
                continue
            asked = runtime.now()
            later = await self._ask(runtime, mirror.epoch, mirror.tail[0], self._lease)
            if self._learn(mirror, mirror.tail, later, asked):
                with self.lock:
                    self.mirror = mirror
                self._refused = ""
                self._note_shape(mirror.base.shapes)
                return mirror
            if later.state != "complete":
                return None
            news = later
        return None

    async def _read(self, runtime: Runtime, news: News, *, sealed: bool = True) -> SignedMirror | None:
        """Fetch the whole filter, as far as *news* knows of it; None if it was replaced meanwhile, or lacks something.

        Raises `ForgedError` for whatever is not signed for its place. *sealed*: the seal, too, has to be right.
        """
        base = self._base(news)
        signatures = self._signatures(news.epoch, news.layers)
        mirror = SignedMirror(news.epoch, base, signatures, Layers(base.shapes))
        seen, newest = self._seen
        marks = dict([newest]) if seen == news.epoch and newest[0] <= news.seq else {}
        if sealed:
            declared = signatures.sealed(news.run, news.seal)
            if declared is None:
                raise self._forged("it was declared complete by nobody who knows the secret")
            mirror.sealed = (news.run, news.seal)
            if marks.setdefault(*declared) != declared[1]:
                raise self._forged("it was declared complete in another state")
        try:
            if not await self._fetch_signed(runtime, mirror):
                await self._lacking(runtime, news)
                return None
            await self._fetch_log(runtime, mirror, news.seq, marks)
        except ForgedError:
            # Or it was replaced while it was read.
            later = await self._ask(runtime, "", 0, 0)
            if later.epoch != news.epoch or later.state == "damaged":
                return None
            raise
        return mirror

    async def _lacking(self, runtime: Runtime, news: News) -> None:
        """A chunk is not there: it was lost, or the filter was replaced."""
        later = await self._ask(runtime, "", 0, 0)
        if later.epoch == news.epoch:
            await self._damage(runtime, news.epoch)

    async def _fetch_signed(self, runtime: Runtime, mirror: SignedMirror) -> bool:
        """Read every chunk; False if one is not there."""
        places, size, header = mirror.base.chunks, CHUNKS_PER_SEND // SPAN, header_of(mirror.epoch)
        for start in range(0, len(places), size):
            part = places[start : start + size]
            chunks = await runtime.commands.send(
                *(("GET", self._keys.chunk(mirror.epoch, layer, number)) for layer, number in part)
            )
            for (layer, number), chunk in zip(part, chunks, strict=True):
                if chunk is None:
                    return False
                self._take(mirror, layer, number, bytes(chunk), header)
            await runtime.sleep(0)
        mirror.layers.count, mirror.layers.filled = mirror.base.count, mirror.base.filled
        return True

    def _take(self, mirror: SignedMirror, layer: int, number: int, chunk: bytes, header: bytes) -> None:
        bits, signature = chunk[HEADER_BYTES:-SIGNATURE_BYTES], chunk[-SIGNATURE_BYTES:]
        least = number * SPAN
        numbers = range(least, min(least + SPAN, mirror.base.shapes[layer].chunks))
        sound = chunk[:HEADER_BYTES] == header and len(bits) == len(numbers) * CHUNK_BYTES
        if not sound or not mirror.signatures.is_chunk(layer, number, bits, signature):
            raise self._forged("a part of its bits is not signed as it should be")
        for place, each in enumerate(numbers):
            mirror.layers.load(layer, each, bits[place * CHUNK_BYTES : (place + 1) * CHUNK_BYTES])

    async def _fetch_log(self, runtime: Runtime, mirror: SignedMirror, until: int, marks: dict[int, bytes]) -> None:
        """Read the log's first *until* entries; *marks* are signatures that must be there, by number of entries."""
        held = mirror.base.held
        while mirror.tail[0] < until:
            start = mirror.tail[0]
            end = min([start + ITEMS_PER_BREATH, until, *(count for count in marks if count > start)])
            (entries,) = await runtime.commands.send(("LRANGE", self._keys.log, start, end - 1))
            texts, tail = self._opened(mirror.signatures, mirror.tail, [bytes(entry) for entry in entries])
            if tail[0] < end or marks.get(end, tail[1]) != tail[1]:
                raise self._forged("its log of added items is not what it was")
            for text in texts[max(0, held - start) :]:
                mirror.layers.add(text)
            mirror.tail = tail
            await runtime.sleep(0)
        if max(marks, default=0) > until:
            raise self._forged("an older state of it is in Redis")

    # Adding

    async def add(self, runtime: Runtime, texts: Texts) -> float:
        self._note(texts)
        waits_until = -math.inf
        for start in range(0, len(texts), _ADDS_PER_CALL):
            waits_until = max(waits_until, await self._append(runtime, texts[start : start + _ADDS_PER_CALL]))
        return waits_until

    async def _append(self, runtime: Runtime, texts: Texts) -> float:
        for attempt in range(ATTEMPTS):
            place = self._place or self._new_place(runtime)
            entries = self._entries(place, texts)
            (reply,) = await runtime.commands.send(
                APPEND(self._keys.meta, self._keys.log, self._keys.side)(
                    place.epoch,
                    place.layers,
                    *place.tail,
                    probe(self._shapes_of(place)[0]),
                    self._lease,
                    int(place.fresh),
                    int(place.foreign),
                    LOG_LENGTH,
                    *entries,
                )
            )
            answered = runtime.now()
            status, wait, server, epoch, layers, count, last, probe_text = reply
            now = self._found(text_of(epoch), text_of(layers), (count, signature_of(bytes(last))), text_of(probe_text))
            # Sent twice, it is found to have been done.
            if text_of(status) == "OK" or (text_of(status) == "STALE" and entries and bytes(last) == entries[-1]):
                self._place, self._met = now, True
                self._witness_add(now.lineage, text_of(server))
                if not now.foreign:
                    with self.lock:
                        self._see(now.epoch, now.tail)
                    await self._fold_if_due(runtime, now)
                # What Redis says of leases is not signed: at least our own is always waited for.
                return answered + max(wait + 1 if wait else 0, self._lease) / 1000
            if text_of(status) == "NONE":
                self._place = None
                if self._met:
                    await self._lose(runtime)
            else:
                self._place = now
            if attempt:  # others add, too
                await runtime.sleep(runtime.random() * min(attempt, 20) / 1000)
        raise self._gave_up()

    def _new_place(self, runtime: Runtime) -> _Place:
        """A filter that is not there yet: the call that uses this creates it."""
        epoch = new_epoch(runtime)
        return _Place(epoch, Base((self._first,), epoch).text, (0, b""), epoch, fresh=True)

    def _found(self, epoch: str, layers: str, tail: Tail, probe_text: str) -> _Place:
        """The place after what is in Redis; of a filter without our signature or hash functions, it is foreign."""
        try:
            base = Base.parse(layers)
            foreign = probe(base.shapes[0]) != probe_text
        except ValueError:
            return _Place(epoch, layers, tail, layers, foreign=True)
        return _Place(epoch, layers, tail, base.lineage, foreign)

    def _shapes_of(self, place: _Place) -> tuple[Shape, ...]:
        try:
            return Base.parse(place.layers).shapes
        except ValueError:
            return (self._first,)

    def _entries(self, place: _Place, texts: Texts) -> list[bytes]:
        if not is_signed(place.layers):  # those without the secret have to read them
            return [text.encode() for text in texts]
        return signed_entries(self._signatures(place.epoch, place.layers), place.tail, texts)[0]

    async def _fold_if_due(self, runtime: Runtime, place: _Place) -> None:
        """Move the entries of a long log into the bits. The items are added, whatever comes of it."""
        if place.tail[0] < MOST_LOGGED:
            return
        try:
            await self._fold(runtime, place)
        except ForgedError as error:
            await self._refuse(runtime, error)
        except (CacheGuardError, UnusableError) as error:
            log.debug("the log of Bloom filter %r stays as long as it is: %s", self._keys.name, error)

    async def _fold(self, runtime: Runtime, place: _Place) -> None:
        news = await self._ask(runtime, "", 0, 0)
        if news.epoch != place.epoch or news.state == "damaged":
            return
        complete = news.state == "complete" and self._is_sound(news)
        fold = Fold(self._keys, self._first, self._lease, runtime, self._secrets)
        fold.of(partial(self._read, runtime, news, sealed=complete), Base.parse(news.layers).lineage, complete=complete)
        mirror = await fold.run((), Begin(0, int(SILENCE * 1000), place.epoch))
        self._take_place_of(mirror, fold)
        if complete:
            self._adopt_signed(mirror, fold)

    # Building

    async def mark_complete(self, runtime: Runtime) -> None:
        for _ in range(_LOADS):
            seen, newest = self._seen
            news = await self._ask(runtime, "", 0, 0)
            if news.state == "none" or not news.run:
                await self._mark(runtime, "", "", "")  # which says what is wrong
            base = self._base(news)
            if news.state == "complete" and self._is_sound(news):
                self._witness = NOBODY
                self.again = -math.inf
                return
            older = news.epoch == seen and news.seq < newest[0]
            if older or self._witness not in (NOBODY, (base.lineage, news.run)):
                self._witness = NOBODY
                raise Refusal(self._keys.name, "CHANGED")
            if news.state == "damaged":
                raise Refusal(self._keys.name, "DAMAGED")
            try:
                mirror = await self._read(runtime, news, sealed=False)
            except ForgedError as error:
                await self._refuse(runtime, error)
                raise Refusal(self._keys.name, "FORGED") from error
            if mirror is not None:
                witness = self._witness
                try:
                    await self._mark(runtime, news.epoch, news.run, mirror.signatures.seal(news.run, *mirror.tail))
                except Refusal as refusal:
                    if refusal.outcome != "CHANGED":
                        raise
                    self._witness = witness
                    continue
                self._refused = ""
                return
        raise Refusal(self._keys.name, "CHANGED")

    async def rebuild(self, runtime: Runtime, items: Made, begin: Begin) -> None:
        rebuild = SignedRebuild(self._keys, self._first, self._lease, runtime, self._secrets)
        mirror = await rebuild.run(items, begin)
        self._take_place_of(mirror, rebuild)
        self._adopt_signed(mirror, rebuild)
        self._refused = ""

    def _take_place_of(self, mirror: Mirror, rebuild: SignedRebuild) -> None:
        assert rebuild.base is not None  # noqa: S101 - it has run
        self._place = _Place(mirror.epoch, rebuild.base.text, mirror.tail, rebuild.base.lineage)
        with self.lock:
            self._seen = (mirror.epoch, mirror.tail)

    def _adopt_signed(self, mirror: Mirror, rebuild: SignedRebuild) -> None:
        assert rebuild.base is not None  # noqa: S101 - as above
        assert rebuild.signatures is not None  # noqa: S101
        signed = SignedMirror(mirror.epoch, rebuild.base, rebuild.signatures, mirror.layers)
        signed.tail, signed.sealed = mirror.tail, (rebuild.server, rebuild.seal)
        witness = self._witness
        self._adopt(signed)
        if isinstance(rebuild, Fold):
            self._witness = witness

    def _info(self, news: News) -> BloomInfo:
        base = self._base(news)
        state = STATES[news.state]
        if news.epoch == self._refused or (state == "complete" and not self._is_sound(news)):
            state = "lost"
        count, shapes = base.count + max(0, news.seq - base.held), list(base.shapes)
        while sum(shape.capacity for shape in shapes) < count:  # as every mirror has grown
            shapes.append(next_shape(shapes))
        return info_of(self._keys.name, state, self._first, news.epoch, count, shapes)
