"""Defaults of the clients where neither an argument nor a variable says something else."""

DEFAULT_STORE = "127.0.0.1:7400"
DEFAULT_WORKER = "127.0.0.1:7500"
GENERATE_TIMEOUT_S = 600.0
