"""Adapters: the real parts behind the ports, each thin."""
