"""`invalidate_on_commit`: invalidates what a session's transaction has changed, after its COMMIT."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, get_args
from weakref import WeakKeyDictionary, WeakValueDictionary

from sqlalchemy import Connection, Engine, Table, TextClause, event, insert, inspect
from sqlalchemy.orm import (
    Mapper,
    ORMExecuteState,
    Session,
    SessionTransaction,
    object_session,
)

from cacheguard import CacheGuard, Change, Load
from cacheguard.errors import ConfigurationError
from cacheguard.extending import Duration, load_here, settle_seconds

from .bulk import OPTION, Bulk, Linked, complaint
from .doors import through
from .held import notice
from .links import Links
from .outbox import check_outbox, rows_of
from .pending import Pending, autocommits, open_here, outside_of_a_transaction, remember_here, sees_a_snapshot
from .pools import PoolWatch
from .rows import changed_names, has_late_updates, known_before, loaded_mappers, values_before, values_now
from .rules import Rules, Template, Touches, rules_of
from .statements import Within, executed
from .targets import watched

log: logging.Logger = logging.getLogger("cacheguard")

Mode: TypeAlias = Literal["delete", "fence", "outbox"]
Alone: TypeAlias = Literal["changed", "open"]
if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from .targets import SessionOrFactory

_NEVER_LOADED = frozenset({"dynamic", "write_only", "noload", "raise", "raise_on_sql"})
_READS = ("SELECT", "VALUES", "SHOW", "EXPLAIN", "PRAGMA", "SET")


def invalidate_on_commit(
    guard: CacheGuard,
    target: SessionOrFactory,
    models: Mapping[Any, Sequence[Template] | Touches],
    *,
    mode: Mode = "delete",
    outbox: Table | None = None,
    settle: Duration | None = None,
    versions: bool = False,
    alone: Alone = "changed",
) -> OnCommit:
    """Invalidate what a transaction has changed, as soon as it is committed. A rollback invalidates nothing.

    It watches flushes (objects, cascades, many-to-many tables) and the INSERT, UPDATE and DELETE statements that the
    session executes. The release of a savepoint is not a commit. Changes that are rolled back to a savepoint are
    invalidated too, which is safe. If the outcome of a COMMIT is unknown, it counts as committed.

    It does not see: `text` statements, ``session.connection().execute``, the legacy ``bulk_…`` methods, ``ON DELETE
    CASCADE`` of the database, other programs. For these, call `OnCommit.also` or use a change feed.

    Args:
        guard: the guard to invalidate in; keys and tags are those of its namespace.
        target: a `sessionmaker` or `async_sessionmaker`, a scoped session, a class of sessions, or one session.
        models: mapped classes, each with templates of the keys that its rows touch: ``{User: ["user:{id}"]}``, or
            ``{User: Touches(keys=["user:{id}"], tags=["org:{org_id}"], bulk=["users"])}``. The values before and
            after a change both count. Subclasses are included.
        mode: ``"delete"``: invalidates after COMMIT, before ``commit()`` returns (one round trip). ``"fence"``: sets a
            fence on the keys before COMMIT and ends it after (two). From COMMIT on no read returns an older value, even
            if the process dies. ``"outbox"``: only the relay invalidates (none).
        outbox: made by `outbox_table`. The invalidations are also written there, in the same transaction, and an
            `OutboxRelay` repeats them. Costs one statement per transaction that changes something.
        settle: as in `CacheGuard.invalidate`.
        versions: a model's ``version_id_col``, if it is a whole number, becomes the version of keys that are made of
            the primary key. The functions with these keys must then be cached with ``version=`` of that column, too.
        alone: when loads are private, that is for their caller only and not cached. ``"changed"``: while this thread or
            task is inside a transaction with uncommitted changes. ``"open"``: while any watched session of this process
            has a transaction; one that a load has begun counts after the load, or once it has changed something.

    Returns:
        A handle with `OnCommit.also` and `OnCommit.remove`.

    Raises:
        ConfigurationError: an option that cannot work.
        KeyTemplateError: a template has a field that is not a column attribute of its model.
    """
    if not isinstance(guard, CacheGuard):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigurationError(f"guard must be a CacheGuard, got {guard!r}")
    if mode not in get_args(Mode):
        raise ConfigurationError(f"mode must be 'delete', 'fence' or 'outbox', got {mode!r}")
    if alone not in get_args(Alone):
        raise ConfigurationError(f"alone must be 'changed' or 'open', got {alone!r}")
    if outbox is None and mode == "outbox":
        raise ConfigurationError("outbox must be a table made by outbox_table(metadata) for mode='outbox', got None")
    if not isinstance(versions, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigurationError(f"versions must be True or False, got {versions!r}")
    if versions and mode == "fence":
        raise ConfigurationError("versions must be False for mode='fence': one fence has one version, got True")
    if mode == "outbox" and settle is not None:
        raise ConfigurationError(f"settle must be None for mode='outbox': the relay invalidates, got {settle!r}")
    settle_seconds(settle)
    return OnCommit(
        guard,
        watched(target),
        rules_of(models, versions=versions),
        mode=mode,
        outbox=None if outbox is None else check_outbox(outbox),
        settle=settle,
        alone=alone,
    )


class OnCommit:
    """Watches sessions for `invalidate_on_commit`, until `remove`."""

    def __init__(
        self,
        guard: CacheGuard,
        target: Any,
        rules: dict[type, Rules],
        *,
        mode: Mode,
        outbox: Table | None,
        settle: Duration | None,
        alone: Alone,
    ) -> None:
        self._guard, self._mode, self._outbox, self._settle, self._alone = guard, mode, outbox, settle, alone
        self._rules = rules
        self._of_mapper: dict[Mapper[Any], tuple[Rules, ...]] = {}
        self._late: dict[Mapper[Any], bool] = {}
        self._links, self._within, self._pools = Links([*rules.values()]), Within(), PoolWatch()
        self._all_open: WeakValueDictionary[int, Pending] = WeakValueDictionary()
        self._snapshots: WeakKeyDictionary[Engine, bool] = WeakKeyDictionary()
        self._listened: list[tuple[Any, str, Callable[..., Any]]] = []
        self._end_question = guard.load_alone_when(self._is_alone)
        self._listen(target)

    def __repr__(self) -> str:
        models = ", ".join(model.__name__ for model in self._rules)
        return f"<OnCommit of {models} into {self._guard!r}>"

    def also(self, session: Session | AsyncSession, *keys: str, tags: Iterable[str] = ()) -> None:
        """Invalidate these keys and tags, too, when the current or next transaction of *session* is committed.

        For changes that the session does not see: `text` statements, the legacy bulk methods, cascades of the
        database. No round trip here.
        """
        if isinstance(tags, str):
            raise TypeError(f"tags must be several texts, got the text {tags!r}")
        synchronous = session if isinstance(session, Session) else session.sync_session
        changes = [*(Change(key) for key in keys), *(Change(tag=tag) for tag in tags)]
        pending = self._of(synchronous)
        pending.add(changes)
        pending.changed = True

    def remove(self) -> None:
        """Stop watching. Changes of transactions that are still open are not invalidated. Idempotent."""
        self._end_question()
        for target, name, function in self._listened:
            event.remove(target, name, function)
        self._listened.clear()

    # Listening

    def _listen(self, target: Any) -> None:
        for name in (
            "after_transaction_create",
            "after_begin",
            "after_attach",
            "before_flush",
            "after_flush",
            "after_flush_postexec",
            "before_commit",
            "after_commit",
            "after_soft_rollback",
            "after_transaction_end",
            "do_orm_execute",
        ):
            # Before the listeners that are there already: one of them may raise.
            first = name in ("after_commit", "after_transaction_end")
            self._listen_to(target, name, getattr(self, f"_{name}"), insert=first)
        for model in self._rules:
            for name in ("after_insert", "before_update", "after_update", "before_delete"):
                self._listen_to(model, name, getattr(self, f"_{name}"), propagate=True)

    def _listen_to(self, target: Any, name: str, function: Callable[..., Any], **options: Any) -> None:
        event.listen(target, name, function, **options)
        self._listened.append((target, name, function))

    def _of(self, session: Session) -> Pending:
        """The changes of the transaction of *session*. From now on this thread or task is inside it."""
        pending: Pending | None = session.info.get(self)
        if pending is None:
            pending = session.info[self] = Pending(self, session, load_here())
            self._all_open[id(pending)] = pending
        notice(session, _changed_here)  # each time: `expunge_all` gives the session another map
        remember_here(pending)
        return pending

    def _after_transaction_create(self, session: Session, transaction: SessionTransaction) -> None:
        pending = self._of(session)
        if transaction.parent is not None and not transaction.nested and not pending.flushing:
            pending.changed = True  # one of the legacy bulk methods

    def _after_begin(self, session: Session, _transaction: SessionTransaction, connection: Connection) -> None:
        pending = self._of(session)
        pending.connections.append(connection)
        pending.autocommitted = pending.autocommitted or autocommits(connection)

    def _after_attach(self, session: Session, _instance: object) -> None:
        self._of(session)  # who adds an object is inside of the transaction

    # Flushing

    def _before_flush(self, session: Session, _context: object, _instances: object) -> None:
        pending = self._of(session)
        pending.flushing, pending.unknown = True, False
        for instance in (*session.new, *session.dirty, *session.deleted):
            self._note_other_ends(pending, instance, may_load=True)

    def _note_other_ends(self, pending: Pending, instance: Any, *, may_load: bool) -> None:
        """Note the other ends of many-to-many relations: a row of such a table touches both ends."""
        state = inspect(instance)
        for relationship in state.mapper.relationships:
            if relationship.secondary is None or relationship.viewonly or not self._rules_of(relationship.mapper):
                continue
            attribute = state.attrs[relationship.key]
            goes = instance in cast("Session", state.session).deleted
            if may_load and goes and not relationship.passive_deletes and relationship.lazy not in _NEVER_LOADED:
                history = attribute.load_history()  # the flush would load it, too
            else:
                history = attribute.history
            pending.rows += [*history.added, *history.deleted, *(history.unchanged if goes else ())]

    def _rules_of(self, mapper: Mapper[Any]) -> tuple[Rules, ...]:
        found = self._of_mapper.get(mapper)
        if found is None:
            found = tuple(rules for rules in self._rules.values() if mapper.isa(rules.mapper))
            self._of_mapper[mapper] = found
        return found

    def _is_updated_late(self, mapper: Mapper[Any]) -> bool:
        found = self._late.get(mapper)
        if found is None:
            found = self._late[mapper] = has_late_updates(mapper)
        return found

    def _ours(self, instance: Any) -> Pending | None:
        session = object_session(instance)
        pending: Pending | None = None if session is None else session.info.get(self)
        return pending if pending is not None and pending.flushing else None

    def _after_insert(self, _mapper: Mapper[Any], _connection: Connection, instance: Any) -> None:
        pending = self._ours(instance)
        if pending is not None:
            pending.rows.append(instance)
            pending.fed.add(id(instance))

    def _before_update(self, mapper: Mapper[Any], connection: Connection, instance: Any) -> None:
        pending, late = self._ours(instance), self._is_updated_late(mapper)
        if pending is None or not (late or cast("Session", object_session(instance)).is_modified(instance)):
            return
        pending.rows.append(instance)
        for rules in self._rules_of(mapper):
            if late or changed_names(instance, rules.attributes):
                pending.add(rules.of_values(values_before(mapper, connection, instance, rules.attributes)))
                pending.asked.add(id(instance))

    def _after_update(self, mapper: Mapper[Any], _connection: Connection, instance: Any) -> None:
        """Note what listeners of `before_update` that run after ours have changed."""
        pending = self._ours(instance)
        if pending is None or not cast("Session", object_session(instance)).is_modified(instance):
            return
        pending.rows.append(instance)
        for rules in self._rules_of(mapper):
            if changed_names(instance, rules.item_attributes):
                pending.fed.add(id(instance))
            if id(instance) in pending.asked or not changed_names(instance, rules.attributes):
                continue
            values, unknown = known_before(instance, rules.attributes)
            if unknown:
                self._lost(pending, f"a listener changed {', '.join(unknown)} of {rules.model}, which was not loaded")
            pending.add(rules.of_known(values)[0])

    def _before_delete(self, mapper: Mapper[Any], connection: Connection, instance: Any) -> None:
        pending = self._ours(instance)
        if pending is None:
            return
        for rules in self._rules_of(mapper):
            values = values_before(mapper, connection, instance, rules.attributes)
            pending.add(rules.of_values(values, deleted=True))
            pending.add(rules.of_instance(instance))

    def _after_flush(self, session: Session, _context: object) -> None:
        pending = self._of(session)
        pending.changed = True
        # Once more: listeners that run after ours may have changed more before the flush.
        for instance in (*session.new, *session.dirty, *session.deleted):
            self._note_other_ends(pending, instance, may_load=False)
        self._note_autocommit(pending)

    def _note_autocommit(self, pending: Pending) -> None:
        if not pending.autocommitted:
            pending.autocommitted = any(map(outside_of_a_transaction, pending.connections))

    def _after_flush_postexec(self, session: Session, _context: object) -> None:
        pending = self._of(session)
        pending.flushing = False
        fed, pending.fed = pending.fed, set()
        pending.asked.clear()
        rows, pending.rows = pending.rows, []
        for instance in {id(each): each for each in rows}.values():
            self._name_row(pending, instance, is_fed=id(instance) in fed)
        if pending.committing:
            self._write_outbox(session, pending)
            _fill_filters(pending)
            pending.unknown = True

    def _name_row(self, pending: Pending, instance: Any, *, is_fed: bool) -> None:
        state = inspect(instance)
        if not state.persistent:  # deleted: its names were noted before
            return
        for rules in self._rules_of(state.mapper):
            session = cast("Session", state.session)
            names = dict.fromkeys((*rules.attributes, *(rules.item_attributes if is_fed else ())))
            values = values_now(state.mapper, session, instance, names)
            pending.add(rules.of_values(values))
            if is_fed:
                pending.feed(rules, values)
            pending.add(rules.of_instance(instance))

    # Statements

    def _do_orm_execute(self, state: ORMExecuteState) -> Any:
        statement = executed(state.statement)
        pending = self._of(state.session)
        load = load_here()
        if load is not None:
            if not pending.connections:
                self._pools.consider(state.session.get_bind(**state.bind_arguments))
            if self._is_private(state, pending, load):
                load.private = True
        if isinstance(statement, TextClause):
            if not statement.text.lstrip().upper().startswith(_READS):
                pending.changed = True
            return None
        within = self._within.changes(statement)
        if not statement.is_dml and not within:
            return None
        pending.changed = True
        said = state.execution_options.get(OPTION)
        if said is not None:
            pending.add(_said(said))
            result = None
        else:
            self._check_within(pending, within)
            result = self._touched(state, statement, pending) if statement.is_dml else None
        if pending.committing and said != ():  # another listener executes this after ours, and before COMMIT
            self._write_outbox(state.session, pending)
            _fill_filters(pending)
        return result

    def _touched(self, state: ORMExecuteState, statement: Any, pending: Pending) -> Any:
        """Note what an INSERT, UPDATE or DELETE touches. The result if it had to run for that."""
        lost = partial(self._lost, pending)
        mapper = self._mapper_of(statement)
        rules = [] if mapper is None else self._rules_beneath(mapper)
        if mapper is not None and rules:
            return Bulk(state, statement, rules, mapper).run(pending, lost)
        ends = self._links.ends(statement.table)
        return Linked(state, statement, ends).run(pending, lost) if ends else None

    def _check_within(self, pending: Pending, statements: Iterable[Any]) -> None:
        """Note what the statements in CTEs touch: bulk tags cover them, else they are refused."""
        for statement in statements:
            mapper = self._mapper_of(statement)
            touched = [] if mapper is None else self._rules_beneath(mapper)
            touched += [rules for end in self._links.ends(statement.table) for rules in end.rules]
            for rules in touched:
                if not rules.bulk or (rules.fed and not statement.is_delete):
                    raise complaint(statement, rules, "it is inside of a CTE")
                pending.add(rules.bulk)

    def _lost(self, pending: Pending, why: str) -> None:
        pending.everything = pending.everything or why

    def _mapper_of(self, statement: Any) -> Mapper[Any] | None:
        """The model whose rows a statement changes, even if the statement names only the table."""
        entity = statement.entity_description.get("entity")
        if entity is not None:
            found: Mapper[Any] = inspect(entity).mapper
            return found
        for rules in self._rules.values():
            for mapper in rules.mapper.self_and_descendants:  # each after its base, whose tables it has, too
                if statement.table in mapper.tables:
                    return mapper
        return None

    def _rules_beneath(self, mapper: Mapper[Any]) -> list[Rules]:
        """The rules of the model, of its base models, and of its derived models."""
        return [each for each in self._rules.values() if mapper.isa(each.mapper) or each.mapper.isa(mapper)]

    # Loads

    def _is_alone(self) -> bool:
        if self._alone == "open":
            # All that are open in this process: nobody can know which of them the loader's objects belong to.
            return any(
                pending is not None and pending.counts_everywhere
                for pending in (each() for each in self._all_open.valuerefs())
            )
        return any(pending.uncommitted for pending in open_here(self))

    def _is_private(self, state: ORMExecuteState, pending: Pending, load: Load) -> bool:
        """True if *load* may read here what other transactions do not see, or no longer see."""
        if pending.uncommitted:
            return True
        if pending.load is load:  # the transaction is no older than the load
            return False
        if any(self._sees_a_snapshot(connection) for connection in pending.connections):
            return True
        loaded = loaded_mappers(state) if state.is_select else ()
        if not loaded:
            return False
        # The session returns the objects that it holds as they were when it loaded them.
        return any(
            held.mapper.isa(mapper) or mapper.isa(held.mapper)
            for held in map(inspect, state.session)
            for mapper in loaded
        )

    def _sees_a_snapshot(self, connection: Connection) -> bool:
        if connection.closed:
            return False
        if connection.dialect.name == "sqlite" or "isolation_level" in connection.get_execution_options():
            return sees_a_snapshot(connection)
        engine = connection.engine
        if engine not in self._snapshots:
            self._snapshots[engine] = sees_a_snapshot(connection)
        return self._snapshots[engine]

    # The end of a transaction

    def _before_commit(self, session: Session) -> None:
        pending = self._of(session)
        is_root = not session.in_nested_transaction()
        if is_root or self._outbox is not None:
            session.flush()
        self._write_outbox(session, pending)
        if not is_root:
            return
        _fill_filters(pending)
        pending.committing = pending.unknown = True
        if (self, "last") not in session.info:
            session.info[self, "last"] = True
            event.listen(session, "after_transaction_end", self._raise_last)
        if self._mode == "fence" and pending.fence is None and pending.changes:
            keys, tags = _names(pending)
            writing = self._guard.writing(*keys, tags=tags, settle=self._settle)
            write = through(writing.__enter__, writing.__aenter__)
            pending.fence = (writing, write)

    def _write_outbox(self, session: Session, pending: Pending) -> None:
        if self._outbox is None:
            return
        news = {
            (*name, change.version): change
            for name, change in pending.changes.items()
            if (*name, change.version) not in pending.written
        }
        lost = (None, None, None)
        rows = rows_of(news.values(), everything=bool(pending.everything) and lost not in pending.written)
        if rows:
            session.execute(insert(self._outbox), rows, execution_options={OPTION: ()})
            pending.written.update(news)
            if pending.everything:
                pending.written.add(lost)

    def _after_soft_rollback(self, session: Session, _previous: SessionTransaction) -> None:
        pending: Pending | None = session.info.get(self)
        if pending is not None:
            pending.written.clear()
            pending.flushing = False
            pending.rows.clear()

    def _after_commit(self, session: Session) -> None:
        pending: Pending | None = session.info.get(self)
        if pending is not None and not session.in_nested_transaction():
            pending.committed = True

    def _after_transaction_end(self, session: Session, transaction: SessionTransaction) -> None:
        # Last of all, so that the connection is back in its pool during the round trip to Redis.
        if transaction.parent is not None:
            return
        pending: Pending | None = session.info.pop(self, None)
        if pending is None:
            return
        pending.end()
        if not (pending.committed or pending.unknown or pending.autocommitted):
            if pending.fence is not None:
                self._end_fence(pending)
            return
        try:
            self._tell(pending)
        except Exception as error:
            if (self, "last") not in session.info:
                raise
            session.info[self, "error"] = error

    def _raise_last(self, session: Session, _transaction: SessionTransaction) -> None:
        """Raise what telling the guard has raised, as the last listener: none of the others is left out."""
        error = session.info.pop((self, "error"), None)
        if error is not None:
            raise error

    def _tell(self, pending: Pending) -> None:
        if pending.fence is not None:
            keys, tags = _names(pending)
            pending.fence[1].also(*keys, tags=tags)
            self._end_fence(pending)
        elif pending.changes and self._mode != "outbox":
            changes = list(pending.changes.values())
            through(self._guard.apply, self._guard.aapply, changes, settle=self._settle)
        if pending.everything and self._mode != "outbox":
            log.warning("%r clears the whole namespace: %s", self._guard, pending.everything)
            through(self._guard.clear, self._guard.aclear)

    def _end_fence(self, pending: Pending) -> None:
        writing, _ = pending.fence
        through(partial(writing.__exit__, None, None, None), partial(writing.__aexit__, None, None, None))


def _fill_filters(pending: Pending) -> None:
    """Add the new items before COMMIT, so that no process calls a row absent that is there."""
    items, pending.items = pending.items, {}
    for bloom, added in items.items():
        through(bloom.add_many, bloom.aadd_many, [*added])


def _changed_here(session: Session) -> None:
    """An object of *session* is changed in this thread or task: it is inside of the transaction."""
    for pending in session.info.values():
        if isinstance(pending, Pending):
            remember_here(pending)


def _names(pending: Pending) -> tuple[list[str], list[str]]:
    changes = pending.changes.values()
    return (
        [each.key for each in changes if each.key is not None],
        [each.tag for each in changes if each.tag is not None],
    )


def _said(said: Any) -> list[Change]:
    changes = list(said)
    for each in changes:
        if not isinstance(each, Change):
            raise ConfigurationError(
                f"the execution option {OPTION!r} must be a list of Change objects, which may be empty, got {said!r}"
            )
    return changes
