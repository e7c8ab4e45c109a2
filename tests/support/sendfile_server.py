"""Sends a file to whoever connects and says a byte, by `sendfile(2)` alone: what loopback gives at most.

A script: its arguments are the file and the port.
"""

from __future__ import annotations

import os
import selectors
import socket
import sys
from pathlib import Path
from typing import Final

_PIECE: Final = 1024 * 1024


def main(path: Path, port: int) -> None:
    """Serve until killed, every connection in turn, as much as its buffer takes."""
    listener = socket.create_server(("127.0.0.1", port), backlog=512)
    listener.setblocking(False)
    file, size = os.open(path, os.O_RDONLY), path.stat().st_size
    sent: dict[socket.socket, int] = {}
    waiting = selectors.DefaultSelector()
    waiting.register(listener, selectors.EVENT_READ)
    while True:
        for key, events in waiting.select():
            sock = key.fileobj
            assert isinstance(sock, socket.socket)
            if sock is listener:
                made, _ = listener.accept()
                made.setblocking(False)
                waiting.register(made, selectors.EVENT_READ)
            elif events & selectors.EVENT_READ:
                if not sock.recv(1):
                    waiting.unregister(sock)
                    sock.close()
                    continue
                sent[sock] = 0
                waiting.modify(sock, selectors.EVENT_WRITE)
            else:
                sent[sock] += os.sendfile(sock.fileno(), file, sent[sock], min(_PIECE, size - sent[sock]))
                if sent[sock] == size:
                    waiting.modify(sock, selectors.EVENT_READ)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
