"""Stubs in the place of the services, for `hotslot up` in its own tests: it finds them in the folder it is run in."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STUB = "tests.support.stub_service"


def write_stubs(folder: Path) -> None:
    """Write a store, a worker and a gateway that only say that they are healthy, and a model `m` to name."""
    for name in ("store_service", "worker_service"):
        # `python -m` looks in the current folder first.
        (folder / name).mkdir()
        (folder / name / "__init__.py").touch()
        code = f"import asyncio\nfrom {STUB} import main\nasyncio.run(main())\n"
        (folder / name / "__main__.py").write_text(code)
    (folder / "gateway_service").mkdir()
    (folder / "gateway_service" / "__init__.py").touch()
    code = (ROOT / "tests/support/stub_gateway.py").read_text(encoding="utf-8")
    (folder / "gateway_service" / "__main__.py").write_text(code, encoding="utf-8")
    write_model(folder / "m")


def write_model(folder: Path) -> None:
    """Write the files that a model has, as far as `up` looks at them itself."""
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    for name in ("model.safetensors", "tokenizer.json"):
        (folder / name).touch()


def write_echo_workers(folder: Path) -> None:
    """Write a worker in the place of the real one that serves the echo model, and a model `m` to name.

    Store and gateway are the real ones.
    """
    (folder / "worker_service").mkdir()
    (folder / "worker_service" / "__init__.py").touch()
    code = (
        "import runpy, sys\n"
        f"sys.path.remove({str(folder)!r})\n"
        "del sys.modules['worker_service']\n"
        "runpy.run_module('tests.support.echo_process', run_name='__main__')\n"
    )
    (folder / "worker_service" / "__main__.py").write_text(code)
    write_model(folder / "m")
