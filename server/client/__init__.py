"""The command line's way to a server: HTTP, and nothing of the server's own libraries."""
