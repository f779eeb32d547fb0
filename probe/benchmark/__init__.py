"""Measures, on the machine that it runs on, what exact statistics cost beside eager attention and SDPA."""
