"""The architecture as a test: who may import whom, and where each outside package has its home.

Read from the syntax tree, imports and attribute chains alike, so that neither an import inside a
function nor ``torch.autograd.grad`` written out escapes.
"""

import ast
from pathlib import Path

import pytest

import lipprof

SOURCE = Path(lipprof.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))

LAYERS = {
    "errors": 0,
    "rule_text": 0,
    "settings": 0,
    "version": 0,
    "linalg": 1,
    "curvature": 2,
    "lipschitz": 3,
    "advice": 3,
    "record": 4,
    "optim": 4,
    "profiler": 5,
    "report": 5,
    "demo": 6,
    "frameworks": 6,
    "cli": 7,
    "__init__": 8,
    "__main__": 8,
}
ONLY_HOME = {
    "pydantic": {"settings"},
    "typer": {"cli"},
    "plotly": {"report"},
    "dash": {"report"},
    "jinja2": {"report"},
    "rich": {"report", "cli", "profiler"},
    "h5py": {"record"},
    "filelock": {"record"},
    "lightning": {"frameworks"},
    "transformers": {"frameworks"},
    "accelerate": {"frameworks"},
    "torch.autograd": {"curvature"},
    "torch.func": {"curvature"},
    "torch.distributed": {"curvature"},
}
KEPT_OUT = {"linalg": {"torch.nn"}, "report": {"torch"}}
EXCEPTIONS = {
    ("profiler/sources/interception.py", "torch.autograd.backward"),
}

MODULE_LINES, FUNCTION_LINES = 400, 70


class Names(ast.NodeVisitor):
    """Every dotted name that a module imports or writes out, local names resolved."""

    def __init__(self, tree):
        self.found = set()
        self.subclassed = set()
        self._local = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                self._imported(node)
        self.visit(tree)

    def _imported(self, node):
        for alias in node.names:
            if isinstance(node, ast.ImportFrom):
                name = f"{'.' * node.level}{node.module or ''}.{alias.name}"
                self._local[alias.asname or alias.name] = name
            else:
                name = alias.name
                root = name.partition(".")[0]
                self._local[alias.asname or root] = name if alias.asname else root
            self.found.add(name)

    def _resolved(self, node):
        if isinstance(node, ast.Name):
            return self._local.get(node.id)
        if isinstance(node, ast.Attribute):
            owner = self._resolved(node.value)
            return owner and f"{owner}.{node.attr}"
        return None

    def visit_Attribute(self, node):
        name = self._resolved(node)
        if name:
            self.found.add(name)
        else:
            self.generic_visit(node)

    def visit_ClassDef(self, node):
        self.subclassed |= {name for base in node.bases if (name := self._resolved(base))}
        self.generic_visit(node)


def within(name, package):
    return f"{name}.".startswith(f"{package}.")


def may_import(room, other):
    same_folder = room == other or LAYERS[room] == LAYERS[other] == 0
    return same_folder or LAYERS[other] < LAYERS[room]


def violations(path, text):
    """What a file breaks of the architecture, a line each; ``path`` counts from ``lipprof/``."""
    room = path.partition("/")[0].removesuffix(".py")
    tree = ast.parse(text)
    names = Names(tree)
    for name in sorted(names.found):
        if within(name, "lipprof"):
            other = (name.split(".") + [""])[1]
            if other not in LAYERS or not may_import(room, other):
                yield f"{room} must not know {name}"
        elif name.startswith("."):
            yield f"relative import {name}"
        for package, homes in ONLY_HOME.items():
            if within(name, package) and room not in homes and (path, name) not in EXCEPTIONS:
                yield f"{name} belongs in {sorted(homes)}"
        for package in KEPT_OUT.get(room, ()):
            if within(name, package):
                yield f"{room} must not know {name}"
    for base in names.subclassed:
        if within(base, "torch.optim") and room != "optim":
            yield f"subclass of {base} belongs in optim"
    yield from shape_violations(room, tree, text)


def shape_violations(room, tree, text):
    if not ast.get_docstring(tree):
        yield "no header"
    if len(text.splitlines()) > MODULE_LINES:
        yield f"longer than {MODULE_LINES} lines"
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="print")) if room != "cli":
                yield f"print in line {node.lineno}"
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                if node.end_lineno - node.lineno >= FUNCTION_LINES:
                    yield f"{node.name} is longer than {FUNCTION_LINES} lines"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_architecture(path):
    relative = path.relative_to(SOURCE).as_posix()
    assert list(violations(relative, path.read_text(encoding="utf-8"))) == []


def test_every_folder_has_a_layer():
    rooms = {path.relative_to(SOURCE).parts[0].removesuffix(".py") for path in FILES}
    assert rooms == LAYERS.keys()


HEADER = '"""A module."""\n'
PLANTED = [
    ("linalg/a.py", "from lipprof.curvature import spectrum", "linalg must not know lipprof.curv"),
    ("linalg/a.py", "from torch import nn", "linalg must not know torch.nn"),
    ("linalg/a.py", "import torch\ntorch.nn.functional.relu", "linalg must not know torch.nn"),
    ("advice/a.py", "from lipprof.lipschitz import regret", "advice must not know lipprof.lipsch"),
    (
        "record/a.py",
        "def f():\n    from lipprof import optim",
        "record must not know lipprof.optim",
    ),
    ("report/a.py", "from lipprof import open_run", "report must not know lipprof.open_run"),
    ("report/a.py", "import lipprof", "report must not know lipprof"),
    ("report/a.py", "import torch", "report must not know torch"),
    ("settings.py", "import lipprof.linalg", "settings must not know lipprof.linalg"),
    ("demo/a.py", "from .gpt import CharGPT", "relative import .gpt.CharGPT"),
    ("report/a.py", "import h5py", "h5py belongs in ['record']"),
    ("demo/a.py", "from rich.console import Console", "belongs in ['cli', 'profiler', 'report']"),
    ("optim/a.py", "import torch\ntorch.autograd.grad(y, x)", "torch.autograd.grad belongs in"),
    ("optim/a.py", "import torch as t\nt.autograd.grad", "torch.autograd.grad belongs in"),
    ("optim/a.py", "from torch import func as f", "torch.func belongs in"),
    (
        "profiler/sources/interception.py",
        "import torch\ntorch.autograd.grad",
        "torch.autograd.grad belongs",
    ),
    (
        "profiler/a.py",
        "import torch\ntorch.autograd.backward(y)",
        "torch.autograd.backward belongs",
    ),
    ("demo/a.py", "import torch\nclass A(torch.optim.SGD): pass", "subclass of torch.optim.SGD"),
    ("demo/a.py", "from torch.optim import Optimizer as O\nclass A(O): pass", "subclass of torch"),
    ("demo/a.py", "print(1)", "print in line 2"),
    ("demo/a.py", "\n" * MODULE_LINES, "longer than 400 lines"),
    ("demo/a.py", "def f():\n" + "    x = 1\n" * FUNCTION_LINES, "f is longer than 70 lines"),
]


@pytest.mark.parametrize(("path", "text", "expected"), PLANTED, ids=[case[2] for case in PLANTED])
def test_planted_violations_are_seen(path, text, expected):
    (violation,) = violations(path, HEADER + text)
    assert expected in violation


def test_a_missing_header_is_seen():
    assert list(violations("demo/a.py", "x = 1")) == ["no header"]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("settings.py", "from lipprof.errors import ConfigError"),
        ("lipschitz/a.py", "from lipprof.lipschitz.cubic import regret"),
        ("curvature/a.py", "import torch\ntorch.autograd.grad"),
        ("profiler/sources/interception.py", "import torch\ntorch.autograd.backward = f"),
        ("optim/a.py", "from torch.optim import Optimizer\nclass A(Optimizer): pass"),
        ("cli/a.py", "print(1)"),
        ("demo/a.py", "console.print(1)"),
    ],
)
def test_what_is_allowed_passes(path, text):
    assert list(violations(path, HEADER + text)) == []
