"""Calibration and evaluation data: read once from end to end, judged, and left on disk."""
