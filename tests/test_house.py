"""The house that DESIGN.md draws: which room may import from which, and that pages name what is there."""

import ast
import importlib
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODEL = {"modeling_speechllm", "processing_speechllm"}
BELOW_TRAINERS = ("objectives", "checkpoints", "data", "cache", "speed")
ROOMS = {  # room: what it may import from, beside itself
    "modeling_speechllm": set(),
    "processing_speechllm": set(),
    "hub_cards": MODEL,
    "trainers.objectives": {*MODEL, "trainers.speed"},
    "trainers.checkpoints": {*MODEL, "hub_cards"},
    "trainers.speed": MODEL,
    "trainers.data": {*MODEL, "trainers.objectives"},
    "trainers.targets": {*MODEL, "trainers.objectives", "trainers.data"},
    "trainers.cache": {*MODEL, "trainers.objectives", "trainers.data"},
    "trainers": {*MODEL, "hub_cards", *(f"trainers.{room}" for room in BELOW_TRAINERS)},
    "trainers.commands": {*MODEL, "hub_cards", "trainers.*"},
    "speechllm": MODEL,
    "speechllm.speech_synthesis": {*MODEL, "trainers.targets"},
    "speechllm.evaluation": {*MODEL, "hub_cards", "trainers.*", "speechllm.speech_synthesis"},
    "speechllm.page": {*MODEL, "speechllm", "speechllm.evaluation"},
    "speechllm.serving": {*MODEL, "speechllm"},
    "speechllm_cli": {*MODEL, "hub_cards", "trainers.*", "speechllm.*"},
    "benchmarks": {*MODEL, "hub_cards", "trainers.*", "speechllm.*"},
}
TRAINERS = ["alignment", "distillation", "imitation", "speech"]
PACKAGES = sorted({room.split(".")[0] for room in ROOMS})
FILES = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]


def room_of(module: str) -> str | None:
    """The innermost room that a dotted module lies in; None outside the house."""
    names = module.split(".")
    return next((room for n in (2, 1) if (room := ".".join(names[:n])) in ROOMS and len(names) >= n), None)


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported_modules(file: Path) -> set[str]:
    """Dotted modules that a file imports, inside functions too."""
    package = module_of(file) if file.name == "__init__.py" else module_of(file).rpartition(".")[0]
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_a_room_imports_only_from_rooms_below_it(file):
    room = room_of(module_of(file))
    used = {room_of(name) for name in imported_modules(file)} - {room, None}
    wrong = {other for other in used if not {other, other.split(".")[0] + ".*"} & ROOMS[room]}
    assert not wrong, f"{room} must not import from {wrong}"


def test_trainers_has_nothing_but_the_trainers_outside_its_rooms():
    names = {f"{name}_{kind}.py" for name in TRAINERS for kind in ("trainer", "config")}
    assert {path.name for path in (ROOT / "trainers").iterdir() if path.is_file()} == names | {"__init__.py"}


@pytest.mark.parametrize("room", [room for room in ROOMS if "." in room])
def test_every_room_says_in_one_line_what_lives_there(room):
    source = (ROOT / room.replace(".", "/") / "__init__.py").read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(source))
    assert docstring and len(docstring.splitlines()[0]) > 20


@pytest.mark.parametrize("package", sorted(MODEL))
def test_packages_copied_to_the_hub_are_flat_and_refer_to_themselves_relatively(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert all(file.parent == ROOT / package for file in files)
    for file in files:
        tree = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        named = [node.module for node in tree if isinstance(node, ast.ImportFrom) and node.level == 0]
        assert not [module for module in named if module.split(".")[0] == package], file.name


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_pages_name_modules_and_files_that_are_there(page):
    text = page.read_text(encoding="utf-8")
    packages = "|".join([*PACKAGES, "tests", "docs"])
    for module in set(re.findall(rf"(?:from|import|python -m) ((?:{packages})(?:\.\w+)+)", text)):
        path = ROOT / module.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").is_file(), f"{page.name} names the module {module}"
    for name in set(re.findall(rf"(?<![\w/.-])((?:{packages})/[\w./*-]*\w)", text)):
        assert list(ROOT.glob(name)), f"{page.name} names the file {name}"


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_pages_import_names_that_are_there(page):
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    for node in (node for block in blocks for node in ast.walk(ast.parse(block))):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in PACKAGES:
            module = importlib.import_module(node.module)
            missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            assert not missing, f"{page.name} imports {', '.join(missing)} from {node.module}"
