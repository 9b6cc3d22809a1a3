"""The comparison of recipes: what their runs say, and the files that show it."""
