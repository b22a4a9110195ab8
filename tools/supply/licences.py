"""Check the licences of everything that the product depends on: `python -m tools.supply.licences`.

A package's licence is the SPDX expression of its metadata, or what older metadata says, translated; where neither is
clear, `requirements/licences.toml` states what its licence file says. All parts of an AND must be allowed, and one of
an OR.
"""

import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from tools.supply.closure import ROOT, installed_closure, product_requirements

POLICY = ROOT / "requirements" / "licences.toml"
TRANSLATED: Mapping[str, str] = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0 License": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD": "BSD-3-Clause",
    "BSD License": "BSD-3-Clause",
    "ISC License": "ISC",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "MIT license": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
"""Licences as metadata before SPDX names them."""


def licence_of(package: str, policy: Mapping[str, Any]) -> str:
    """SPDX expression of an installed package's licence; empty where it is not clear."""
    stated = policy["stated"].get(package)
    if stated is not None:
        return str(stated)
    metadata = distribution(package).metadata
    if "License-Expression" in metadata:
        return metadata["License-Expression"]
    text = str(metadata.json.get("license") or "")
    if re.fullmatch(r"[A-Za-z0-9.+-]+( (AND|OR) [A-Za-z0-9.+-]+)*", text) and text not in TRANSLATED:
        return text
    if text in TRANSLATED:
        return TRANSLATED[text]
    told = [c.split(" :: ")[-1] for c in metadata.get_all("Classifier") or () if c.startswith("License ::")]
    return " OR ".join(TRANSLATED[each] for each in told) if told and all(c in TRANSLATED for c in told) else ""


def is_allowed(expression: str, allowed: set[str]) -> bool:
    """True when an SPDX expression without nesting may be used."""
    parts = [part.strip("() ") for part in re.split(r"\bAND\b", expression)]
    return bool(expression) and all(any(each.strip() in allowed for each in part.split(" OR ")) for part in parts)


def problems(policy: Mapping[str, Any]) -> Iterator[str]:
    """Packages whose licence is unknown or not allowed, and rules for packages that are not there."""
    versions, missing = installed_closure(product_requirements())
    yield from (f"{name} is needed and not installed; its licence is not known" for name in missing)
    allowed, exceptions = set(policy["allowed"]), policy["exceptions"]
    for name in sorted(versions):
        licence = licence_of(name, policy)
        excepted = exceptions.get(name, {}).get("licence")
        if not is_allowed(licence, allowed) and (not licence or licence != excepted):
            shown = licence or "(unclear)"
            yield f"{name} {versions[name]} has the licence {shown!r}, which {POLICY.name} does not allow"
    for name in sorted({*exceptions, *policy["stated"]} - set(versions)):
        yield f"{POLICY.name} has a rule for {name}, which nothing needs any more"


def read_policy(path: Path = POLICY) -> Mapping[str, Any]:
    """Rules of the file."""
    return tomllib.loads(path.read_text(encoding="utf-8"))


def main() -> int:
    """Check them all; 1 when there is a problem."""
    found = list(problems(read_policy()))
    for problem in found:
        print(f"licences: {problem}", file=sys.stderr)
    if not found:
        versions, _ = installed_closure(product_requirements())
        print(f"licences: {len(versions)} packages, all allowed")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
