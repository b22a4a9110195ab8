"""Programs that are no tests: they measure, simulate and generate."""
