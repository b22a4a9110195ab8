"""Count what the structure of the code is judged by: `python -m tools.structure [--json] [ROOT]`.

Lines and files of the product, circles of imports, imports against the layers, class names that stand for two things,
and docstrings that begin with a question word, both in `deploy` and `tools` too. Generated code is left out.
"""

import argparse
import ast
import json
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

PRODUCT = ("hotslot", "shared", "store_service", "worker_service", "gateway_service", "controller_service", "client")
"""Top-level packages that users run; `client` is where older trees have what `hotslot` holds."""
BESIDE = ("deploy", "tools")
"""Packages whose class names and docstrings count with the product's."""
GENERATED = "pb"
LAYERS: Mapping[str, int] = {
    "client": 0, "hotslot": 0, "shared": 1, "store_service": 2, "worker_service": 2, "gateway_service": 2,
    "controller_service": 2,
}  # fmt: skip
"""An import may go to a lower layer or stay in its package."""
QUESTION_WORDS = ("What", "Whether", "Who", "Whoever", "Whom", "Whose", "Where", "Of", "How", "Which", "Why", "When")


@dataclass(frozen=True, slots=True)
class Structure:
    """Figures of one tree, and what they count."""

    files: int
    lines: int
    circles: tuple[tuple[str, ...], ...]
    against_layers: tuple[str, ...]
    duplicate_classes: Mapping[str, tuple[str, ...]]
    """Classes and aliases of types that share a name, with their modules."""
    question_docstrings: tuple[str, ...]


def measure(root: Path, files: Iterable[Path] | None = None) -> Structure:
    """Measure the product of the tree at `root`: these files of it, by default all that git knows."""
    trees = {path: ast.parse((root / path).read_text()) for path in (_sources(root) if files is None else files)}
    modules = {_module_of(path): (path, tree) for path, tree in trees.items() if path.parts[0] in PRODUCT}
    imports = {name: set(_imports(name, tree, modules)) for name, (_, tree) in modules.items()}
    classes: dict[str, list[str]] = defaultdict(list)
    questions: list[str] = []
    for path, tree in trees.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                classes[node.name].append(_module_of(path))
            elif (alias := _alias(node)) is not None:
                classes[alias].append(_module_of(path))
        questions += [f"{path}:{line}" for line in _question_docstrings(tree)]
    return Structure(
        files=len(modules),
        lines=sum(len((root / path).read_text().splitlines()) for path, _ in modules.values()),
        circles=tuple(sorted(_circles(imports))),
        against_layers=tuple(
            sorted(f"{name} -> {other}" for name, others in imports.items() for other in others if _is_up(name, other))
        ),
        duplicate_classes={name: tuple(where) for name, where in sorted(classes.items()) if len(where) > 1},
        question_docstrings=tuple(questions),
    )


def _sources(root: Path) -> Iterator[Path]:
    listed = subprocess.run(["git", "-C", str(root), "ls-files", "*.py"], check=True, capture_output=True, text=True)
    for line in listed.stdout.splitlines():
        path = Path(line)
        if path.parts[0] in (*PRODUCT, *BESIDE) and GENERATED not in path.parts:
            yield path


def _module_of(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(name: str, tree: ast.Module, modules: Mapping[str, object]) -> Iterator[str]:
    for node in ast.walk(tree):
        found: list[str] = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found = [
                full if (full := f"{node.module}.{alias.name}") in modules else node.module for alias in node.names
            ]
        yield from (other for other in found if other in modules and other != name)


def _is_up(name: str, other: str) -> bool:
    own, others = name.split(".", maxsplit=1)[0], other.split(".", maxsplit=1)[0]
    return own != others and LAYERS[others] >= LAYERS[own]


def _circles(imports: Mapping[str, set[str]]) -> list[tuple[str, ...]]:
    """Strongly connected components of more than one module (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[tuple[str, ...]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in imports[name]:
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            position = stack.index(name)
            component = stack[position:]
            del stack[position:]
            if len(component) > 1:
                found.append(tuple(sorted(component)))

    for name in imports:
        if name not in index:
            visit(name)
    return found


def _alias(node: ast.stmt) -> str | None:
    """Name of a type that a statement gives to an expression, such as `Ask = Callable[[str], str]`."""
    if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
        return None
    name = node.targets[0].id
    is_type = isinstance(node.value, ast.Subscript | ast.Attribute | ast.BinOp) and name[:1].isupper()
    return name if is_type and not name.isupper() else None


def _question_docstrings(tree: ast.Module) -> Iterator[int]:
    """Lines of docstrings, attributes' ones included, whose first word asks."""
    for node in ast.walk(tree):
        for statement in getattr(node, "body", []) if isinstance(getattr(node, "body", None), list) else []:
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                value = statement.value.value
                if isinstance(value, str) and value.split() and value.split()[0].rstrip(",:") in QUESTION_WORDS:
                    yield statement.lineno


def main() -> None:
    """Print the figures, and with `--json` what they count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", nargs="?", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--json", action="store_true", help="print what the figures count, too")
    options = parser.parse_args()
    structure = measure(options.root)
    if options.json:
        print(json.dumps(asdict(structure), indent=2))
        return
    folders = Counter(item.split(":")[0].split("/")[0] for item in structure.question_docstrings)
    print(f"files                     {structure.files:6,}")
    print(f"lines                     {structure.lines:6,}")
    print(f"circles of imports        {len(structure.circles):6,}")
    print(f"imports against layers    {len(structure.against_layers):6,}")
    print(f"duplicate class names     {len(structure.duplicate_classes):6,}")
    print(f"question-word docstrings  {len(structure.question_docstrings):6,}  {dict(folders)}")


if __name__ == "__main__":
    main()
