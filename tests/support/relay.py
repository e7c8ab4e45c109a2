"""A TCP relay on loopback: counts what passes, and lets it crawl when it is told to."""

from __future__ import annotations

import contextlib
import socket
import threading
import time


class Relay:
    """Passes TCP on to a port of this machine.

    Attributes:
        port: where it listens.
        count: bytes that have passed, both ways.
        crawl: while it is set, what comes back from the port passes a byte at a time, 20 in a second.
    """

    def __init__(self, port: int) -> None:
        """Listen."""
        self.count = 0
        self.crawl = threading.Event()
        self._to = port
        self._ends: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return  # closed
            far = socket.create_connection(("127.0.0.1", self._to))
            self._ends += (near, far)
            for source, sink, back in ((near, far, False), (far, near, True)):
                threading.Thread(target=self._pass, args=(source, sink, back), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, back: bool) -> None:
        with contextlib.suppress(OSError):  # the other side went first
            while data := source.recv(65536):
                self.count += len(data)
                while data and back and self.crawl.is_set():
                    sink.sendall(data[:1])
                    data = data[1:]
                    time.sleep(0.05)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """End every connection, as a network does that goes and comes back."""
        for end in self._ends:
            with contextlib.suppress(OSError):  # it has ended by itself
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Accept nobody any more."""
        self._listener.close()
