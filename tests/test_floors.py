"""The floors of the package: imports go down only, and no two rooms import each other."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "vdm_jax"

# Rooms from the top floor down. Rooms on one line stand side by side.
FLOORS = (
    ("studies",),
    ("pages",),
    ("evaluation",),
    ("training", "generation"),
    ("build",),
    ("pretrained",),
    ("model",),
    ("frozen",),
    ("split", "checkpoints", "config"),
    ("diffusion", "data", "parallel"),
    ("models",),
    ("video", "command"),
    ("pictures", "released"),
    ("files",),
    ("errors", "typing"),
)
FLOOR = {room: len(FLOORS) - height for height, rooms in enumerate(FLOORS) for room in rooms}


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports() -> list[tuple[str, str, str]]:
    """Returns (file, its room, imported room) of every import of the package, also of imports inside functions."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        if len(parts) == 2 and parts[1] == "__init__":  # the public names
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules = [f"{node.module}.{alias.name}" if node.module == "vdm_jax" else node.module
                           for alias in node.names]  # fmt: skip
            found += [(str(path), parts[1], room_of(module)) for module in modules if module.split(".")[0] == "vdm_jax"]
    return found


def test_every_room_has_a_floor():
    rooms = {path.stem for path in PACKAGE.glob("*.py")} | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms - {"__init__"} == FLOOR.keys()


@pytest.mark.parametrize(("above", "below"), [("training", "generation"), ("generation", "training")])
def test_training_and_generation_do_not_know_each_other(above, below):
    assert not [row for row in imports() if row[1:] == (above, below)]


def test_imports_go_down_only():
    assert len(imports()) > 300
    upward = [row for row in imports() if row[2] and row[1] != row[2] and FLOOR[row[2]] >= FLOOR[row[1]]]
    assert not upward


def test_files_are_short_and_functions_have_few_branches():
    """A file of more than 350 lines is two rooms in one; a function of more than 15 branches is two functions."""
    kinds = (ast.If, ast.IfExp, ast.For, ast.While, ast.Try, ast.comprehension)
    long, branchy = [], []
    for folder in ("vdm_jax", "experiments", "configs"):
        for path in sorted((PACKAGE.parent / folder).rglob("*.py")):
            text = path.read_text()
            if len(text.splitlines()) > 350:
                long.append(path.name)
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef) and (n := sum(isinstance(x, kinds) for x in ast.walk(node))) > 15:
                    branchy.append((path.name, node.name, n))
    assert not long
    assert not branchy
