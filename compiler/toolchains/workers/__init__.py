"""Modules that run in a tool-chain's environment: the standard library, numpy and that tool-chain only."""
