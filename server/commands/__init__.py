"""The server's commands, one module each; only `serve` and `broker` load the rest of it."""
