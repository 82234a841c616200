"""Settings: a wrong word is an error that names itself, and the shipped example loads."""

import re
from pathlib import Path

import pytest

from inspectord.errors import SettingsError
from inspectord.settings import LineSource, _known_keys, load_settings

EXAMPLE = Path(__file__).parent.parent / "systemd" / "inspectord.toml"
CAMERA = '[[cameras]]\nname = "cam1"\nrecipe = "demo"\nsource = {kind = "line"}\n'


def load(tmp_path, text):
    path = tmp_path / "c.toml"
    path.write_text(text)
    return load_settings(path)


def test_the_shipped_example_loads():
    settings = load_settings(EXAMPLE)
    assert isinstance(settings.cameras[0].source, LineSource)
    assert settings.publish.verdicts == "tcp://127.0.0.1:5570"


def test_the_commented_camera_of_the_example_loads_too(tmp_path):
    lines = EXAMPLE.read_text().splitlines()
    start = lines.index("# [[cameras]]")
    shown = [line.removeprefix("# ") for line in lines[start:]]
    source = load(tmp_path, "\n".join(lines[:start] + shown)).cameras[1].source
    assert source.kind == "genicam"
    assert source.trigger.activation == "RisingEdge"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "cameras"),
        (CAMERA + "[publish]\nverdict = 'tcp://*:1'", "publish.verdict"),
        (CAMERA.replace("line", "webcam"), "cameras.0.source"),
        (CAMERA + CAMERA, "names must differ"),
        (CAMERA.replace("cam1", "cam/1"), "cameras.0.name"),
        (CAMERA + "[publish]\nverdicts = '127.0.0.1:5570'", "is no endpoint"),
        ("cameras = [", "not valid TOML"),
        (CAMERA + "deadline_ms = 0", "deadline_ms"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path, text, named):
    with pytest.raises(SettingsError, match=named):
        load(tmp_path, text)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SettingsError, match=r"nowhere\.toml.*--config"):
        load_settings(tmp_path / "nowhere.toml")


def test_the_environment_wins_over_the_file_and_leaves_the_rest(tmp_path, monkeypatch):
    monkeypatch.setenv("INSPECTORD_PUBLISH__VERDICTS", "tcp://127.0.0.1:7000")
    publish = load(tmp_path, CAMERA + "[publish]\nverdicts = 'tcp://127.0.0.1:1'\nheartbeat_ms = 50").publish
    assert (publish.verdicts, publish.heartbeat_ms) == ("tcp://127.0.0.1:7000", 50)


@pytest.mark.parametrize("value", ["not json", '{"verdict": "x"}'])
def test_a_wrong_environment_is_a_settings_error(tmp_path, monkeypatch, value):
    monkeypatch.setenv("INSPECTORD_PUBLISH", value)
    with pytest.raises(SettingsError, match="publish"):
        load(tmp_path, CAMERA)


def test_relative_paths_start_at_the_files_folder(tmp_path):
    settings = load(tmp_path, 'state_dir = "state"\n' + CAMERA.replace('"line"', '"folder", path = "parts"'))
    assert settings.state_dir == tmp_path / "state"
    assert settings.cameras[0].source.path == tmp_path / "parts"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("recipe = ", "deadline = 3\nrecipe = "), r"cameras\.0\.deadline is an unknown key; .* deadline_ms"),
        (("path = ", "ratehz = 3\npath = "), r"source\.ratehz is an unknown key; did you mean rate_hz"),
        (("station = ", "recipe_dir = 'x'\nstation = "), "did you mean recipes_dir"),
        (('"folder"', '"folders"'), "kind = one of folder, video, line, genicam"),
        (('"flange"', '"flange no. 3"'), "letters, digits"),
    ],
)
def test_a_misspelt_setting_is_named_with_what_was_meant(tmp_path, change, says):
    path = tmp_path / "c.toml"
    text = 'station = "s"\n[[cameras]]\nname = "c"\nrecipe = "flange"\n'
    path.write_text((text + '[cameras.source]\nkind = "folder"\npath = "x"\n').replace(*change))
    with pytest.raises(SettingsError, match=says):
        load_settings(path)


def test_a_misspelt_variable_is_named_too(tmp_path, monkeypatch):
    path = tmp_path / "c.toml"
    path.write_text('[[cameras]]\nname = "c"\nrecipe = "r"\nsource = { kind = "line" }\n')
    monkeypatch.setenv("INSPECTORD_STATIO", "x")
    with pytest.raises(SettingsError, match="did you mean INSPECTORD_STATION"):
        load_settings(path)


def test_the_example_names_every_setting():
    text = EXAMPLE.read_text()
    missing = sorted(key for key in _known_keys() if not re.search(rf"\b{key}\b", text))
    assert not missing
