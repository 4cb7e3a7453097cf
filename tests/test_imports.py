"""The structure of the project: which module may import which, and no import cycles."""

import ast
import itertools
import subprocess

import pytest
from conftest import ROOT

SCRIPTS = ("happy_sequential", "signs_functional", "signs_resnet50")

# From the scripts down: a module may import modules of its own layer and of those below it. A name stands for
# everything inside it that is not named itself.
LAYERS = (
    (*SCRIPTS, "benchmarks", "notebooks", "weights", "datasets.pack", "datasets.synthetic.__main__"),
    ("cnn_utils", "resnet_utils"),
    ("support.cli", "support.seeds"),
    ("support.export",),
    ("support.prediction",),
    ("support.startup",),
    ("support.training",),
    ("support.evaluation",),
    ("support",),
    ("datasets",),
    ("basics.files",),
    ("basics",),
)

# What the user asked for, and a few folders whose names say what is in them.
TOP = {f"{script}.py" for script in SCRIPTS} | {
    *("README.md", "LICENSE", "Dockerfile", "pyproject.toml", "requirements.txt"),
    *("requirements-dev.txt", "requirements-lock.txt", "requirements-optional.txt"),
    *(
        "cnn_utils.py",
        "resnet_utils.py",
        "basics",
        "benchmarks",
        "datasets",
        "docs",
        "notebooks",
        "support",
        "tests",
        "weights",
    ),
}


def read_sources(root):
    """Return the source of every module below a folder by its dotted name; tests and hidden folders are left out."""
    sources = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[0] not in ("tests", "outputs") and not any(part.startswith(".") for part in parts):
            sources[".".join(parts).removesuffix(".__init__")] = path.read_text(encoding="utf-8")
    return sources


def is_package(name, modules):
    return any(other.startswith(f"{name}.") for other in modules)


def imports_of(name, source, modules):
    """Return the names of those modules that the source of module `name` imports, anywhere in it."""
    package = name.split(".") if is_package(name, modules) else name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:  # a module of the package, or a name in it
                found.add(f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules else base)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            name_node = node.args[0]
            if isinstance(name_node, ast.Constant):
                found.add(name_node.value)
            elif isinstance(name_node, ast.JoinedStr) and isinstance(name_node.values[0], ast.Constant):
                # The name is put together at run time: it may be any that begins like it.
                begin = name_node.values[0].value
                found.update(other for other in modules if other.startswith(begin) and "__main__" not in other)
    return (found & set(modules)) - {name}


def import_graph(sources):
    return {name: imports_of(name, source, sources) for name, source in sources.items()}


def find_cycle(graph):
    """Return the modules of one cycle in order, the first again at the end, or None if there is none."""
    done = set()

    def visit(name, path):
        if name in path:
            return [*path[path.index(name) :], name]
        if name not in done:
            for other in sorted(graph[name]):
                cycle = visit(other, [*path, name])
                if cycle:
                    return cycle
            done.add(name)

    return next(filter(None, (visit(name, []) for name in sorted(graph))), None)


def layer_of(name, layers=LAYERS):
    """Return the number of a module's layer, counted from the top; None if the table does not name it."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        for number, layer in enumerate(layers):
            if ".".join(parts[:length]) in layer:
                return number


def upward_imports(graph, layers=LAYERS):
    """Return one line for each import of a module from a layer above."""
    layer = {name: layer_of(name, layers) for name in graph}
    return [
        f"{name} (layer {layer[name]}) imports {other} (layer {layer[other]})"
        for name, others in sorted(graph.items())
        for other in sorted(others)
        if None not in (layer[name], layer[other]) and layer[other] < layer[name]
    ]


@pytest.fixture(scope="module")
def sources():
    return read_sources(ROOT)


# ---------------------------------------------------------------------- the project


def test_every_module_stands_in_a_layer(sources):
    assert {"happy_sequential", "cnn_utils", "support.training.run", "datasets.hdf5", "basics.errors"} <= set(sources)
    assert [name for name in sources if layer_of(name) is None] == []


def test_imports_form_no_cycle(sources):
    assert find_cycle(import_graph(sources)) is None


def test_imports_go_down(sources):
    assert upward_imports(import_graph(sources)) == []


def test_only_what_was_asked_for_stands_at_the_top():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    tracked = {name.split("/")[0] for name in listed} or {path.name for path in ROOT.iterdir()}
    visible = {name for name in tracked if not name.startswith(".") and (ROOT / name).exists()}
    assert visible - {"outputs", "__pycache__"} <= TOP
    # A new module is not tracked yet.
    assert {path.name for path in ROOT.glob("*.py")} == {name for name in TOP if name.endswith(".py")}


# ---------------------------------------------------------------------- the checker

# A small project in which every module imports another in its own way.
EXAMPLE = {
    "script": "from house import rooms\nimport numpy",
    "house": "",
    "house.rooms": "def draw():\n    import house.walls as walls\n    return walls",
    "house.walls": "from .doors import open_door",
    "house.doors": "def open_door():\n    from . import windows, missing",
    "house.windows": "",
    "house.roof": "import importlib\nimportlib.import_module('house.rooms')",
    "house.garden": "import importlib\nkind = 'r'\nimportlib.import_module(f'house.r{kind}')",
}
EXAMPLE_LAYERS = (("script",), ("house.rooms", "house.roof", "house.garden"), ("house",))


def test_the_checker_reads_imports_of_every_form():
    assert import_graph(EXAMPLE) == {
        "script": {"house.rooms"},
        "house": set(),
        "house.rooms": {"house.walls"},
        "house.walls": {"house.doors"},
        "house.doors": {"house.windows", "house"},
        "house.windows": set(),
        "house.roof": {"house.rooms"},
        "house.garden": {"house.rooms", "house.roof"},
    }
    assert find_cycle(import_graph(EXAMPLE)) is None and upward_imports(import_graph(EXAMPLE), EXAMPLE_LAYERS) == []


@pytest.mark.parametrize(
    "source, cycle",
    [
        ("from house.rooms import draw", ["house.doors", "house.windows", "house.rooms", "house.walls", "house.doors"]),
        ("def late():\n    from .walls import paint", ["house.doors", "house.windows", "house.walls", "house.doors"]),
        ("if True:\n    import house.doors", ["house.doors", "house.windows", "house.doors"]),
    ],
)
def test_the_checker_finds_a_cycle_and_names_it(source, cycle):
    found = find_cycle(import_graph({**EXAMPLE, "house.windows": source}))
    assert found[0] == found[-1] and len(found) == len(cycle)
    # The same modules in the same order, wherever the cycle is entered.
    assert set(itertools.pairwise(found)) == set(itertools.pairwise(cycle))


def test_the_checker_finds_an_import_that_goes_up():
    graph = import_graph({**EXAMPLE, "house.windows": "def late():\n    import script"})
    assert upward_imports(graph, EXAMPLE_LAYERS) == ["house.windows (layer 2) imports script (layer 0)"]
    assert layer_of("house.rooms.corner", EXAMPLE_LAYERS) == 1 and layer_of("village", EXAMPLE_LAYERS) is None
