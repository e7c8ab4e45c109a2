"""The line between a site and the rest of the world: counts the bytes on it, can stall, and can be cut."""

from __future__ import annotations

import contextlib
import math
import socket
import threading


class Wan:
    """Forwards TCP connections on loopback from a port of its own to another."""

    def __init__(self, target: int) -> None:
        """Listen; connections go to this port."""
        self.bytes_in = 0
        self._target = target
        self._most = math.inf
        self._flows = threading.Event()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._serve()

    def cut(self) -> None:
        """Break every connection, and refuse new ones."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for sock in self._open:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def stall(self, more: int) -> None:
        """Let so many bytes more into the site, and then none until `flow`."""
        self._flows.clear()
        self._most = self.bytes_in + more

    def flow(self) -> None:
        """Let everything through again."""
        self._most = math.inf
        self._flows.set()

    def mend(self) -> None:
        """Let connections through again."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._serve()

    def close(self) -> None:
        """End."""
        self.flow()
        self.cut()

    def _serve(self) -> None:
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = self._dial()
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
                    if self.bytes_in >= self._most:
                        self._flows.wait()
                sink.sendall(data)
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        with self._lock:
            leaving = self._open & {source, sink}
            self._open -= leaving
        for sock in leaving:
            sock.close()
