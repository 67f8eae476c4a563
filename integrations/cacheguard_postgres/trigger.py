"""The SQL of a trigger that notifies of every changed row."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import count
from string import Formatter
from typing import Any

from cacheguard.errors import ConfigurationError, KeyTemplateError

LONGEST_IDENTIFIER = 63  # bytes; PostgreSQL cuts off the rest, silently
LONGEST_PAYLOAD = 7999  # bytes; a longer one would be an error in the transaction that notifies

# As in cacheguard.keys; PostgreSQL's text has neither U+0000 nor lone surrogates.
_RESERVED = r"[:{}%\u0001-\u001f\u007f-\u009f]"

_VERSION_TYPES = ("smallint", "integer", "bigint", "numeric", "pg_lsn", "timestamp with time zone")

_SCRIPT = """\
DECLARE
  part pg_catalog.regclass;
BEGIN
  PERFORM FROM {table} LIMIT 0;
  IF EXISTS (
    SELECT FROM pg_catalog.unnest({columns}) AS wanted (name)
    WHERE NOT EXISTS (
      SELECT FROM pg_catalog.pg_attribute AS present
      WHERE present.attrelid = {regclass}::pg_catalog.regclass AND present.attname::text = wanted.name
        AND present.attnum > 0 AND NOT present.attisdropped
    )
  ) THEN
    RAISE EXCEPTION 'cacheguard: % must have the columns %', {regclass}, {columns};
  END IF;
{version_check}  CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql
  SET search_path = pg_catalog, pg_temp SET "DateStyle" = 'ISO, YMD' AS {body};
  DROP TRIGGER IF EXISTS {trigger} ON {table};
  CREATE TRIGGER {trigger} AFTER INSERT OR UPDATE OR DELETE ON {table}
    FOR EACH ROW EXECUTE FUNCTION {function}();
  DROP TRIGGER IF EXISTS {truncate_trigger} ON {table};
  CREATE TRIGGER {truncate_trigger} AFTER TRUNCATE ON {table}
    FOR EACH STATEMENT EXECUTE FUNCTION {function}();
  FOR part IN
    SELECT tree.relid FROM pg_catalog.pg_partition_tree({regclass}::pg_catalog.regclass) AS tree
    JOIN pg_catalog.pg_class AS class ON class.oid = tree.relid
    WHERE tree.level > 0 AND class.relkind IN ('r', 'p')
  LOOP  -- a partition gets the trigger for rows by itself, but may be emptied alone
    EXECUTE pg_catalog.format('DROP TRIGGER IF EXISTS %I ON %s', {truncate_name}, part);
    EXECUTE pg_catalog.format(
      'CREATE TRIGGER %I AFTER TRUNCATE ON %s FOR EACH STATEMENT EXECUTE FUNCTION %s()',
      {truncate_name}, part, {function_name});
  END LOOP;
END
"""

_VERSION_CHECK = """\
  IF (
    SELECT pg_catalog.format_type(present.atttypid, NULL) FROM pg_catalog.pg_attribute AS present
    WHERE present.attrelid = {regclass}::pg_catalog.regclass AND present.attname::text = {version}
  ) <> ALL ({types}) THEN
    RAISE EXCEPTION 'cacheguard: the version % of % must be one of %', {version}, {regclass}, {types};
  END IF;
"""

# A row that is new was never another one, and one that is gone becomes no other: so there always are two to compare.
_FUNCTION = """
DECLARE
  was record;
  now record;
  texts text[];
  events jsonb[];
  event jsonb;
  version jsonb;
  gone jsonb;
BEGIN
  IF TG_OP = 'TRUNCATE' THEN
    PERFORM pg_notify({channel}, '{{"gap": true}}');
    RETURN NULL;
  END IF;
  IF TG_OP = 'INSERT' THEN was := NEW; ELSE was := OLD; END IF;
  IF TG_OP = 'DELETE' THEN now := OLD; ELSE now := NEW; END IF;
  texts := {texts};
  FOR i IN 1 .. cardinality(texts) LOOP
    IF texts[i] COLLATE "C" ~ {reserved} THEN
      texts[i] := (
        SELECT string_agg(
          CASE WHEN letter COLLATE "C" ~ {reserved}
            THEN regexp_replace(upper(encode(convert_to(letter, 'UTF8'), 'hex')), '..', {percent}, 'g')
            ELSE letter END,
          '' ORDER BY place)
        FROM regexp_split_to_table(texts[i], '') WITH ORDINALITY AS letters (letter, place)
      );
    END IF;
  END LOOP;
{versions}{events}  FOREACH event IN ARRAY events LOOP
    IF event IS NOT NULL THEN
      event := jsonb_strip_nulls(event);
      IF octet_length(convert_to(event::text, 'UTF8')) <= {longest} THEN
        PERFORM pg_notify({channel}, event::text);
      ELSE
        PERFORM pg_notify({channel}, '{{"gap": true}}');
      END IF;
    END IF;
  END LOOP;
  RETURN NULL;
END
"""

# What is in a branch that is not taken is not checked against the types either.
_VERSIONS = """\
  IF TG_OP <> 'UPDATE' OR now.{version} > was.{version} THEN
    version := to_jsonb(now.{version});
  END IF;
  IF jsonb_typeof(to_jsonb(was.{version})) = 'number' THEN
    gone := to_jsonb(was.{version} + 1::numeric);
  ELSIF pg_typeof(was.{version}) = 'timestamptz'::regtype THEN
    gone := to_jsonb(was.{version} + interval '1 microsecond');
  END IF;
"""


def trigger_sql(
    table: str | tuple[str, str],
    *,
    key: str | Sequence[str] | None = None,
    tags: Sequence[str] = (),
    version: str | None = None,
    channel: str = "cacheguard",
) -> str:
    """Return the SQL of a trigger that notifies `PostgresFeed` of the changes of a table.

    It is one statement for `psql`, a migration or a cursor without parameters. It may be run again, and it is all or
    nothing. Run it as the owner of the table, on PostgreSQL 13 or later. For each inserted, updated or deleted row it
    notifies of the keys and tags of the old and of the new row, each once. A rolled back transaction notifies of
    nothing. TRUNCATE, and a name that is too long for a notification (8000 bytes), notify of a gap. Partitions are
    included; run the script again for a TRUNCATE of those that are made later. Tables that inherit are not.

    Args:
        table: its name, taken literally (a dot is part of it), or a pair of schema and name.
        key: template of the key text over the columns, like ``"user:{id}"``, or several of them. Values become text as
            they do in a guard's own templates: escaped, NULL as ``None``, booleans as ``True`` and ``False``.
        tags: templates of tags, like ``"org:{org_id}"``.
        version: a column that grows with every change of the row, also when a deleted row is inserted again: a whole
            number, a `timestamptz` or a `pg_lsn`. If a row is deleted or its key changes, the old key is notified with
            the old version plus 1 (or a microsecond), which no entry can have been filled with; without a version for
            `pg_lsn`. An UPDATE that does not raise the version notifies without it.
        channel: the channel of the feed.

    Raises:
        KeyTemplateError: a template cannot work.
        ConfigurationError: a name that PostgreSQL does not allow, or neither key nor tags.
    """
    schema, name = table if isinstance(table, tuple) else (None, table)
    keys = (key,) if isinstance(key, str) else tuple(key or ())
    if isinstance(tags, str):
        raise ConfigurationError(f"tags must be several templates, got the text {tags!r}")
    if not keys and not tags:
        raise ConfigurationError("a trigger needs a key or tags to notify of, got neither")
    check_channel(channel)
    columns = _Columns()
    key_parts = [columns.parsed(template) for template in dict.fromkeys(keys)]
    tag_parts = [columns.parsed(template) for template in dict.fromkeys(tags)]
    needed = list(columns.places) if version is None else list(dict.fromkeys([*columns.places, version]))

    owner = "" if schema is None else f"{_identifier('schema', schema)}."
    quoted = owner + _identifier("table", name)
    digest = blake2b("\0".join((schema or "", name, channel)).encode(), digest_size=4).hexdigest()
    own_name = f"cacheguard_{re.sub(r'[^a-z0-9]+', '_', name.lower())[:30]}_{digest}"
    body = _FUNCTION.format(
        channel=_literal(channel),
        texts=_array([*columns.texts("was"), *columns.texts("now")]),
        reserved=_literal(_RESERVED),
        percent=_literal(r"%\&"),
        versions="" if version is None else _VERSIONS.format(version=_identifier("version", version)),
        events="".join(_statements(key_parts, tag_parts, len(columns.places))),
        longest=LONGEST_PAYLOAD,
    )
    regclass = _literal(quoted)
    check = ""
    if version is not None:
        types = _array(map(_literal, _VERSION_TYPES))
        check = _VERSION_CHECK.format(regclass=regclass, version=_literal(version), types=types)
    script = _SCRIPT.format(
        table=quoted,
        regclass=regclass,
        columns=_array(map(_literal, needed)),
        version_check=check,
        function=owner + _identifier("function", own_name),
        trigger=_identifier("trigger", own_name),
        truncate_trigger=_identifier("trigger", f"{own_name}_t"),
        truncate_name=_literal(f"{own_name}_t"),
        function_name=_literal(owner + _identifier("function", own_name)),
        body=_dollars(body),
    )
    return f"DO {_dollars(script)};\n"


def check_channel(channel: object) -> None:
    """Raise `ConfigurationError` unless PostgreSQL allows *channel*."""
    _check_identifier("channel", channel)


_Parts = list[tuple[str, int | None]]


class _Columns:
    """The columns that templates use, each once, and the indexes of their texts."""

    def __init__(self) -> None:
        self.places: dict[str, int] = {}

    def parsed(self, template: Any) -> _Parts:
        """Split *template* into literal texts, each with the index of the column that follows it."""
        if not isinstance(template, str) or not template:
            raise KeyTemplateError(f"a template must be a text like 'user:{{id}}', got {template!r}")
        try:
            fields = list(Formatter().parse(template))
        except ValueError as error:
            raise KeyTemplateError(f"template {template!r} is broken ({error})") from error
        parts: _Parts = []
        for literal, column, spec, conversion in fields:
            if spec or conversion:
                raise KeyTemplateError(f"template {template!r}: a column takes no format and no conversion")
            if "\0" in literal or not _is_encodable(literal):
                raise KeyTemplateError(f"template {template!r} has a character that PostgreSQL cannot have in a text")
            if column is not None:
                _check_identifier(f"a column in {template!r}", column)
            parts.append((literal, None if column is None else self.places.setdefault(column, len(self.places))))
        return parts

    def texts(self, row: str) -> Iterator[str]:
        for column in self.places:
            value = f"{row}.{_identifier('column', column)}"
            yield (
                f"CASE WHEN {value} IS NULL THEN 'None' WHEN pg_typeof({value}) = 'boolean'::regtype"
                f" THEN initcap({value}::text) ELSE {value}::text END"
            )


def _statements(keys: list[_Parts], tags: list[_Parts], columns: int) -> Iterator[str]:
    """The statements that fill ``events``. An old name is only added if the new one differs."""
    for parts in keys:
        was, now = _text(parts, 0), _text(parts, columns)
        yield f"""\
  IF TG_OP = 'DELETE' THEN
    events := events || jsonb_build_object('key', {was}, 'version', gone);
  ELSE
    events := events || jsonb_build_object('key', {now}, 'version', version);
    IF {was} <> {now} COLLATE "C" THEN
      events := events || jsonb_build_object('key', {was}, 'version', gone);
    END IF;
  END IF;
"""
    for parts in tags:
        was, now = _text(parts, 0), _text(parts, columns)
        yield f"""\
  events := events || jsonb_build_object('tag', {now});
  IF {was} <> {now} COLLATE "C" THEN
    events := events || jsonb_build_object('tag', {was});
  END IF;
"""


def _text(parts: _Parts, first: int) -> str:
    pieces: list[str] = []
    for literal, place in parts:
        if literal:
            pieces.append(f"{_literal(literal)}::text")
        if place is not None:
            pieces.append(f"texts[{first + place + 1}]")
    return f"({' || '.join(pieces)})"


def _array(texts: Iterable[str]) -> str:
    return f"ARRAY[{', '.join(texts)}]::text[]"


def _check_identifier(what: str, name: object) -> None:
    if not isinstance(name, str) or not name or "\0" in name or not _is_encodable(name):
        raise ConfigurationError(f"{what} must be a name that PostgreSQL can have, got {name!r}")
    if len(name.encode()) > LONGEST_IDENTIFIER:
        raise ConfigurationError(f"{what} must have at most {LONGEST_IDENTIFIER} bytes, got {name!r}")


def _identifier(what: str, name: str) -> str:
    _check_identifier(what, name)
    doubled = name.replace('"', '""')
    return f'"{doubled}"'


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _literal(text: str) -> str:
    """Quote *text* for SQL, for any setting of ``standard_conforming_strings``."""
    doubled = text.replace("'", "''")
    if "\\" not in text:
        return f"'{doubled}'"
    escaped = doubled.replace("\\", "\\\\")
    return f"E'{escaped}'"


def _dollars(text: str) -> str:
    """Quote *text* with a dollar tag that does not occur in it."""
    quote = next(mark for mark in (f"$cg{number}$" for number in count()) if mark[:-1] not in text)
    return f"{quote}{text}{quote}"
