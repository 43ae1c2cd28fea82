"""A TCP forwarder that can cut its connections, to stand between the client and the edge. TLS stays end to end."""

from __future__ import annotations

import contextlib
import socket
import threading

JOIN_S = 20.0


class Forwarder:
    """Listens on `host` and passes bytes to `target` on loopback; a context manager."""

    def __init__(self, target_port: int, host: str = "127.0.0.1") -> None:
        self._target = ("127.0.0.1", target_port)
        self._host = host
        self._listener = socket.create_server((host, 0))
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._threads: list[threading.Thread] = []

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    @property
    def connections(self) -> int:
        """How many came so far."""
        return len(self._pairs)

    def url(self, path: str) -> str:
        return f"https://{self._host}:{self.port}{path}"

    def cut(self) -> None:
        """End every connection."""
        for pair in self._pairs:
            for sock in pair:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Forwarder:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(JOIN_S)
            assert not thread.is_alive()
        for pair in self._pairs:
            for sock in pair:
                sock.close()

    def _start(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
            except OSError:
                return
            self._pairs.append((near, far))
            self._start(self._pump, near, far)
            self._start(self._pump, far, near)

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
