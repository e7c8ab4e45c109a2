"""Aggregates: exponential histograms, label counts, drift statistics, and the report of a window."""
