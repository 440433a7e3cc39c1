"""The tables of the book, one script for every version of them; a script that was published is never changed.

Times are milliseconds of the Unix clock. A key is the JSON of its sorted pairs; SQLite holds NaN as NULL.
"""

from __future__ import annotations

__all__ = ["SCRIPTS"]

_FIRST = (
    """CREATE TABLE enrolment (
        number INTEGER PRIMARY KEY AUTOINCREMENT, -- so that no number is used again
        owner TEXT NOT NULL,
        subscription TEXT NOT NULL, -- as JSON
        receivers TEXT NOT NULL, -- as JSON
        made INTEGER NOT NULL,
        withdrawn INTEGER
    ) STRICT""",
    """CREATE TABLE alert (
        id TEXT PRIMARY KEY,
        enrolment INTEGER NOT NULL REFERENCES enrolment,
        key TEXT NOT NULL,
        severity TEXT NOT NULL,
        since INTEGER NOT NULL,
        until INTEGER,
        ended INTEGER, -- event time of the end as it was said, which may be before the begin
        value REAL,
        acknowledged TEXT NOT NULL DEFAULT '',
        expire INTEGER NOT NULL -- milliseconds from the end to when it is forgotten
    ) STRICT""",
    "CREATE UNIQUE INDEX firing ON alert (enrolment, key) WHERE until IS NULL",
    "CREATE INDEX by_key ON alert (enrolment, key)",
    "CREATE INDEX by_key_and_end ON alert (enrolment, key, ended)",
    "CREATE INDEX by_since ON alert (since)",
    "CREATE INDEX by_end ON alert (until)",
    """CREATE TABLE notice (
        number INTEGER PRIMARY KEY,
        alert TEXT NOT NULL REFERENCES alert ON DELETE CASCADE,
        state TEXT NOT NULL,
        receiver TEXT NOT NULL,
        until INTEGER,
        value REAL,
        attempts INTEGER NOT NULL DEFAULT 0,
        due INTEGER NOT NULL,
        error TEXT NOT NULL DEFAULT '',
        told INTEGER,
        UNIQUE (alert, state, receiver)
    ) STRICT""",
    "CREATE INDEX untold ON notice (due) WHERE told IS NULL",
    """CREATE TABLE context (
        alert TEXT NOT NULL REFERENCES alert ON DELETE CASCADE,
        state TEXT NOT NULL, -- around its begin, or around its end
        through INTEGER NOT NULL,
        samples BLOB NOT NULL,
        PRIMARY KEY (alert, state)
    ) STRICT""",
    """CREATE TABLE silence (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        labels TEXT NOT NULL, -- as JSON
        since INTEGER NOT NULL,
        until INTEGER NOT NULL,
        owner TEXT NOT NULL,
        why TEXT NOT NULL
    ) STRICT""",
    """CREATE TABLE audit (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        at INTEGER NOT NULL,
        who TEXT NOT NULL,
        did TEXT NOT NULL,
        what TEXT NOT NULL
    ) STRICT""",
)

_SECOND = (
    "ALTER TABLE notice RENAME TO notice_before",
    """CREATE TABLE notice (
        number INTEGER PRIMARY KEY AUTOINCREMENT, -- so that what comes later has a higher one, whatever was deleted
        alert TEXT NOT NULL REFERENCES alert ON DELETE CASCADE,
        state TEXT NOT NULL,
        receiver TEXT NOT NULL,
        until INTEGER,
        value REAL,
        attempts INTEGER NOT NULL DEFAULT 0,
        due INTEGER NOT NULL,
        error TEXT NOT NULL DEFAULT '',
        told INTEGER,
        UNIQUE (alert, state, receiver)
    ) STRICT""",
    "INSERT INTO notice SELECT * FROM notice_before",
    "DROP TABLE notice_before",
    "CREATE INDEX untold ON notice (receiver, number) WHERE told IS NULL",
)

SCRIPTS = (_FIRST, _SECOND)
