"""Numerical algorithms without learning: arrays in, arrays out."""
