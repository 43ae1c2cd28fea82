"""A connection to a token that can be lost: opened again when it is wanted, after a pause that grows, with jitter."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

from kms.errors import KmsError, StoreUnavailable
from kms.telemetry import SESSION_STATES

if TYPE_CHECKING:
    from collections.abc import Callable

    from kms.telemetry import Telemetry

FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 5.0


class ConnectionLostError(Exception):
    """The token is away, or is not the one it was; what was open is worth nothing any more."""


class GiveUpError(Exception):
    """Trying again would do harm (a wrong PIN locks a token): only a restart with other settings helps."""


class Closable(Protocol):
    """What is connected."""

    def close(self) -> None:
        """Let go of it; never raises."""
        ...


C = TypeVar("C", bound=Closable)


class ConnectionMeter:
    """Tell of a connection in `kms_backend_sessions` and `kms_backend_reconnects_total`."""

    def __init__(self, telemetry: Telemetry, backend: str) -> None:
        self._states = {state: telemetry.backend_sessions.labels(backend, state) for state in SESSION_STATES}
        self._reconnects = telemetry.backend_reconnects.labels(backend)
        self._retries = telemetry.backoff_retries.labels("reconnect")

    def opened(self, *, again: bool) -> None:
        """Note an open connection; `again` when it had been lost."""
        self._show("connected")
        if again:
            self._reconnects.inc()

    def lost(self) -> None:
        """Note that there is none."""
        self._show("error")

    def connecting(self, *, again: bool) -> None:
        """Note an attempt; `again` when it comes after a pause."""
        self._show("connecting")
        if again:
            self._retries.inc()

    def _show(self, current: str) -> None:
        for state, gauge in self._states.items():
            gauge.set(state == current)


class Connection(Generic[C]):
    """One connection, opened by `connect`. Only the thread that owns it calls its methods.

    `monotonic_s` is a clock, `random` gives numbers from 0 to 1. A pause is drawn evenly from half of its bound to the
    whole; the bound doubles from 100 ms to 5 s until a connection holds.
    """

    def __init__(
        self,
        connect: Callable[[], C],
        monotonic_s: Callable[[], float],
        random: Callable[[], float],
        meter: ConnectionMeter | None = None,
    ) -> None:
        self._connect = connect
        self._monotonic_s = monotonic_s
        self._random = random
        self._meter = meter
        self._current: C | None = None
        self._pause_s = FIRST_PAUSE_S
        self._retry_at_s = -math.inf
        self._was_open = False
        self._given_up = False

    def get(self) -> C:
        """Give the connection, opened again if it is time to try. Raises StoreUnavailable."""
        if self._current is not None:
            return self._current
        if self._given_up:
            raise StoreUnavailable("the token refuses the PIN: it is not tried again", reason="token_pin")
        wait_s = self._retry_at_s - self._monotonic_s()
        if wait_s > 0:
            raise self._away(wait_s)
        if self._meter is not None:
            self._meter.connecting(again=self._retry_at_s > -math.inf)
        try:
            self._current = self._connect()
        except GiveUpError as error:
            self._given_up = True
            raise StoreUnavailable("the token refuses the PIN: it is not tried again", reason="token_pin") from error
        except ConnectionLostError as error:
            raise self._failed() from error
        except KmsError:
            self._failed()
            raise
        self._pause_s, self._retry_at_s = FIRST_PAUSE_S, -math.inf
        if self._meter is not None:
            self._meter.opened(again=self._was_open)
        self._was_open = True
        return self._current

    def lose(self) -> StoreUnavailable:
        """Drop a connection that turned out to be lost. Returns the error to raise."""
        self.close()
        return self._failed()

    def close(self) -> None:
        """Let go of it. A second call does nothing."""
        current, self._current = self._current, None
        if current is not None:
            current.close()

    def _failed(self) -> StoreUnavailable:
        wait_s = self._pause_s * (0.5 + self._random() / 2)
        self._retry_at_s = self._monotonic_s() + wait_s
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        if self._meter is not None:
            self._meter.lost()
        return self._away(wait_s)

    def _away(self, wait_s: float) -> StoreUnavailable:
        return StoreUnavailable("the token is away", reason="token_lost", retry_after_s=max(1, math.ceil(wait_s)))
