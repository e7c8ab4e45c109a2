"""Wires the parts of the server that belong together; `server.bootstrap` makes one server of them."""
