"""`python -m weakseg`, and `torchrun -m weakseg`."""

from weakseg.cli import main

main()
