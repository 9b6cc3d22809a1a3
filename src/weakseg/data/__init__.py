"""Data sets: one `Sample` type whatever the source, readers, checks, simulated weak labels, toy data."""
