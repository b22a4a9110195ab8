"""What all tests need of the process that runs them."""

import signal

from hypothesis import settings

# Times of examples say how busy the machine is; what is slow is measured by benchmarks.
settings.register_profile("hotslot", deadline=None)
settings.load_profile("hotslot")


def pytest_configure() -> None:
    """Shells have what they run in the background ignore SIGINT, and so its children; tests send it and are heard."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
