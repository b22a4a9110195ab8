"""Writes the chart: python -m deploy.chart FOLDER, and then `helm install hotslot FOLDER/hotslot`."""

import argparse
import shutil
import sys
from pathlib import Path

from deploy.chart.chart import NAME, ChartSources, files


def main() -> int:
    """Write it anew; what was in its folder goes."""
    parser = argparse.ArgumentParser(prog="python -m deploy.chart", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("build/chart"), help="by default build/chart")
    folder = parser.parse_args().folder / NAME
    shutil.rmtree(folder, ignore_errors=True)
    for path, text in files(ChartSources.built()).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
