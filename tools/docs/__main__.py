"""`python -m tools.docs [--check]`: build the documentation, or only look for what is wrong with it.

Every page of the repository and the reference that is made of its code become one site, `build/docs/html`, that needs
no other host. A link or an anchor that leads nowhere, a page that nothing leads to and any other warning are errors.
"""

import argparse
import shutil
import sys
import time
from pathlib import Path

from tools.docs.pages import stage
from tools.docs.site import build

ROOT = Path(__file__).resolve().parents[2]


def main(argv: list[str] | None = None) -> int:
    """Run the command; 1 when something is wrong with a page."""
    parser = argparse.ArgumentParser(prog="python -m tools.docs", description="Build the documentation.")
    parser.add_argument("--check", action="store_true", help="write no pages; only look for what is wrong with them")
    arguments = parser.parse_args(argv)
    begin_s = time.monotonic()
    folder = ROOT / "build" / "docs"
    shutil.rmtree(folder, ignore_errors=True)
    num_pages = stage(ROOT, folder / "source")
    if not build(folder / "source", folder, check=arguments.check):
        print("docs: the warnings above are errors", file=sys.stderr)
        return 1
    print(f"docs: {num_pages} pages in {time.monotonic() - begin_s:.1f} s")
    if not arguments.check:
        print(folder / "html" / "index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
