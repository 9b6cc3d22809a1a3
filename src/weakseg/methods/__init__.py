"""One file per paper: its head, its losses, its inference."""
