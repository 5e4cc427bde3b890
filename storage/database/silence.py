"""A connection that notices when PostgreSQL fell silent. Imported late: see `postgresql.import_psycopg`."""

from __future__ import annotations

import time
from typing import Any

import psycopg
from psycopg.abc import RV, PQGen
from psycopg.pq import TransactionStatus

#: Seconds without a byte after which a connection is doubted. TCP's own time-outs see a network that loses
#: packets, not a proxy, a router or a frozen host that goes on acknowledging them.
SILENCE_S = 10
#: Seconds that the second connection may take on which the server is asked.
ASK_S = 5
#: Seconds of silence after which a connection through a pooler is given up. Nobody can be asked about its statement,
#: but the server itself ends one after 60 s (`postgresql.LIMITS`).
POOLED_S = 75


class Connection(psycopg.Connection[Any]):
    """psycopg's connection, given up when its server neither says anything nor is at work on its statement."""

    #: Whether a pooler is in between; found out when the connection is open.
    is_pooled = False

    def wait(self, gen: PQGen[RV], *arguments: Any, **options: Any) -> RV:
        """Run a statement, as psycopg does it.

        An exit or Ctrl-C that comes while `_while_heard` itself runs ends that, and psycopg has nothing left by which
        to wait for the end of the statement. Whoever then puts the connection back as it was, as SQLAlchemy's ping
        does, would get an error in the exit's place; so it is closed.
        """
        try:
            return super().wait(self._while_heard(gen), *arguments, **options)
        except BaseException as error:
            if not isinstance(error, Exception) and self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                self.pgconn.finish()
            raise

    def _while_heard(self, steps: PQGen[RV]) -> PQGen[RV]:
        """Pass on the steps of a statement; psycopg asks for the next one ten times a second."""
        heard = asked = time.monotonic()
        try:
            wanted = next(steps)
            while True:
                ready = yield wanted
                if ready:
                    heard = asked = time.monotonic()
                elif time.monotonic() - asked > SILENCE_S:
                    silent_s = time.monotonic() - heard
                    if (self.is_pooled and silent_s > POOLED_S) or not self._is_at_work():
                        self.pgconn.finish()
                        raise psycopg.OperationalError(f"the server has been silent for {silent_s:.0f} s")
                    asked = time.monotonic()
                wanted = steps.send(ready)
        except StopIteration as end:
            result: RV = end.value
            return result

    def _is_at_work(self) -> bool:
        """Ask, on another connection, whether the server still works on the statement: some take their time.

        Of a pooler, which keeps to itself what works on what, it is asked only whether it answers.
        """
        try:
            with _Question.connect(
                self.info.dsn, password=self.info.password, connect_timeout=ASK_S, autocommit=True
            ) as other:
                if self.is_pooled:
                    return True
                active = other.execute(
                    "SELECT FROM pg_stat_activity WHERE pid = %s AND state = 'active'", [self.info.backend_pid]
                )
                return active.rowcount == 1
        except psycopg.Error as error:
            # a pooler that takes no more connections answers
            return self.is_pooled and "FATAL" in str(error)


class _Question(Connection):
    def _is_at_work(self) -> bool:
        return False
