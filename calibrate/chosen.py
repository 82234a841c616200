"""From a command's flags to what was asked for: fit's options, or a source of frames."""

from __future__ import annotations

import argparse
from dataclasses import fields

from pydantic import ValidationError

from calibrate.options import ADAPTED, EFFICIENTAD, TRAINED, FitOptions
from inspectord.errors import SettingsError
from inspectord.settings import (
    Camera,
    FolderSource,
    GenicamSource,
    LineSource,
    Source,
    VideoSource,
    load_settings,
)

REPLAY_HZ = 10_000.0  # a file is read as fast as it can be
# Which flags of capture go with which source; any other pairing would do nothing, so it is refused.
GOES_WITH = {
    "camera": ("config",),
    "serial": ("cti",),
    "model": ("cti",),
    "user_id": ("cti",),
    "feature": ("cti",),
    "seed": ("line",),
    "size": ("line",),
    "rate": ("folder", "video", "line"),
}

OF_MODEL: dict[str, tuple[str, ...]] = {
    "epsilon": ("padim", "padim-seg"),
    "coreset": ("patchcore", "patchcore-seg"),
    "position_weight": ("patchcore", "patchcore-seg"),
    "reweight": ("patchcore",),
    "steps": ("efficientad-...", *ADAPTED.values()),
    "minutes": ("efficientad-...", *ADAPTED.values()),
    "train_device": ("efficientad-...",),
}
NOT_OF: dict[str, tuple[str, ...]] = {
    "efficientad-...": ("backbone", "layers", "dimensions", "reduction", "surroundings", "relight"),
    "padim-seg": ("surroundings",),
}


def fit_options(options: argparse.Namespace) -> FitOptions:
    """Flags not given leave FitOptions' own default. Raises SettingsError for ones without effect."""
    if options.overlap is not None and not (options.tile or options.grid):
        raise SettingsError("--overlap goes with --tile or --grid only; leave it out")
    adapts = options.adapt not in (None, "off")
    model = options.model or "patchcore"
    named = options.backbone is not None and not options.backbone.endswith((".onnx", ".xml"))
    _not_of_trained(options)
    if options.weights is not None and not named and options.model not in EFFICIENTAD:
        raise SettingsError("--weights goes with a --backbone by name, as in resnet18; leave it out")
    if model.startswith("patchcore") and options.reduction is not None and options.dimensions is None:
        raise SettingsError("--reduction goes with --dimensions here, else nothing is left out; leave it out")
    if adapts and (options.minutes is not None or options.steps is not None):
        raise SettingsError(
            "--adapt has its minutes itself, as in --adapt 15; --minutes and --steps go with --model "
            f"{' or '.join(ADAPTED.values())}"
        )
    for flag, models in OF_MODEL.items():
        if getattr(options, flag) is not None and family(model) not in models:
            raise SettingsError(
                f"--{flag.replace('_', '-')} goes with --model {' or '.join(models)} only; take that model "
                "or leave it out"
            )
    if adapts and model not in ADAPTED:
        raise SettingsError(
            f"--adapt goes with --model {' or '.join(ADAPTED)} only; leave one of the two out"
        )
    if options.max_int8_loss is not None and options.precision != "int8":
        raise SettingsError("--max-int8-loss goes with --precision int8 only; leave it out")
    if options.reweight is not None and not options.absolute:
        raise SettingsError("--reweight weighs plain distances; give --absolute with it, or leave it out")
    given = {field.name: getattr(options, field.name) for field in fields(FitOptions)}
    if options.per_tile or any(given[flag] is not None for flag in OF_MODEL if "patchcore" in OF_MODEL[flag]):
        given["model"] = model  # whose flags these are
    given = {name: value for name, value in given.items() if value is not None}
    for name in ("folders", "ignore_polygons"):
        given[name] = tuple(given.get(name, ()))
    return FitOptions(**given)


def family(model: str) -> str:
    """A model kind as OF_MODEL names it."""
    return "efficientad-..." if model in EFFICIENTAD else model


def _not_of_trained(options: argparse.Namespace) -> None:
    """What trains a network has no use for some flags."""
    if options.model not in TRAINED:
        return
    for flag in NOT_OF.get(family(options.model), ()):
        if getattr(options, flag) is not None:
            given = f"no-{flag}" if getattr(options, flag) is False else flag
            raise SettingsError(f"--{given} has no effect with --model {options.model}; leave it out")
    if options.extendable:
        raise SettingsError(
            f"--extendable: no frames can be added to what --model {options.model} has learned; leave it out"
        )
    if options.folds in ("loo", "run") and options.model in EFFICIENTAD:
        raise SettingsError(
            f"--folds {options.folds} would take many trainings with --model {options.model}; give a number: "
            "one frame in so many is held out"
        )
    if options.steps is not None and options.minutes is not None:
        raise SettingsError("--steps and --minutes exclude each other; give one")


def source_of(options: argparse.Namespace) -> Source:
    """The source that the flags name. Raises SettingsError for flags that don't go together."""
    for flag, sources in GOES_WITH.items():
        if getattr(options, flag) is not None and all(getattr(options, name) is None for name in sources):
            with_ = " or ".join(f"--{name}" for name in sources)
            raise SettingsError(f"--{flag.replace('_', '-')} goes with {with_} only; leave it out")
    return _configured(options) if options.config else _from_flags(options)


def _configured(options: argparse.Namespace) -> Source:
    cameras = {camera.name: camera for camera in load_settings(options.config).cameras}
    name = options.camera or (next(iter(cameras)) if len(cameras) == 1 else None)
    if name not in cameras:
        asked = f"has no camera {name!r}" if name else "has several cameras"
        raise SettingsError(f"{options.config} {asked}; give --camera with one of: {', '.join(cameras)}")
    return for_teaching(cameras[name])


def _from_flags(options: argparse.Namespace) -> Source:
    rate_hz = options.rate
    try:
        if options.folder:
            return FolderSource(path=options.folder, rate_hz=rate_hz)
        if options.video:
            return VideoSource(path=options.video, rate_hz=rate_hz or REPLAY_HZ)
        if options.cti:
            named = {name: getattr(options, name) for name in ("serial", "model", "user_id")}
            return GenicamSource(cti=options.cti, features=dict(options.feature or ()), **named)
        width, height = options.size or (256, 256)
        seed = options.seed or 0
        return LineSource(seed=seed, rate_hz=rate_hz or 10.0, width=width, height=height, defect_rate=0.0)
    except ValidationError as error:
        first = error.errors()[0]
        raise SettingsError(
            f"{first['loc'][-1]}: {first['msg']}, got {first['input']}; correct it"
        ) from error


def for_teaching(camera: Camera) -> Source:
    """A configured camera's source, without what must not teach: simulated defects, files over and over."""
    match camera.source:
        case LineSource():
            return camera.source.model_copy(update={"defect_rate": 0.0})
        case FolderSource() | VideoSource():
            return camera.source.model_copy(update={"loop": False})
    return camera.source
