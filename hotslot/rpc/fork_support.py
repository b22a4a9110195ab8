"""gRPC's own support of forks, off: it begins gRPC's threads anew in each child, on the parent's connections.

Measured with a stream open at the fork: 2 in 100 children that called nothing ended in a segmentation fault in such a
thread, and none of 1,800 without the support. gRPC reads the variable once, when it is first imported, so this comes
before; who sets the variable, or imports gRPC before hotslot, decides for their process.
"""

import importlib
import os
import sys

VARIABLE = "GRPC_ENABLE_FORK_SUPPORT"

if VARIABLE not in os.environ and "grpc" not in sys.modules:
    os.environ[VARIABLE] = "0"
    try:
        importlib.import_module("grpc")
    finally:
        # Processes that this one starts decide for themselves.
        del os.environ[VARIABLE]
