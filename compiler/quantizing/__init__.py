"""Quantizing in integers, as far as tool-chains share it: ranges, weights, Q/DQ, what stays in float."""
