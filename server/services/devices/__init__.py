"""Devices as people see and manage them."""
