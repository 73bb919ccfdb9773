"""The repository's shape: who imports whom, what `import altclip_fast` loads, what files may mention."""

import ast
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import altclip_fast

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "altclip_fast"

# Lowest first. A module imports from its own layer and from those below it.
LAYERS = [
    {"kernels"},
    {"notices", "report", "workers", "_version", "files", "hub", "native", "dispatch", "config_rules", "config"},
    {"ops"},
    {"checkpoint", "processing"},
    {"models", "quantization", "runtime", "testing"},
    {"encoder", "feed", "auto", "accelerate", "pipelines", "doctor", "embedded", "retrieval"},
    {"benchmarks"},
    {"cli", "__main__"},
]
LEVEL = {stem: level for level, stems in enumerate(LAYERS) for stem in stems}
LEVEL[PACKAGE] = len(LAYERS)  # `import altclip_fast` stands for everything


def module_files() -> dict[str, Path]:
    """Dotted name -> file, for the package and for the folders beside it that are imported as parts of it."""
    files = {}
    beside = [(ROOT / name, (PACKAGE, name)) for name in ("kernels", "benchmarks")]
    for folder, prefix in ((ROOT / PACKAGE, (PACKAGE,)), *beside):
        for file in folder.rglob("*.py"):
            parts = file.relative_to(folder).with_suffix("").parts
            files[".".join((*prefix, *(part for part in parts if part != "__init__")))] = file
    return files


FILES = module_files()
MODULES = sorted(FILES)


def imports_of(name: str) -> list[tuple[str, int, bool]]:
    """(absolute target, line, inside a function) of each import in module `name`, wherever it stands."""
    file = FILES[name]
    is_package = file.name == "__init__.py"
    found = []

    def resolve(base: str, alias: str) -> str:
        """`from base import alias`: the submodule if there is one, else `base` itself."""
        target = f"{base}.{alias}"
        return target if target in FILES or (base == PACKAGE and alias in LEVEL) else base

    def visit(node: ast.AST, inside: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend((alias.name, node.lineno, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = name.split(".")
            base = node.module or ""
            if node.level:
                parents = parents[: len(parents) + is_package - node.level]
                base = ".".join([*parents, node.module] if node.module else parents)
            found.extend((resolve(base, alias.name), node.lineno, inside) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            target = node.args[0].value
            absolute = isinstance(target, str) and not target.startswith(".")
            if called in ("import_module", "__import__") and absolute:
                found.append((target, node.lineno, inside))
        inside = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(file.read_text(encoding="utf-8"), str(file)), False)
    return found


def own(target: str) -> bool:
    return target == PACKAGE or target.startswith(PACKAGE + ".")


def stem(module: str) -> str:
    """The name that the table of layers knows: altclip_fast.ops.norm -> ops."""
    return module.split(".")[1] if "." in module else module


def owner(target: str) -> str | None:
    """The module that a target lies in: altclip_fast.ops.norm.layer_norm -> altclip_fast.ops.norm."""
    while target and target not in FILES:
        target = target.rpartition(".")[0]
    return target or None


def test_every_module_has_a_layer():
    unknown = {stem(name) for name in MODULES} - set(LEVEL)
    assert not unknown, f"add to LAYERS in {Path(__file__).name}: {sorted(unknown)}"


@pytest.mark.parametrize("name", [name for name in MODULES if name != PACKAGE])
def test_imports_point_downwards(name):
    level = LEVEL.get(stem(name), len(LAYERS))
    upward = [
        f"{FILES[name].relative_to(ROOT)}:{line} imports {target}"
        for target, line, _ in imports_of(name)
        if own(target) and LEVEL.get(stem(target), level) > level
    ]
    assert not upward, "\n".join(upward)


def test_no_import_cycles():
    graph = {
        name: {owner(target) for target, _, _ in imports_of(name) if own(target)} - {None, name, PACKAGE}
        for name in MODULES
        if name != PACKAGE
    }
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, "import cycle: " + " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for target in sorted(graph[name]):
                walk(target, (*path, name))
            done.add(name)

    for name in graph:
        walk(name, ())


@pytest.mark.parametrize("name", MODULES)
def test_optional_packages_have_one_door(name):
    wrong = []
    for target, line, inside in imports_of(name):
        top = target.partition(".")[0]
        where = f"{FILES[name].relative_to(ROOT)}:{line}"
        if top == "transformers" and stem(name) not in ("accelerate", "benchmarks"):
            wrong.append(f"{where} imports transformers: only accelerate.py does")
        if top == "triton" and stem(name) not in ("kernels", "benchmarks") and not inside:
            wrong.append(f"{where} imports triton on import: do it inside a function, or in kernels/")
    assert not wrong, "\n".join(wrong)


def test_every_subpackage_is_packaged():
    bare = {
        str(file.parent.relative_to(ROOT))
        for name, file in FILES.items()
        if stem(name) != "kernels" and not (file.parent / "__init__.py").exists()
    }
    assert not bare, f"no __init__.py, so not in a wheel: {sorted(bare)}"
    assert not (ROOT / "kernels" / "__init__.py").exists(), "kernels/ must not be a package named `kernels`"


def test_import_is_light():
    """Beside torch, `import altclip_fast` loads nothing heavy: its public names are lazy."""
    heavy = "triton transformers PIL tokenizers sentencepiece huggingface_hub safetensors numpy click tqdm"
    code = [
        "import json, sys, torch",
        "before = set(sys.modules)",
        "import altclip_fast",
        "print(json.dumps([sorted(set(sys.modules) - before), torch.cuda.is_initialized()]))",
    ]
    command = [sys.executable, "-c", "\n".join(code)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded, has_cuda_context = json.loads(done.stdout)
    assert sorted({name.partition(".")[0] for name in loaded} & set(heavy.split())) == []
    assert not has_cuda_context


def test_public_names_resolve():
    names = altclip_fast.__all__
    assert len(names) == len(set(names))
    for name in names:
        assert getattr(altclip_fast, name) is not None, name
    assert set(names) <= set(dir(altclip_fast))


@cache
def repository_files() -> tuple[Path, ...]:
    """Tracked files, and new ones that git does not ignore."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    return tuple(file for name in sorted(set(listed.split("\0"))) if name and (file := ROOT / name).is_file())


def test_no_file_names_a_machine_or_a_registry():
    # As patterns, so that this file is not found itself.
    folders = "work|opt|root"
    hosts = r"(?:pypi|anaconda|pythonhosted)\.org|download\.pytorch|pypi\.nvidia|npmjs\.org"
    forbidden = re.compile(rf"(?<![\w.~\-])/(?:{folders})/|{hosts}".encode())
    found = [
        f"{file.relative_to(ROOT)}: {hit.group().decode()}"
        for file in repository_files()
        for hit in forbidden.finditer(file.read_bytes())
    ]
    assert not found, "\n".join(found)


def test_every_python_file_says_what_it_is():
    silent = [
        str(file.relative_to(ROOT))
        for file in repository_files()
        if file.suffix == ".py" and not ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    ]
    assert not silent, f"no module docstring: {silent}"
