"""The agent runs on old boards: Python 3.8, and nothing but it, NumPy and the runtime."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import flatsat.targets.agent

SOURCES = sorted(Path(flatsat.targets.agent.__file__).parent.glob("*.py"))
ALLOWED = {"numpy", "onnxruntime"}
SUPERVISOR = ("start", "supervisor", "jobs", "processes", "verdict", "store", "line")
# What came to modules of the standard library after 3.8 and is likely to slip in.
NEWER = {
    ("functools", "cache"),
    ("math", "lcm"),
    ("os", "waitstatus_to_exitcode"),
    ("os", "pidfd_open"),
    ("itertools", "pairwise"),
    ("itertools", "batched"),
    ("zoneinfo", "*"),
    ("tomllib", "*"),
    ("graphlib", "*"),
    ("enum", "StrEnum"),
    ("datetime", "UTC"),
    ("typing", "Self"),
    ("typing", "TypeAlias"),
    ("typing", "ParamSpec"),
    ("typing", "Annotated"),
    ("contextlib", "chdir"),
    ("inspect", "get_annotations"),
}
NEWER_METHODS = {"removeprefix", "removesuffix", "bit_count", "is_relative_to", "with_stem"}


def modules_of(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_syntax_and_library_are_those_of_python_3_8(path: Path) -> None:
    tree = ast.parse(path.read_text(), path.name, feature_version=(3, 8))
    roots = {name.split(".")[0] for name in modules_of(tree)}
    assert roots - ALLOWED <= set(sys.stdlib_module_names)
    assert "__future__" in roots or not roots
    used = {
        (node.value.id, node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    used |= {
        (node.module or "", alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level == 0
        for alias in node.names
    }
    assert not used & NEWER
    assert not {module for module, name in NEWER if name == "*"} & roots
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not attributes & NEWER_METHODS


def test_vermin_finds_nothing_newer_than_python_3_8() -> None:
    vermin = shutil.which("vermin") or str(Path(sys.executable).with_name("vermin"))
    if not Path(vermin).exists():
        pytest.skip("vermin is not installed")
    found = subprocess.run(
        [vermin, "-t=3.8-", "--no-tips", "--eval-annotations", *map(str, SOURCES)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout


def test_old_interpreters_compile_it() -> None:
    python = shutil.which("python3.8")
    if (
        python is None
        or subprocess.run([python, "-V"], capture_output=True, check=False).returncode
    ):
        pytest.skip("no Python 3.8 on this machine")
    code = "import ast, sys\nfor path in sys.argv[1:]: compile(open(path).read(), path, 'exec')"
    subprocess.run([python, "-c", code, *map(str, SOURCES)], check=True)


def test_the_supervisor_stays_small() -> None:
    names = ", ".join(f"flatsat.targets.agent.{name}" for name in SUPERVISOR)
    heavy = "{'numpy', 'onnxruntime', 'asyncio', 'subprocess', 'ctypes'}"
    code = f"import sys, {names}\nassert not {heavy} & set(sys.modules), sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
