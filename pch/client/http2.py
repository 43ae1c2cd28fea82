"""HTTP/2 connections that hear an answer while they send: a refusal comes before a large content is through.

httpcore waits for room in the flow window and nothing else. A verifier that has seen enough of a content answers, and
gives no room any more (RFC 9113 §8.1), so that the wait would last until the request's time is used up.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import h2.errors
import h2.events
import h2.exceptions
import httpcore

if TYPE_CHECKING:
    from collections.abc import Iterable


class _AnsweredEarly(Exception):
    """The whole answer came before the content was sent."""


class Http2Connection(httpcore.HTTP2Connection):
    """The blocking kind."""

    def _send_request_body(self, request: httpcore.Request, stream_id: int) -> None:
        try:
            super()._send_request_body(request, stream_id)
        except _AnsweredEarly:
            with contextlib.suppress(h2.exceptions.ProtocolError):
                self._h2_state.reset_stream(stream_id, h2.errors.ErrorCodes.NO_ERROR)
            self._write_outgoing_data(request)

    def _wait_for_outgoing_flow(self, request: httpcore.Request, stream_id: int) -> int:
        while True:
            _check_unanswered(self._events.get(stream_id, ()))
            flow: int = min(self._h2_state.local_flow_control_window(stream_id), self._h2_state.max_outbound_frame_size)
            if flow > 0:
                return flow
            self._receive_events(request)


class AsyncHttp2Connection(httpcore.AsyncHTTP2Connection):
    """The asyncio kind."""

    async def _send_request_body(self, request: httpcore.Request, stream_id: int) -> None:
        try:
            await super()._send_request_body(request, stream_id)
        except _AnsweredEarly:
            with contextlib.suppress(h2.exceptions.ProtocolError):
                self._h2_state.reset_stream(stream_id, h2.errors.ErrorCodes.NO_ERROR)
            await self._write_outgoing_data(request)

    async def _wait_for_outgoing_flow(self, request: httpcore.Request, stream_id: int) -> int:
        while True:
            _check_unanswered(self._events.get(stream_id, ()))
            flow: int = min(self._h2_state.local_flow_control_window(stream_id), self._h2_state.max_outbound_frame_size)
            if flow > 0:
                return flow
            await self._receive_events(request)


def _check_unanswered(events: Iterable[object]) -> None:
    """Raise `_AnsweredEarly` when the stream's answer has ended."""
    if any(isinstance(event, h2.events.StreamEnded | h2.events.StreamReset) for event in events):
        raise _AnsweredEarly
