"""Moves a hearing to another room, and writes the event in the same transaction.

    python3 reschedule.py UUID HEARING ROOM TRACEPARENT

UUID names the request. A second run with the same UUID changes nothing.
"""

import os
import sys

import psycopg
from psycopg.types.json import Jsonb


def reschedule(conn, request, hearing, room, traceparent):
    """Returns False if this request was committed before."""
    try:
        with conn.transaction():
            # First your own row: its lock gives the events of one hearing the order of the commits.
            moved = conn.execute(
                "UPDATE hearing SET room = %s, version = version + 1 WHERE id = %s RETURNING version, scheduled_at",
                (room, hearing),
            ).fetchone()
            if moved is None:
                raise LookupError(f"there is no hearing {hearing}")
            version, scheduled_at = moved
            conn.execute(
                "INSERT INTO outbox.event (id, type, key, version, payload, headers) VALUES (%s, %s, %s, %s, %s, %s)",
                (
                    request,
                    "scheduling:updated",
                    hearing,
                    version,
                    Jsonb({"hearingId": hearing, "scheduledAt": scheduled_at.isoformat(), "location": room}),
                    Jsonb({"traceparent": traceparent}),
                ),
            )
    except psycopg.errors.UniqueViolation as error:  # 23505
        if error.diag.schema_name == "outbox" and error.diag.table_name == "event":
            return False
        raise
    return True


if __name__ == "__main__":
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
        try:
            print("written" if reschedule(connection, *sys.argv[1:]) else "already written")
        except psycopg.Error as refused:
            sys.exit(f"{refused.sqlstate}: {refused}")
