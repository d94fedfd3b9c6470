"""The shape of a checkout's Python, read and never run: small files, short functions, names that say something, layers.

    python benchmarks/code_shape.py [ROOT [NEW_ROOT]]

Measures trainable/ and tune/ below ROOT, by default of this checkout, and prints one Markdown table; with two roots the
old and the new side by side. Empty files are passed over. How things are counted:

functions     with methods and nested ones; the lines of one from its `def` to its end
public        without a leading underscore, at the top of a file or in a public class
single word   without an underscore inside, such as `tell`; `__init__` and its like are left out of both numbers
untyped dict  an annotation of a parameter or a return that holds a dict or Mapping without types, or whose values are
              Any or object; by its alias too, where one is assigned at the top of a file; quoted ones are not read
layer         the first folder of a file below its package; files directly in a package are its top layer
upward arrow  an import, anywhere in a file, of a file in a layer that ORDER puts higher; a flat package is one layer
circle        layers that import each other, on whatever way round
"""

from __future__ import annotations

import argparse
import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("trainable", "tune")
# From the lowest layer to the highest; those in one line may import one another. The rest of a tree has no rank.
ORDER = (
    ("trainable/core",),
    ("trainable/cases",),
    ("trainable/data", "trainable/model"),
    ("trainable/evaluation",),
    ("trainable/training",),
    ("trainable",),  # the commands
    ("tune/spec",),
    ("tune/search",),
    ("tune/run",),
    ("tune/driver",),
    ("tune",),  # the verbs
)
RANK = {layer: rank for rank, layers in enumerate(ORDER) for layer in layers}
LONG_FUNCTION, LONG_FILE = 60, 320  # lines
NAMED = 5  # names that a cell lists at most
DICTS = {"dict", "Dict", "Mapping", "MutableMapping", "defaultdict", "OrderedDict"}
ANYTHING = {"Any", "object"}
Def = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class SourceFile:
    """A file of a checkout. name: its path below the root. module: as it is imported."""

    name: str
    module: str
    layer: str
    lines: int
    tree: ast.Module

    @property
    def package(self) -> str:
        """The package that its relative imports start from."""
        return self.module if self.name.endswith("/__init__.py") else self.module.rpartition(".")[0]


@dataclass(frozen=True)
class Definition:
    """A function or a class of a file. name: with those of the classes and functions around it."""

    name: str
    file: str
    public: bool
    node: Def | ast.ClassDef

    @property
    def lines(self) -> int:
        """From its first line, without decorators, to its last."""
        return (self.node.end_lineno or self.node.lineno) - self.node.lineno + 1

    @property
    def documented(self) -> bool:
        """Has it a docstring?"""
        return ast.get_docstring(self.node) is not None

    @property
    def dunder(self) -> bool:
        """Is its name Python's own, such as __init__?"""
        return self.node.name.startswith("__") and self.node.name.endswith("__")

    @property
    def single_word(self) -> bool:
        """Is its name one word?"""
        return "_" not in self.node.name.strip("_")


def read_files(root: Path) -> list[SourceFile]:
    """The files of both packages that are not empty, sorted by name."""
    paths = [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]
    return [read_file(root, path) for path in paths if path.read_text(encoding="utf-8").strip()]


def read_file(root: Path, path: Path) -> SourceFile:
    """One file, parsed."""
    text, below = path.read_text(encoding="utf-8"), path.relative_to(root)
    layer = "/".join(below.parts[: min(2, len(below.parts) - 1)])
    module = ".".join(below.with_suffix("").parts).removesuffix(".__init__")
    return SourceFile(below.as_posix(), module, layer, len(text.splitlines()), ast.parse(text, str(path)))


def definitions_below(node: ast.AST, file: str, around: str = "", public: bool = True) -> Iterator[Definition]:
    """The functions and classes in the body of a node, and in theirs. around: names of what the node lies in."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Def | ast.ClassDef):
            name, shown = f"{around}{child.name}", public and not child.name.startswith("_")
            yield Definition(name, file, shown, child)
            yield from definitions_below(child, file, f"{name}.", shown and isinstance(child, ast.ClassDef))
        else:
            yield from definitions_below(child, file, around, public)


def annotations_of(function: Def) -> list[ast.expr]:
    """The annotations of a function's parameters and of what it returns."""
    arguments = function.args
    parameters = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    found = [parameter.annotation for parameter in parameters if parameter is not None]
    return [annotation for annotation in [*found, function.returns] if annotation is not None]


def last_name(node: ast.AST) -> str:
    """`Any` of Any and typing.Any; nothing for what is no name."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def holds_untyped_dict(node: ast.AST, aliases: set[str]) -> bool:
    """Does a type hold a dict whose values have no type? aliases: other names of such types."""
    if last_name(node) in DICTS | aliases:
        return True
    if not isinstance(node, ast.Subscript):
        return any(holds_untyped_dict(child, aliases) for child in ast.iter_child_nodes(node))
    types = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    match last_name(node.value):
        case "Literal":
            return False
        case "Annotated":
            types = types[:1]
        case name if name in DICTS and last_name(types[-1]) in ANYTHING:
            return True
    return any(holds_untyped_dict(each, aliases) for each in types)


def alias_in(statement: ast.stmt) -> tuple[str, ast.expr] | None:
    """Name and value of what may be an alias of a type: `A = dict[str, Any]`, `A: TypeAlias = ...`, `type A = ...`."""
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        name, value = last_name(statement.targets[0]), statement.value
    elif isinstance(statement, ast.AnnAssign) and last_name(statement.annotation) == "TypeAlias" and statement.value:
        name, value = last_name(statement.target), statement.value
    elif type(statement).__name__ == "TypeAlias":  # from Python 3.12 on
        name, value = last_name(statement.name), statement.value  # type: ignore[attr-defined]
    else:
        return None
    return (name, value) if isinstance(value, ast.Subscript | ast.BinOp | ast.Name | ast.Attribute) else None


def untyped_aliases(files: Iterable[SourceFile]) -> set[str]:
    """Names that files give to types that hold untyped dicts."""
    found = [alias for file in files for statement in file.tree.body if (alias := alias_in(statement))]
    return {name for name, value in found if holds_untyped_dict(value, set())}


def imported_names(file: SourceFile) -> set[str]:
    """The full names of all that a file imports, modules and what is in them."""
    found = set()
    for node in ast.walk(file.tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = file.package.split(".")[: -(node.level - 1) or None] if node.level else []
            base = [*parents, *([node.module] if node.module else [])]
            found |= {".".join([*base, alias.name]) for alias in node.names}
    return found


def module_of(name: str, modules: Iterable[str]) -> str:
    """Of these modules the one that a full name is of or in; nothing where there is none."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name


def arrows_between_layers(files: list[SourceFile]) -> list[tuple[SourceFile, SourceFile]]:
    """Each pair of files in two layers of which the first imports the second."""
    modules = {file.module: file for file in files}
    imported = {file.name: {module_of(name, modules) for name in imported_names(file)} - {""} for file in files}
    pairs = [(file, modules[name]) for file in files for name in sorted(imported[file.name])]
    return [(one, other) for one, other in pairs if one.layer != other.layer]


def reachable(start: str, arrows: set[tuple[str, str]]) -> set[str]:
    """The layers that one imports, directly or by others."""
    found: set[str] = set()
    ahead = {start}
    while ahead:
        ahead = {target for source, target in arrows if source in ahead} - found
        found |= ahead
    return found


def circles(arrows: set[tuple[str, str]]) -> list[list[str]]:
    """The groups of layers of which each imports each, directly or by others."""
    reach = {layer: reachable(layer, arrows) for arrow in arrows for layer in arrow}
    groups = {frozenset(other for other in reach[layer] if layer in reach[other]) for layer in reach}
    return sorted(sorted(group) for group in groups if group)


def share(part: int, whole: int) -> str:
    """A part of a whole, and in percent."""
    return f"{part} of {whole} ({part / max(whole, 1):.1%})"


def counted(names: list[str]) -> str:
    """How many, and the names of the first."""
    more = [f"and {len(names) - NAMED} more"] if len(names) > NAMED else []
    return "<br>".join([str(len(names)), *names[:NAMED], *more])


def measure_sizes(files: list[SourceFile], functions: list[Definition]) -> dict[str, str]:
    """Lines, files and functions, and the largest of them."""
    longest, largest = max(functions, key=lambda each: each.lines), max(files, key=lambda file: file.lines)
    long = sorted((each for each in functions if each.lines > LONG_FUNCTION), key=lambda each: -each.lines)
    large = sorted((file for file in files if file.lines > LONG_FILE), key=lambda file: -file.lines)
    return {
        "lines": str(sum(file.lines for file in files)),
        "files": str(len(files)),
        "functions": str(len(functions)),
        "longest function": f"`{longest.name}`, {longest.lines} lines<br>{longest.file}",
        f"functions over {LONG_FUNCTION} lines": counted([f"`{each.name}`, {each.lines} lines" for each in long]),
        "longest file": f"{largest.name}, {largest.lines} lines",
        f"files over {LONG_FILE} lines": counted([f"{file.name}, {file.lines} lines" for file in large]),
    }


def measure_words(definitions: list[Definition], functions: list[Definition]) -> dict[str, str]:
    """Docstrings and names."""
    public = [each for each in definitions if each.public]
    named = [each for each in functions if not each.dunder]
    top = [each for each in named if "." not in each.name]
    return {
        "public functions and classes with docstring": share(sum(each.documented for each in public), len(public)),
        "function names of a single word": share(sum(each.single_word for each in named), len(named)),
        "such names at the top of a file": share(sum(each.single_word for each in top), len(top)),
    }


def measure_dicts(files: list[SourceFile], functions: list[Definition]) -> dict[str, str]:
    """Untyped dicts in signatures."""
    aliases = untyped_aliases(files)
    nodes = [each.node for each in functions if isinstance(each.node, Def)]
    found = [sum(holds_untyped_dict(each, aliases) for each in annotations_of(node)) for node in nodes]
    plain = sum(holds_untyped_dict(each, set()) for node in nodes for each in annotations_of(node))
    hidden = sum(found) - plain
    by_alias = f", {hidden} of them by an alias ({', '.join(sorted(aliases))})" if hidden else ""
    where = f"in {sum(map(bool, found))} of {len(found)} functions"
    return {"untyped dicts in signatures": f"{sum(found)} {where}{by_alias}"}


def measure_layers(files: list[SourceFile]) -> dict[str, str]:
    """Folders, and the imports between them."""
    arrows = arrows_between_layers(files)
    ranked = [(one, other) for one, other in arrows if one.layer in RANK and other.layer in RANK]
    upward = [f"{one.name} -> {other.name}" for one, other in ranked if RANK[one.layer] < RANK[other.layer]]
    found = circles({(one.layer, other.layer) for one, other in arrows})
    with_ray = Counter(file.layer for file in files if any(re.match(r"ray\b", name) for name in imported_names(file)))
    return {
        "files per folder": by_layer(Counter(file.layer for file in files)),
        "import arrows between folders": str(len(arrows)),
        "import arrows that go upwards": counted(upward),
        "circles between folders": counted([", ".join(group) for group in found]),
        "files that import ray": f"{with_ray.total()}<br>{by_layer(with_ray)}",
    }


def by_layer(count: Counter[str]) -> str:
    """Files in each layer, the lowest layer first, those without a rank last."""
    layers = sorted(count, key=lambda layer: (RANK.get(layer, len(RANK)), layer))
    return "<br>".join(f"{layer}: {count[layer]}" + ("" if layer in RANK else " (no rank)") for layer in layers)


def measure(root: Path) -> dict[str, str]:
    """All of it, by the name of the row."""
    files = read_files(root)
    if not files:
        raise SystemExit(f"{root}: holds neither {' nor '.join(PACKAGES)} with Python in it")
    definitions = [each for file in files for each in definitions_below(file.tree, file.name)]
    functions = [each for each in definitions if isinstance(each.node, Def)]
    sizes, words = measure_sizes(files, functions), measure_words(definitions, functions)
    return {**sizes, **words, **measure_dicts(files, functions), **measure_layers(files)}


def markdown_table(columns: dict[str, dict[str, str]]) -> str:
    """One row a measure, one column a checkout."""
    rows = [["", *columns], ["---"] * (len(columns) + 1)]
    rows += [[name, *(column[name] for column in columns.values())] for name in next(iter(columns.values()))]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("roots", nargs="*", type=Path, metavar="ROOT", default=[Path(__file__).parent.parent])
    roots: list[Path] = [root.resolve() for root in parser.parse_args().roots]
    if len(roots) > 2:
        parser.error("expected one ROOT or two")
    names = [f"old: {roots[0].name}", f"new: {roots[-1].name}"] if len(roots) == 2 else [roots[0].name]
    print(markdown_table({name: measure(root) for name, root in zip(names, roots, strict=True)}))


if __name__ == "__main__":
    main()
