"""Time of the catalog's database, which all stores on it go by."""

import time

from sqlalchemy import Connection, text


def now_unix_s(connection: Connection) -> float:
    """The time now; that of this machine for SQLite, whose only store runs on it."""
    if connection.dialect.name == "sqlite":
        return time.time()
    return float(connection.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())
