"""Rollouts: making them, moving them on, stopping them, and showing them."""
