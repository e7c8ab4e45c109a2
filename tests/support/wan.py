"""The line between a site and the rest of the world: counts the bytes on it, and can be cut."""

from __future__ import annotations

import contextlib
import socket
import threading


class Wan:
    """Forwards TCP connections on loopback from a port of its own to another."""

    def __init__(self, target: int) -> None:
        """Listen; connections go to this port."""
        self.bytes_in = 0
        self._target = target
        self._up = True
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Break every connection, and let none through."""
        with self._lock:
            self._up = False
            for sock in self._open:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """Let connections through again."""
        with self._lock:
            self._up = True

    def close(self) -> None:
        """Stop listening, and break what is open."""
        self.cut()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                up = self._up
            far = self._dial() if up else None
            if far is None:
                near.close()
                continue
            with self._lock:
                self._open |= {near, far}
            for source, sink, inward in ((near, far, False), (far, near, True)):
                threading.Thread(target=self._pump, args=(source, sink, inward), daemon=True).start()

    def _dial(self) -> socket.socket | None:
        with contextlib.suppress(OSError):
            return socket.create_connection(("127.0.0.1", self._target), 5)
        return None

    def _pump(self, source: socket.socket, sink: socket.socket, inward: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if inward:
                    with self._lock:
                        self.bytes_in += len(data)
                sink.sendall(data)
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        with self._lock:
            leaving = self._open & {source, sink}
            self._open -= leaving
        for sock in leaving:
            sock.close()
