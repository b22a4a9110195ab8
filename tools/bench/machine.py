"""Record of the machine that figures are from, as far as it decides them."""

import hashlib
import os
import platform
import re
from pathlib import Path
from typing import Any

import psutil
import torch

WIDE_FLAGS = re.compile(r"avx\w*|fma|f16c|amx\w*|sve\w*|asimd\w*|bf16|i8mm|vnni")
"""Flags of a processor that decide which kernels it can run."""


def machine() -> dict[str, Any]:
    """Processor, flags, cores, memory, system and versions."""
    facts = _cpuinfo()
    flags = sorted(flag for flag in facts.get("flags", facts.get("Features", "")).split() if WIDE_FLAGS.fullmatch(flag))
    return {
        "cpu": facts.get("model name") or platform.processor() or platform.machine(),
        "family": " ".join(facts.get(name, "") for name in ("cpu family", "model", "stepping")).strip(),
        "flags": flags,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
    }


def machine_type(record: dict[str, Any]) -> str:
    """Name of the kind of machine: ratios of two runs may be compared if they are of one kind."""
    facts = "\n".join([record["cpu"], record["family"], *record["flags"], str(record["cores"])])
    name = re.sub(r"[^a-z0-9]+", "-", record["cpu"].lower()).strip("-")
    return f"{record['cores']}-{name}-{hashlib.sha256(facts.encode()).hexdigest()[:6]}"


def busy_share(interval_s: float = 1.0) -> float:
    """Share of all cores that other work takes now."""
    return psutil.cpu_percent(interval_s) / 100


def _cpuinfo() -> dict[str, str]:
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}
