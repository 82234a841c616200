"""What the documents say can be done: every command parses, every setting loads, every file exists."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest

import calibrate.cli
import inspectord.cli
from inspectord.settings import load_settings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / name for name in ("README.md", "CHANGELOG.md", *map(str, sorted(ROOT.glob("docs/*.md"))))]
PARSERS = {"calibrate": calibrate.cli._parser, "inspectord": inspectord.cli._parser}
CAMERA = '[[cameras]]\nname = "cam1"\nrecipe = "bracket"\n'  # around a block that shows a source alone


def blocks(kind):
    """The fenced blocks of README.md with `kind` behind their fence."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [text for name, text in found if name == kind]


def commands():
    """Lines of code blocks, and code in sentences, that begin with one of the programs."""
    lines = [line for block in blocks("") for line in block.splitlines()]
    for document in DOCUMENTS:
        lines += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(document))]
    return sorted({line for line in lines if line.partition(" ")[0] in PARSERS and " " in line})


def prose(document):
    return re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("line", commands())
def test_every_command_is_one_that_its_program_takes(line, capsys):
    program, *words = shlex.split(line, comments=True)
    if len(words) == 1:  # only named: `calibrate fit`
        words.append("--help")
    try:
        PARSERS[program]().parse_args(words)
    except SystemExit as exit_:
        assert exit_.code == 0, capsys.readouterr().err  # noqa: PT017


def test_the_commands_were_found():
    found = commands()
    for start in (
        "calibrate fit",
        "calibrate capture",
        "calibrate evaluate",
        "inspectord run",
        "inspectord watch",
    ):
        assert any(line.startswith(start) for line in found)


@pytest.mark.parametrize("block", blocks("toml"))
def test_every_settings_block_loads(block, tmp_path):
    path = tmp_path / "inspectord.toml"
    path.write_text(block if "cameras" not in block or "[[cameras]]" in block else CAMERA + block)
    assert tomllib.loads(block)
    assert load_settings(path).cameras


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(document):
    for target in re.findall(r"\]\(([^)#]+)", document.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_source_files_that_are_named_exist(document):
    for row in document.read_text(encoding="utf-8").splitlines():
        folder = ROOT
        for name in re.findall(r"`((?:[a-z_]+/)*(?:[a-z_]+\.py)?)`", row):
            folder = ROOT / Path(name).parent if "/" in name else folder  # `a/b.py`, `c.py` are neighbours
            assert (ROOT / name if "/" in name else folder / name).exists(), name


def test_the_code_of_the_client_in_the_readme_is_python():
    for block in blocks("python"):
        compile(block, "README.md", "exec")
