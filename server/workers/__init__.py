"""Threads that work while the server runs, each supervised."""
