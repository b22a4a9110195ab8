"""Find code that nothing but tests uses, and seams with one implementation: `python -m tools.unused`.

A function, method, property or class is used when its name occurs in the product, `deploy/` or `tools/`. A Protocol is
a seam when two classes, fakes in `tests/` included, have all of its members.
"""

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from vulture import Vulture

ROOT = Path(__file__).resolve().parents[1]
PRODUCT = ("hotslot", "shared", "store_service", "worker_service", "gateway_service", "controller_service")
USERS = (*PRODUCT, "deploy", "protos", "tools")
KINDS = ("class", "function", "method", "property")
MIN_IMPLEMENTATIONS = 2
CALLED_FROM_ELSEWHERE = ["@*.command*", "@*.register*", "@field_validator*", "@model_validator*", "@register_fake*"]
"""Decorators that hand a function to a library."""
RPC = re.compile(r"^\s*rpc (\w+)\(", re.MULTILINE)
"""RPCs of a proto file: gRPC calls the servicers' methods, callers of other languages too."""
KEPT: Mapping[str, str] = {
    "Watch": "gRPC calls it, of the health service",
    "acl_rule": "rights that docs/network.md names for Redis's user; tests try them against a server",
    "PublishCallback": "trainers are given it",
    "addresses": "tests hold that no slot and no block moves in memory",
    "capture_signals": "uvicorn calls it",
    "connected": "tests wait for it",
    "get_credentials_async": "redis-py calls it",
    "intercept_service": "gRPC calls it",
    "num_connections": "tests hold that nothing stays open",
    "num_running": "tests hold that nothing goes on",
    "on_save": "transformers calls it",
    "on_step_end": "transformers calls it",
    "on_train_end": "transformers calls it",
    "ping": "tests of the connection ask no more of Redis",
    "send_400_response": "uvicorn calls it",
    "spills": "tests hold each spilling worker against the policy",
    "tracked": "tests hold that what is over is forgotten",
    "until_connected": "tests wait for it",
}
"""Names that only tests use, and why they stay."""
SEAMS: Mapping[str, str] = {
    "HasMetadata": "contexts of gRPC",
    "SharedCode": "loading a model knows nothing of the network; without sharing there is none",
}
"""Protocols with fewer classes than two in this repository, and their other implementations."""


def unused_code(root: Path) -> Iterator[str]:
    """Code that only tests use, as `path:line: kind name`."""
    rpcs = {name for path in (root / "protos").rglob("*.proto") for name in RPC.findall(path.read_text("utf-8"))}
    finder = Vulture(ignore_decorators=CALLED_FROM_ELSEWHERE)
    finder.scavenge([root / name for name in USERS if (root / name).is_dir()], exclude=["*/hotslot/pb/*"])
    for item in finder.get_unused_code():
        path = item.filename.relative_to(root)
        is_special = item.name.startswith("__") and item.name.endswith("__")
        is_kept = item.name in KEPT or (item.name in rpcs and path.stem.endswith("_servicer"))
        if item.typ in KINDS and not is_special and not is_kept and path.parts[0] in PRODUCT:
            yield f"{path}:{item.first_lineno}: {item.typ} {item.name} is used by no program, only by tests if at all"


def lone_seams(trees: Mapping[Path, ast.Module]) -> Iterator[str]:
    """Protocols of the product that fewer than two classes implement, as `path:line: name`."""
    classes = {
        (path, node.name): node
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    own = {key: frozenset(_members(node)) for key, node in classes.items()}
    named: dict[str, set[str]] = defaultdict(set)
    for (_, name), members in own.items():
        named[name] |= members
    bases = {key: [_name(base) for base in node.bases] for key, node in classes.items()}
    concrete = {
        key: own[key].union(*(named[base] for base in bases[key])) for key in classes if "Protocol" not in bases[key]
    }
    for (path, name), node in classes.items():
        if (path, name) in concrete or path.parts[0] not in PRODUCT or name in SEAMS:
            continue
        found = [other for (_, other), members in concrete.items() if own[path, name] <= members]
        if len(found) < MIN_IMPLEMENTATIONS:
            yield f"{path}:{node.lineno}: Protocol {name} has too few implementations: {', '.join(found) or 'none'}"


def _members(node: ast.ClassDef) -> Iterator[str]:
    """Methods, properties and fields that a class declares or assigns to itself."""
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child.name
            arguments = child.args.args
            receiver = arguments[0].arg if arguments else ""
            for inner in ast.walk(child):
                if (
                    isinstance(inner, ast.Attribute)
                    and isinstance(inner.ctx, ast.Store)
                    and isinstance(inner.value, ast.Name)
                    and inner.value.id == receiver
                ):
                    yield inner.attr
        elif isinstance(child, ast.AnnAssign) and isinstance(child.target, ast.Name):
            yield child.target.id
        elif isinstance(child, ast.Assign):
            yield from (target.id for target in child.targets if isinstance(target, ast.Name))


def _name(base: ast.expr) -> str:
    if isinstance(base, ast.Subscript):
        return _name(base.value)
    return base.attr if isinstance(base, ast.Attribute) else base.id if isinstance(base, ast.Name) else ""


def parsed(root: Path) -> dict[Path, ast.Module]:
    """Every Python file that git knows or will know, without generated ones."""
    command = ["git", "-C", str(root), "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\n")
    paths = [Path(name) for name in names if name and "pb" not in Path(name).parts and (root / name).is_file()]
    return {path: ast.parse((root / path).read_text(encoding="utf-8")) for path in paths}


def stale_entries(root: Path) -> Iterator[str]:
    """Names of the lists above that stand nowhere in the product any more."""
    text = "".join(path.read_text(encoding="utf-8") for name in PRODUCT for path in (root / name).rglob("*.py"))
    for name in [*KEPT, *SEAMS]:
        if re.search(rf"\b(def|class) {name}\b", text) is None:
            yield f"tools/unused.py: {name} is not there any more; take it off the list"


def report(findings: Iterable[str]) -> int:
    """Print findings; returns the exit code."""
    lines = list(findings)
    for line in lines:
        print(line)
    return 1 if lines else 0


def main() -> int:
    """Look through the whole repository."""
    return report([*unused_code(ROOT), *lone_seams(parsed(ROOT)), *stale_entries(ROOT)])


if __name__ == "__main__":
    sys.exit(main())
