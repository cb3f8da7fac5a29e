"""Measurements: what sharing saves, what a round trip costs, how fast a model runs."""
