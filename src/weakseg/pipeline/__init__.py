"""Recipes (typed settings), runs (folders with manifests) and stages."""
