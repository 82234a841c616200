"""What the daemon may import, what may import it, and that it runs where the rest is not installed."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers_recipe import write_recipe

ROOT = Path(__file__).parent.parent
UNWANTED = ("torch", "scipy", "matplotlib", "harvesters", "genicam", "sklearn", "calibrate", "safetensors")
BLOCK = """
import importlib.abc, sys
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(name + " is blocked", name=name)
sys.meta_path.insert(0, Block())
"""


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def test_the_daemon_loads_nothing_of_the_calibration_or_the_cameras():
    code = "import sys, inspectord.daemon, inspectord.cli; print([n for n in {0} if n in sys.modules])"
    assert python(code.format(UNWANTED)) == "[]"


def test_the_daemon_runs_where_torch_and_the_terminal_views_are_not_installed(tmp_path):
    """rich is on the list too: structlog takes it where it is installed, and does without."""
    write_recipe(tmp_path / "recipes")
    (tmp_path / "c.toml").write_text(
        'state_dir = "state"\nrecipes_dir = "recipes"\n'
        f'[publish]\nverdicts = "ipc://{tmp_path}/v"\nreplay = "ipc://{tmp_path}/r"\n'
        '[[cameras]]\nname = "cam1"\nrecipe = "demo"\ndeadline_ms = 5000\n'
        'source = {kind = "line", parts = 3, rate_hz = 50, width = 64, height = 64}\n'
    )
    run = f"from inspectord.cli import main; print(main(['run', '--config', '{tmp_path}/c.toml']))"
    said = python(BLOCK.format(blocked={*UNWANTED, "rich", "tomli_w", "msgpack"}) + run)
    assert said.endswith("\n0")
    assert '"verdicts": 3' in said


@pytest.mark.parametrize("module", ["inspectord.daemon", "calibrate.fit"])
def test_importing_openvino_reports_nothing_to_anyone(module, tmp_path):
    """Without inspectord/__init__.py's line openvino keeps an id in the home folder and calls its maker."""
    code = (
        f"import os, sys, {module}; import openvino\n"
        "assert sys.modules['openvino_telemetry'] is None\n"
        f"print(os.listdir({str(tmp_path)!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        env=os.environ | {"HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert "intel" not in done.stdout


@pytest.mark.parametrize("path", sorted((ROOT / "inspectord").rglob("*.py")), ids=lambda path: path.stem)
def test_no_module_of_the_daemon_imports_calibrate_or_torch(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not any(name.partition(".")[0] in ("calibrate", "torch") for name in names)


def test_only_the_views_import_rich_and_only_genicam_imports_the_cameras():
    users = {"rich": set(), "harvesters": set()}
    for path in (ROOT / "inspectord").rglob("*.py"):
        for name, found in users.items():
            if f"import {name}" in path.read_text() or f"from {name}" in path.read_text():
                found.add(path.relative_to(ROOT / "inspectord").parts[0])
    assert users["rich"] == {"watch.py"}
    assert users["harvesters"] <= {"sources"}
