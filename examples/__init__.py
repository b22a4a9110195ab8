"""Examples that run against a deployment; tests run them too."""
