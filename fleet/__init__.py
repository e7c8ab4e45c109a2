"""The vocabulary that compiler, server and device agent share.

Everything below is pure: no sockets, files, clocks, threads or randomness. Times, bytes and random
values are passed in; results are returned. import-linter holds this.
"""
