"""The real command line in two processes as torchrun starts them, each a fork of this one, which imports the libraries
once.

Usage: python forked.py ARGUMENTS… (the arguments of `weakseg`); fails where a process fails
"""

from __future__ import annotations

import os
import socket
import sys

import weakseg.pipeline.run
import weakseg.report.run  # noqa: F401
from weakseg.cli import main
from weakseg.pipeline.recipe import stage_kinds

stage_kinds()
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"}
children = []
for rank in ("0", "1"):
    child = os.fork()
    if child == 0:
        os.environ |= {"RANK": rank, "LOCAL_RANK": rank}
        main()
        sys.exit()
    children.append(child)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0 for child in children))
