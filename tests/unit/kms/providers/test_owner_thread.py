"""The thread that owns a token: bounded waits, lost connections, an end that holds nobody up."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from kms.errors import Backpressure, NotFound, StoreUnavailable, Timeout
from kms.providers.connection import Connection, ConnectionLostError, GiveUpError
from kms.providers.owner_thread import OwnerThread


class Token:
    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        self.closed = True


class Opener:
    """Gives tokens, or raises what it is told to."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.tries = 0
        self.now_s = 0.0
        self.opened: list[Token] = []

    def __call__(self) -> Token:
        self.tries += 1
        if self.error is not None:
            raise self.error
        self.opened.append(Token())
        return self.opened[-1]

    def connection(self, random: Callable[[], float] = lambda: 1.0) -> Connection[Token]:
        return Connection(self, lambda: self.now_s, random)


@pytest.fixture
def opener() -> Opener:
    return Opener()


@pytest.fixture
def owner(opener: Opener) -> Iterator[OwnerThread[Token]]:
    thread = OwnerThread("test-token", opener.connection(), max_waiting=2)
    yield thread
    thread.close()


def lose(_token: Token) -> None:
    raise ConnectionLostError


def test_all_jobs_run_on_one_thread(owner: OwnerThread[Token]) -> None:
    seen = {owner.call(lambda _token: threading.get_ident(), 5.0) for _ in range(3)}
    assert len(seen) == 1
    assert threading.get_ident() not in seen


def test_a_jobs_error_reaches_its_caller_and_the_connection_stays(opener: Opener, owner: OwnerThread[Token]) -> None:
    def refuse(_token: Token) -> None:
        raise NotFound("no such key")

    with pytest.raises(NotFound):
        owner.call(refuse, 5.0)
    assert owner.call(lambda token: token, 5.0) is opener.opened[0]
    assert not opener.opened[0].closed


def test_a_lost_connection_is_closed_and_opened_again_when_wanted(opener: Opener, owner: OwnerThread[Token]) -> None:
    with pytest.raises(StoreUnavailable):
        owner.call(lose, 5.0)
    assert opener.opened[0].closed
    with pytest.raises(StoreUnavailable):
        owner.call(lambda token: token, 5.0)
    assert opener.tries == 1
    opener.now_s += 0.2
    assert owner.call(lambda token: token, 5.0) is opener.opened[1]


def test_a_full_queue_refuses_and_a_late_job_is_not_run(owner: OwnerThread[Token]) -> None:
    go_on, begun = threading.Event(), threading.Event()
    ran: list[int] = []

    def block(_token: Token) -> None:
        begun.set()
        go_on.wait(10)

    def count(_token: Token) -> None:
        ran.append(1)

    blocked = threading.Thread(target=lambda: owner.call(block, 10.0))
    blocked.start()
    assert begun.wait(5)
    for _ in range(2):
        with pytest.raises(Timeout):
            owner.call(count, 0.001)
    with pytest.raises(Backpressure):
        owner.call(count, 0.001)
    go_on.set()
    blocked.join(5)
    owner.call(lambda _token: None, 5.0)
    assert ran == []


def test_closing_lets_go_of_the_connection_and_frees_who_waits(opener: Opener) -> None:
    owner = OwnerThread("test-token", opener.connection())
    go_on, begun = threading.Event(), threading.Event()
    errors: list[Exception] = []

    def block(_token: Token) -> None:
        begun.set()
        go_on.wait(10)

    def wait() -> None:
        try:
            owner.call(lambda _token: None, 10.0)
        except StoreUnavailable as error:
            errors.append(error)

    blocked, waiting = threading.Thread(target=lambda: owner.call(block, 10.0)), threading.Thread(target=wait)
    blocked.start()
    assert begun.wait(5)
    waiting.start()
    while owner._jobs.empty():
        threading.Event().wait(0.001)
    closing = threading.Thread(target=owner.close)
    closing.start()
    waiting.join(5)
    go_on.set()
    closing.join(5)
    blocked.join(5)
    assert [error.reason for error in errors] == ["closed"]
    assert opener.opened[0].closed
    with pytest.raises(StoreUnavailable):
        owner.call(lambda _token: None, 1.0)
    owner.close()


def test_pauses_double_to_their_bound_and_start_anew_after_success(opener: Opener) -> None:
    connection = opener.connection()
    opener.error = ConnectionLostError()
    for pause_s in (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0):
        tries = opener.tries
        with pytest.raises(StoreUnavailable) as caught:
            connection.get()
        assert caught.value.retry_after_s == -(-pause_s // 1)
        assert opener.tries == tries + 1
        opener.now_s += pause_s * 0.99
        with pytest.raises(StoreUnavailable):
            connection.get()
        assert opener.tries == tries + 1
        opener.now_s += pause_s * 0.01 + 1e-9
    opener.error = None
    connection.get()
    assert connection.lose().retry_after_s == 1
    opener.now_s += 0.1 + 1e-9
    assert connection.get() is opener.opened[1]


@pytest.mark.parametrize("draw", [0.0, 0.25, 1.0])
def test_the_pause_is_jittered_between_half_and_whole(opener: Opener, draw: float) -> None:
    connection = opener.connection(lambda: draw)
    opener.error = ConnectionLostError()
    with pytest.raises(StoreUnavailable):
        connection.get()
    pause_s = 0.1 * (0.5 + draw / 2)
    opener.now_s = pause_s - 1e-6
    with pytest.raises(StoreUnavailable):
        connection.get()
    assert opener.tries == 1
    opener.now_s = pause_s + 1e-6
    with pytest.raises(StoreUnavailable):
        connection.get()
    assert opener.tries == 2


def test_a_refused_pin_is_never_tried_again(opener: Opener) -> None:
    connection = opener.connection()
    opener.error = GiveUpError()
    for _ in range(3):
        opener.now_s += 1000
        with pytest.raises(StoreUnavailable) as caught:
            connection.get()
        assert caught.value.reason == "token_pin"
    assert opener.tries == 1


def test_a_refusal_of_the_token_itself_passes_and_is_tried_again_later(opener: Opener) -> None:
    connection = opener.connection()
    opener.error = StoreUnavailable("another token", reason="token_replaced")
    with pytest.raises(StoreUnavailable) as caught:
        connection.get()
    assert caught.value.reason == "token_replaced"
    opener.error = None
    with pytest.raises(StoreUnavailable) as caught:
        connection.get()
    assert caught.value.reason == "token_lost"
    opener.now_s += 1
    connection.get()
    connection.close()
    connection.close()
    assert opener.opened[0].closed
