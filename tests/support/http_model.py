"""What a correct shared HTTP cache may answer: the plainest model, which shares no code with the middleware.

The origin's pages say what they are: every byte and `X-Rep` name resource, version, language, user and host. The
history says which versions there were when, and what was invalidated. So each answer can be judged by itself: it is
one of the versions allowed in its time, whole, for this user and in this language, or a part of it, or a 304 about it.
Time is a counter of events. Nothing here knows how a cache works.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime

BLOCKS = 6  # of a page's body
LONGEST = 10_000  # bytes; no page is that long
OLDEST = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
NOBODY = "nobody"

Fields = dict[str, str]


@dataclass(frozen=True, slots=True)
class Kind:
    """What the origin says of a resource, and so what a cache may do with it.

    Args:
        control: its Cache-Control.
        fresh: a stored response may be served without a look at the origin.
        late: a stored response may be served while it is validated.
        on_error: a stored response may replace an answer of a failing origin.
        personal: the page differs by user, and nothing of the response names that.
        stored: it may be stored, so that the next visitor needs no run.
        tag: ``strong``, ``weak`` or ``""``.
        dated: it has Last-Modified.
        varies: by Accept-Language.
        age: it has come a long way, in seconds.
        ranges: the origin answers Range with 206.
        restless: which fields Vary names differs by version.
        cookie: the response sets one.
    """

    control: str
    fresh: bool = True
    late: bool = False
    on_error: bool = True
    personal: bool = False
    stored: bool = True
    tag: str = "strong"
    dated: bool = False
    varies: bool = False
    age: int = 0
    ranges: bool = False
    restless: bool = False
    cookie: bool = False


KINDS = {
    "fresh": Kind("max-age=60"),
    "weak": Kind("max-age=60", tag="weak"),
    "bare": Kind("max-age=60", tag=""),
    "dated": Kind("max-age=60", tag="", dated=True),
    "ranged": Kind("max-age=60", ranges=True),
    "language": Kind("max-age=60", varies=True),
    "restless": Kind("max-age=60", varies=True, restless=True),
    "stale": Kind("max-age=1", fresh=False, age=5),
    "behind": Kind("max-age=1, stale-while-revalidate=60", late=True, age=5),
    "checked": Kind("no-cache", fresh=False, on_error=False),
    "private": Kind("private, max-age=60", fresh=False, on_error=False, personal=True, stored=False),
    "unstored": Kind("no-store", fresh=False, on_error=False, personal=True, stored=False),
    "cookie": Kind("max-age=60", fresh=False, on_error=False, personal=True, stored=False, cookie=True),
}


@dataclass(frozen=True, slots=True)
class Rep:
    """One representation of a resource."""

    resource: str
    version: int
    language: str
    user: str
    host: str

    def __str__(self) -> str:
        return f"{self.resource}|{self.version}|{self.language}|{self.user}|{self.host}"

    @property
    def body(self) -> bytes:
        # Versions differ in length, and every block in its number.
        return b"".join(b"[%s|%d]" % (str(self).encode(), n) for n in range(BLOCKS + self.version % 3))

    def tag(self, kind: Kind) -> str | None:
        """Its ETag."""
        return None if not kind.tag else ("W/" if kind.tag == "weak" else "") + f'"{self}"'

    def date(self, kind: Kind) -> str | None:
        """Its Last-Modified."""
        when = datetime.fromtimestamp(OLDEST + self.version * 100, UTC)
        return format_datetime(when, usegmt=True) if kind.dated else None


def rep_of(text: str) -> Rep:
    """What `X-Rep` names. Raises `ValueError` for anything else."""
    resource, version, language, user, host = text.split("|")
    return Rep(resource, int(version), language, user, host)


def language_of(accepted: str | None) -> str:
    """What the origin chooses: of the languages with the greatest weight the first one."""
    best, chosen = 0.0, "en"
    for each in (accepted or "").split(","):
        name, _, weight = each.strip().partition(";q=")
        value = float(weight or 1)
        if name and value > best:
            best, chosen = value, name.lower()
    return chosen


def weak(tag: str | None) -> str | None:
    """The tag as what compresses or rewrites a page leaves it."""
    return None if tag is None else "W/" + tag.removeprefix("W/")


def other(tag: str | None) -> str | None:
    """A tag that the page does not have."""
    return None if tag is None else tag[:-1] + '-other"'


def same_tag(one: str, other: str) -> bool:
    """RFC 9110 §8.8.3.2, the weak comparison."""
    return one.removeprefix("W/") == other.removeprefix("W/")


@dataclass(slots=True)
class Question:
    """A request, as the model needs it."""

    number: int
    worker: int
    resource: str
    user: str | None
    fields: Fields
    method: str = "GET"
    stranger: str | None = None  # the host that a client without trust claims
    begun: int = 0
    ended: int = 0

    @property
    def may_have_part(self) -> bool:
        return "range" in self.fields and self.method == "GET"


@dataclass(slots=True)
class Answer:
    """What came of a request that was not given up."""

    status: int = 0
    fields: Fields = field(default_factory=dict)
    body: bytes = b""
    complete: bool = False
    error: str = ""  # an exception came out of the application
    hung: bool = False


@dataclass(slots=True)
class Run:
    """One run of the application."""

    question: int
    resource: str
    begun: int
    ended: int = -1  # not yet
    failed: bool = False

    def overlaps(self, question: Question) -> bool:
        """Whether it was under way while the question was."""
        return self.begun <= question.ended and (self.ended < 0 or self.ended >= question.begun)


@dataclass(slots=True)
class Forgetting:
    """An invalidation: from its end on, nothing older than what there was at its beginning may come."""

    resource: str
    worker: int
    begun: int
    ended: int = -1
    heard: int = -1  # when the other workers had heard of it

    def over(self, worker: int) -> int:
        """When it counts for *worker*; -1: not yet."""
        return self.ended if worker == self.worker else self.heard


class History:
    """What has happened: the versions, the runs and the invalidations of every resource."""

    def __init__(self, kinds: dict[str, str], rewritten: dict[str, str]) -> None:
        self.kinds = {name: KINDS[kind] for name, kind in kinds.items()}
        self.rewritten = rewritten  # what the origin makes of the tag in a 304: "weak", "other", or "" for nothing
        self.moment = 0
        self.changes: dict[str, list[tuple[int, int]]] = {name: [(0, 1)] for name in kinds}
        self.runs: list[Run] = []
        self.forgettings: list[Forgetting] = []
        self.failing: set[str] = set()  # resources for which the origin has failed
        self.odd: set[str] = set()  # resources that were answered by something that cannot be stored

    def tick(self) -> int:
        """The next moment."""
        self.moment += 1
        return self.moment

    def version(self, resource: str, moment: int | None = None) -> int:
        """The version at *moment*, now by default."""
        found = 1
        for when, version in self.changes[resource]:
            if moment is None or when <= moment:
                found = version
        return found

    def change(self, resource: str) -> int:
        """A new version."""
        self.changes[resource].append((self.tick(), self.version(resource) + 1))
        return self.version(resource)

    def begin_forgetting(self, resource: str, worker: int) -> Forgetting:
        """An invalidation begins. Its caller sets when it has ended, and when others have heard of it."""
        self.forgettings.append(Forgetting(resource, worker, self.tick()))
        return self.forgettings[-1]

    def oldest(self, question: Question) -> int:
        """The oldest version that may answer *question*."""
        resource, kind = question.resource, self.kinds[question.resource]
        floor = 1
        for each in self.forgettings:
            if each.resource == resource and 0 <= each.over(question.worker) < question.begun:
                floor = max(floor, self.version(resource, each.begun))
        control = question.fields.get("cache-control", "")
        asks_for_proof = control in {"no-cache", "max-age=0"}
        may_be_old = kind.fresh or kind.late or (kind.on_error and control == "max-stale")
        if (may_be_old and not asks_for_proof) or (kind.on_error and self.failed(question)):
            return floor
        # It has to be validated, or made. A request may share what another run under way will bring.
        since = question.begun
        if kind.stored and kind.on_error:
            since = min([since, *(run.begun for run in self.runs_of(question))])
        return max(floor, self.version(resource, since))

    def runs_of(self, question: Question) -> list[Run]:
        """The runs for its resource that were under way in its time."""
        return [run for run in self.runs if run.resource == question.resource and run.overlaps(question)]

    def failed(self, question: Question) -> bool:
        """Whether the origin failed in its time."""
        return bool(self.failing) and any(run.failed for run in self.runs_of(question))


def judged(history: History, question: Question, answer: Answer, public: str) -> str | None:
    """What is wrong with *answer*; None if the model allows it.

    Args:
        public: the host that the resource has for its visitors.
    """
    failed = history.failed(question)
    if answer.hung:
        return "no answer came"
    if answer.error or not answer.complete:
        return None if failed else answer.error or "the answer broke off"
    if answer.status in _OTHERS:
        return _OTHERS[answer.status](history, question, answer)
    if answer.status not in {200, 206, 304}:
        return f"status {answer.status}"
    try:
        rep = rep_of(answer.fields["x-rep"])
    except (KeyError, ValueError):
        return f"it does not say what it is: {answer.fields}"
    return (
        _judged_rep(history, question, rep, public)
        or _judged_fields(history, question, answer, rep)
        or _judged_body(history, question, answer, rep)
    )


def _judged_failure(history: History, question: Question, answer: Answer) -> str | None:
    runs = [run for run in history.runs_of(question) if run.failed]
    if not runs:
        return "a failure that did not happen in its time"
    own = answer.body.decode()
    if question.method == "HEAD":
        return None if not own else "HEAD has a body"
    return None if own in {f"failure {run.question}" for run in runs} else f"{own!r} is of another time"


def _judged_unwilling(_: History, question: Question, __: Answer) -> str | None:
    return None if question.fields.get("cache-control") == "only-if-cached" else "504 for nothing"


def _judged_outside(_: History, question: Question, answer: Answer) -> str | None:
    if not question.may_have_part:
        return "416 without Range"
    first = re.fullmatch(r"bytes=(\d+)-\d*", question.fields["range"])
    return None if first and int(first[1]) >= LONGEST and not answer.body else "416 for a range that there is"


_OTHERS = {503: _judged_failure, 504: _judged_unwilling, 416: _judged_outside}


def _judged_rep(history: History, question: Question, rep: Rep, public: str) -> str | None:
    """Whether this representation may answer at all."""
    kind = history.kinds[question.resource]
    if rep.resource != question.resource:
        return f"it is {rep.resource}, asked was {question.resource}"
    if rep.host != public and (question.stranger is None or rep.host != question.stranger):
        return f"it was made for the host {rep.host}"
    # Only a page that differs by user, or an answer to the authorized, names a user.
    if rep.user != (question.user or NOBODY) and (kind.personal or rep.user != NOBODY):
        return f"it is for {rep.user}, asked has {question.user or NOBODY}"
    wanted = language_of(question.fields.get("accept-language")) if kind.varies else "en"
    if rep.language != wanted:
        return f"it is in {rep.language}, wanted is {wanted}"
    oldest, newest = history.oldest(question), history.version(question.resource, question.ended)
    if not oldest <= rep.version <= newest:
        return f"it is version {rep.version}, allowed are {oldest} to {newest}"
    return None


def _judged_fields(history: History, question: Question, answer: Answer, rep: Rep) -> str | None:
    """Whether the validators are those of this representation."""
    kind, tag = history.kinds[question.resource], answer.fields.get("etag")
    right = rep.tag(kind)
    weakened = history.rewritten[question.resource] == "weak" and tag == weak(right)
    another = history.rewritten[question.resource] == "other" and answer.status == 304 and tag == other(right)
    if tag != right and not weakened and not another:
        return f"ETag {tag} is not the one of {rep}"
    if answer.fields.get("last-modified") != rep.date(kind):
        return f"Last-Modified {answer.fields.get('last-modified')} is not the one of {rep}"
    return None


def _judged_body(history: History, question: Question, answer: Answer, rep: Rep) -> str | None:
    """Whether the body is the whole of this representation, or the part that was asked for, or rightly none."""
    kind, length = history.kinds[question.resource], answer.fields.get("content-length")
    if answer.status == 304 and not _has_it(question, rep, kind):
        return f"304, but the client does not have {rep}"
    if answer.status == 206:
        return _judged_part(question, answer, rep, kind)
    expected = b"" if answer.status == 304 or question.method == "HEAD" else rep.body
    if answer.body != expected:
        return f"{len(answer.body)} of {len(expected)} bytes, or others: {answer.body[:60]!r}"
    if answer.status != 304 and length not in {None, str(len(rep.body))}:
        return f"Content-Length {length}, the page has {len(rep.body)}"
    return None


def _has_it(question: Question, rep: Rep, kind: Kind) -> bool:
    """Whether the conditions of the request name *rep* (RFC 9110 §13.2.2)."""
    wanted, tag = question.fields.get("if-none-match"), rep.tag(kind)
    if wanted is not None:
        return wanted == "*" or (tag is not None and any(same_tag(each.strip(), tag) for each in wanted.split(", ")))
    since, modified = question.fields.get("if-modified-since"), rep.date(kind)
    if since is None or modified is None:
        return False
    return parsedate_to_datetime(modified) <= parsedate_to_datetime(since)


def _judged_part(question: Question, answer: Answer, rep: Rep, kind: Kind) -> str | None:
    """Whether the part is the wanted one (RFC 9110 §14)."""
    if not question.may_have_part:
        return "206 without Range"
    condition = question.fields.get("if-range")
    if (
        condition is not None
        and (condition.startswith("W/") or condition != rep.tag(kind))
        and condition != rep.date(kind)
    ):
        return f"206, but If-Range names {condition}"
    whole = rep.body
    first, after = span_of(question.fields["range"], len(whole))
    said = answer.fields.get("content-range")
    if said != f"bytes {first}-{after - 1}/{len(whole)}":
        return f"Content-Range {said}, wanted is {first}-{after - 1}/{len(whole)}"
    return None if answer.body == whole[first:after] else f"other bytes: {answer.body!r}"


def span_of(wanted: str, total: int) -> tuple[int, int]:
    """The first byte of a range, and the byte after its last."""
    first, last = wanted.removeprefix("bytes=").split("-")
    if not first:
        return max(0, total - int(last)), total
    return int(first), min(int(last) + 1, total) if last else total


def wasted(history: History, asked: list[tuple[Question, Answer]]) -> str | None:
    """A run that should not be: for a page that must be stored, since an equal request was answered; or a third one."""
    runs = Counter(run.question for run in history.runs)
    for number, count in runs.items():
        if count > 2:
            return f"request {number} ran the application {count} times"
    for run in history.runs:
        later = next((question for question, _ in asked if question.number == run.question), None)
        if later is None or not _is_plain(history, later) or later.method != "GET":
            continue
        for question, answer in asked:
            if _is_stored_after(history, question, answer) and _is_before(question, later):
                return f"request {later.number} ran the application, though {question.number} was answered before it"
    return None


def crowded(history: History, group: list[tuple[Question, Answer]], since: int) -> str | None:
    """More than one run for a group of requests for one page that can be stored, all at the same time."""
    questions = [question for question, _ in group]
    alike = {(each.resource, each.fields.get("accept-language"), each.method) for each in questions}
    plain = all(_is_plain(history, each) and "range" not in each.fields for each in questions)
    if len(alike) != 1 or not plain or "GET" not in {each.method for each in questions}:
        return None
    if any(each.ended < 0 or max(each.ended, each.heard) >= since for each in history.forgettings):
        return None
    runs = [run for run in history.runs if run.begun >= since and run.resource == questions[0].resource]
    return None if len(runs) <= 1 else f"{len(runs)} runs for {len(questions)} equal requests at the same time"


def _is_before(question: Question, later: Question) -> bool:
    language = question.fields.get("accept-language") == later.fields.get("accept-language")
    return question.resource == later.resource and language and question.ended < later.begun


def _is_plain(history: History, question: Question) -> bool:
    """Whether a stored page can answer the request whatever its age."""
    kind = history.kinds[question.resource]
    storable = kind.fresh and kind.stored and not kind.late and not kind.restless
    ordinary = question.user is None and question.stranger is None and "cache-control" not in question.fields
    return storable and ordinary and question.resource not in history.odd


def _is_stored_after(history: History, question: Question, answer: Answer) -> bool:
    """Whether the page is stored once the request is answered, and still."""
    if not _is_plain(history, question) or question.method != "GET" or "range" in question.fields:
        return False
    forgotten = any(
        each.resource == question.resource and (each.ended < 0 or max(each.ended, each.heard) >= question.begun)
        for each in history.forgettings
    )
    return not forgotten and answer.complete and answer.status in {200, 304}
