"""Generate `hotslot/pb` from the protos, or with `--check` report where the committed stubs have drifted."""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
PACKAGE = Path("hotslot/pb")
PACKAGE_DOC = '"""Generated from protos/ by `make protos`; never edited by hand."""\n'


def generate(output: Path) -> None:
    """Write the package `hotslot/pb` below `output`."""
    sources = [PACKAGE / path.relative_to(PROTOS) for path in sorted(PROTOS.rglob("*.proto"))]
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            # The virtual path makes protoc emit `from hotslot.pb…` imports.
            f"-I{PACKAGE}={PROTOS}",
            *(f"--{kind}_out={output}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")),
            *map(str, sources),
        ],
        cwd=ROOT,
        # protoc finds its plugins on PATH, and .venv need not be active.
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"},
        check=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    package = output / PACKAGE
    for folder in [package, *(path for path in package.rglob("*") if path.is_dir())]:
        (folder / "__init__.py").write_text(PACKAGE_DOC)


def read_package(root: Path) -> dict[Path, bytes]:
    """The generated files below `root`, by path."""
    return {
        path.relative_to(root): path.read_bytes()
        for path in (root / PACKAGE).rglob("*")
        if path.suffix in {".py", ".pyi"}
    }


def drift(fresh: dict[Path, bytes], committed: dict[Path, bytes]) -> list[str]:
    """Differences, one line a file."""
    return [
        f"{path}: {'missing' if path not in committed else 'left over' if path not in fresh else 'differs'}"
        for path in sorted(fresh.keys() | committed.keys())
        if fresh.get(path) != committed.get(path)
    ]


def main(argv: list[str] | None = None) -> int:
    """Run the command; 1 when `--check` finds drift, 2 when protoc refuses a proto."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when stubs have drifted")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        try:
            generate(Path(folder))
        except subprocess.CalledProcessError as error:
            print(error.stderr, file=sys.stderr)
            return 2
        fresh = read_package(Path(folder))
    committed = read_package(ROOT)
    differences = drift(fresh, committed)
    if arguments.check:
        for line in differences:
            print(f"{line} (run `make protos`)", file=sys.stderr)
        return 1 if differences else 0
    for path in committed.keys() - fresh.keys():
        (ROOT / path).unlink()
    for path, content in fresh.items():
        if committed.get(path) != content:
            (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
            (ROOT / path).write_bytes(content)
    print(f"{PACKAGE}: {len(fresh)} files, {len(differences)} changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
