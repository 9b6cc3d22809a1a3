"""weakseg: cheap labels in, pixel masks and a trained segmenter out."""

__version__ = "0.1.0"
