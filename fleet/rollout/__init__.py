"""Bringing a release to a set of devices in groups: plan, thresholds, and one table of decisions."""
