"""Tables of the service's database, and how it is opened."""

import sqlite3
from pathlib import Path

from configs.errors import UserError

VERSION = 1
_TABLES = """
CREATE TABLE protocols (
    protocol_sha256 TEXT PRIMARY KEY,
    config TEXT NOT NULL
);
CREATE TABLE evaluations (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    weights_sha256 TEXT NOT NULL,
    protocol_sha256 TEXT NOT NULL,
    checkpoint TEXT NOT NULL,
    run TEXT NOT NULL,
    step INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'done', 'failed')),
    priority INTEGER NOT NULL,
    reason TEXT,
    created REAL NOT NULL,
    started REAL,
    finished REAL,
    logged INTEGER NOT NULL DEFAULT 0,
    UNIQUE (weights_sha256, protocol_sha256)
);
CREATE TABLE tasks (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    evaluation INTEGER NOT NULL REFERENCES evaluations (id),
    position INTEGER NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('plan', 'embed', 'task', 'finish')),
    name TEXT NOT NULL,
    version TEXT,
    state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'done', 'failed')),
    attempts INTEGER NOT NULL DEFAULT 0,
    started REAL,
    seconds REAL,
    reason TEXT,
    num_embedded INTEGER NOT NULL DEFAULT 0,
    UNIQUE (evaluation, kind, name)
);
CREATE INDEX tasks_by_state ON tasks (state, evaluation);
CREATE TABLE versions (
    model TEXT NOT NULL,
    version INTEGER NOT NULL,
    evaluation INTEGER NOT NULL REFERENCES evaluations (id),
    PRIMARY KEY (model, version)
);
CREATE TABLE promotions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    model TEXT NOT NULL,
    version INTEGER NOT NULL,
    evaluation INTEGER NOT NULL REFERENCES evaluations (id),
    champion_version INTEGER,
    champion_evaluation INTEGER,
    decision TEXT NOT NULL CHECK (decision IN ('champion', 'candidate', 'kept')),
    reason TEXT NOT NULL,
    numbers TEXT NOT NULL,
    applied INTEGER NOT NULL DEFAULT 0,
    created REAL NOT NULL,
    UNIQUE (model, version, evaluation)
);
"""


def open_database(path: Path) -> sqlite3.Connection:
    """Open or create the database; every commit is on disk before it returns.

    Raises:
        UserError: not a database, or one of another version.
    """
    connection = sqlite3.connect(path, timeout=30.0, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        (found,) = connection.execute("PRAGMA user_version").fetchone()
        if found == 0:
            connection.executescript(f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version = {VERSION}; COMMIT;")
    except sqlite3.DatabaseError as error:
        connection.close()
        raise UserError(f"queue {path}: cannot be used ({error}); move it away, or name another folder") from None
    if found not in (0, VERSION):
        connection.close()
        raise UserError(
            f"queue {path}: schema version {found}, this program writes {VERSION}; name another folder, or use the "
            "version that wrote it"
        )
    return connection
