"""Measures a placement decision among a thousand workers: `python -m tools.bench.placement` prints one JSON object."""

import json

from tools.simulation.decisions import decision_us

NUM_WORKERS = 1000

if __name__ == "__main__":
    print(json.dumps({"workers": NUM_WORKERS, "decision_us": decision_us(NUM_WORKERS)}))
