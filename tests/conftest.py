"""What all tests need of the process that runs them."""

import signal


def pytest_configure() -> None:
    """Shells have what they run in the background ignore SIGINT, and so its children; tests send it and are heard."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
