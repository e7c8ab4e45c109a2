"""Trying candidates, and choosing one."""
