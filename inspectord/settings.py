"""Settings of the daemon: a TOML file, then the environment (INSPECTORD_PUBLISH__VERDICTS=...) over it."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings import SettingsError as EnvironmentFormatError

from inspectord.errors import SettingsError
from inspectord.toml_file import read_toml

PREFIX = "INSPECTORD_"
MOST_FAULTS = 20  # told at once
SOURCE_KINDS = ("folder", "video", "line", "genicam")
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,40}$")]


class Strict(BaseModel):
    """A misspelt key is an error, never ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FolderSource(Strict):
    """Replay of image files in name order."""

    kind: Literal["folder"] = "folder"
    path: Path
    rate_hz: float | None = Field(
        None, gt=0, le=10_000
    )  # None: as fast as the ring takes them, none displaced
    loop: bool = False
    letterbox: bool = False  # scale and pad images of other sizes to the recipe's frame


class VideoSource(Strict):
    """Replay of a video file that OpenCV can read."""

    kind: Literal["video"] = "video"
    path: Path
    rate_hz: float | None = Field(None, gt=0, le=10_000)  # None: the file's own rate
    loop: bool = False
    letterbox: bool = False


class LineSource(Strict):
    """A simulated line: rendered parts, known defects, triggers and an encoder; deterministic by seed."""

    kind: Literal["line"] = "line"
    seed: int = Field(0, ge=0)
    rate_hz: float = Field(10.0, gt=0, le=10_000)  # parts a second
    parts: int | None = Field(None, gt=0)  # None: endless
    defect_rate: float = Field(0.1, ge=0, le=1)
    width: int = Field(256, ge=64, le=8192)
    height: int = Field(256, ge=64, le=8192)


class Trigger(Strict):
    """SFNC trigger nodes, set in this order and read back."""

    selector: str = "FrameStart"
    source: str = "Line1"  # "Software": the daemon triggers at software_rate_hz
    activation: str | None = "RisingEdge"
    software_rate_hz: float | None = Field(None, gt=0, le=1000)


class GenicamSource(Strict):
    """A camera through harvesters and any GenTL producer."""

    kind: Literal["genicam"] = "genicam"
    cti: Path
    serial: str | None = None
    model: str | None = None
    user_id: str | None = None
    pixel_format: str | None = None  # None: as the camera is set
    features: dict[str, bool | int | float | str] = Field(default_factory=dict)  # set in order, read back
    trigger: Trigger | None = None  # None: every frame is a trigger
    chunks: bool = False  # chunk data (encoder, counters) where the camera sends it
    buffers: int = Field(4, ge=2, le=64)
    silent_s: float = Field(2.0, gt=0, le=3600)  # free-running and no frame for so long: camera lost


Source = Annotated[FolderSource | VideoSource | LineSource | GenicamSource, Field(discriminator="kind")]


class Camera(Strict):
    name: Name
    recipe: Name  # product below recipes_dir; its active version runs
    source: Source
    deadline_ms: float = Field(200.0, gt=0, le=60_000)  # trigger to verdict
    ring_slots: int = Field(8, ge=2, le=256)


class Publish(Strict):
    verdicts: str = "tcp://127.0.0.1:5570"
    replay: str = "tcp://127.0.0.1:5571"
    heartbeat_ms: int = Field(100, ge=10, le=10_000)
    encoding: Literal["json", "msgpack"] = "json"
    replay_depth: int = Field(10_000, ge=10, le=1_000_000)  # verdicts kept in memory for replay, per camera

    @field_validator("verdicts", "replay")
    @classmethod
    def _endpoint(cls, value: str) -> str:
        if not value.startswith(("tcp://", "ipc://")):
            raise ValueError(f"{value!r} is no endpoint; use tcp://ADDRESS:PORT or ipc:///PATH")
        return value


class Journal(Strict):
    """The verdicts in state_dir/journal.sqlite; the oldest are forgotten above the quota or the age."""

    quota_mb: int = Field(4000, ge=1)
    keep_days: float | None = Field(None, gt=0)  # None: as long as the quota allows
    # before_publish: a verdict goes out only once its row is on the disk, or as NOT_INSPECTED at its deadline
    durability: Literal["after_publish", "before_publish"] = "after_publish"


class Images(Strict):
    """Rejected frames with their anomaly overlay, below state_dir/rejects."""

    save: Literal["rejects", "none"] = "rejects"
    quota_mb: int = Field(2000, ge=1)


class Security(Strict):
    """Who may listen and ask on tcp:// endpoints; ipc:// is guarded by file permissions instead."""

    mode: Literal["curve", "plain"] = "curve"  # plain: neither encrypted nor authenticated
    keys_dir: Path = Path("/etc/inspectord/keys")  # server.key_secret, and allowed/NAME.key of each client
    trusted_key: Path | None = None  # PEM, Ed25519: only recipes signed with its private half are run


class Logging(Strict):
    format: Literal["auto", "json", "console"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"


class Inference(Strict):
    device: str | None = None  # None: the recipe's; another device is refused unless the golden scores repeat
    threads: int = Field(0, ge=0, le=256)  # per camera; 0: all cores shared between the cameras
    cache_dir: Path | None = None  # compiled-model cache


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True
    )

    station: Name = "station1"
    state_dir: Path = Path("/var/lib/inspectord")
    recipes_dir: Path = Path("/var/lib/inspectord/recipes")
    # At the start; a reload always keeps what runs. last_good: the recipe that last proved itself here.
    on_broken_recipe: Literal["refuse", "last_good"] = "refuse"
    cameras: list[Camera] = Field(min_length=1)
    publish: Publish = Publish()
    journal: Journal = Journal()
    images: Images = Images()
    security: Security = Security()
    logging: Logging = Logging()
    inference: Inference = Inference()

    @model_validator(mode="after")
    def _unique_cameras(self) -> Settings:
        names = [camera.name for camera in self.cameras]
        if len(set(names)) != len(names):
            raise ValueError(f"camera names must differ, got {names}")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, init_settings  # the environment wins over the file


def load_settings(path: Path) -> Settings:
    """Settings from a TOML file and the environment; relative paths in the file start at its folder.

    Raises SettingsError naming the file and each wrong key.
    """
    try:
        table = read_toml(path)
    except OSError as error:
        raise SettingsError(
            f"can't read {path}: {error.strerror}; give a readable file with --config"
        ) from error
    except ValueError as error:
        raise SettingsError(f"{path} is not valid TOML: {error}") from error
    _refuse_private(table, path)
    _refuse_unknown_variables()
    try:
        settings = Settings(**table)
    except ValidationError as error:
        raise SettingsError(f"{path}: {_explain(error)}") from error
    except EnvironmentFormatError as error:
        raise SettingsError(f"an INSPECTORD_ variable is no JSON: {error}; correct or unset it") from error
    return _anchored(settings, path.resolve().parent)


def _refuse_private(table: dict[str, Any], path: Path) -> None:
    """pydantic-settings takes keys with an underscore in front as orders to itself, such as to read argv."""
    for key in table:
        if key.startswith("_"):
            raise SettingsError(f"{path}: {key[:60]} is an unknown key; remove it")


def _explain(error: ValidationError) -> str:
    faults = error.errors()
    more = f"; and {len(faults) - MOST_FAULTS} more" if len(faults) > MOST_FAULTS else ""
    return "; ".join(_in_words(dict(item))[:500] for item in faults[:MOST_FAULTS]) + more


def _in_words(item: dict[str, Any]) -> str:
    """One fault of pydantic's, as where, what, and what to do next."""
    path = [part for part in item["loc"] if part not in SOURCE_KINDS]
    where = ".".join(str(part) for part in path) or "settings"
    match item["type"]:
        case "extra_forbidden":
            near = difflib.get_close_matches(str(path[-1]), _known_keys(), 1)
            return f"{where} is an unknown key; " + (f"did you mean {near[0]}?" if near else "remove it")
        case "missing":
            return f"{where} is missing; add it"
        case "string_pattern_mismatch":
            return f"{where} is {item['input']!r}; use up to 40 letters, digits, - and _"
        case "union_tag_invalid" | "union_tag_not_found":
            return f"{where} needs kind = one of {', '.join(SOURCE_KINDS)}"
        case "too_short":
            return f"{where} is empty; add at least one, as [[{where}]]"
    return f"{where}: {str(item['msg']).removeprefix('Value error, ')}; correct it"


def _known_keys() -> set[str]:
    """Every key of every table, to guess at what a misspelt one meant."""
    tables: list[type[BaseModel]] = [Settings, *Strict.__subclasses__()]
    return {key for table in tables for key in table.model_fields}


def _refuse_unknown_variables() -> None:
    """pydantic-settings leaves misspelt variables out in silence."""
    for name in os.environ:
        key = name.removeprefix(PREFIX).partition("__")[0].lower()
        if name.startswith(PREFIX) and key not in Settings.model_fields:
            near = difflib.get_close_matches(key, Settings.model_fields, 1)
            hint = f"did you mean {PREFIX}{near[0].upper()}?" if near else "unset it"
            raise SettingsError(f"the environment variable {name} names no setting; {hint}")


def _anchored(settings: Settings, folder: Path) -> Settings:
    def below(model: Any) -> Any:
        updates: dict[str, Any] = {}
        for key, value in model:
            if isinstance(value, Path):
                updates[key] = folder / value
            elif isinstance(value, BaseModel):
                updates[key] = below(value)
            elif isinstance(value, list) and value and isinstance(value[0], BaseModel):
                updates[key] = [below(item) for item in value]
        return model.model_copy(update=updates)

    anchored: Settings = below(settings)
    return anchored
