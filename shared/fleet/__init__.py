"""Which worker a request should go to: pure functions over what the directory knows."""
