"""From compare's flags to the options of each kind's fit."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from pathlib import Path

from calibrate.chosen import NOT_OF, OF_MODEL, family, fit_options
from calibrate.options import EFFICIENTAD, FitOptions
from inspectord.errors import SettingsError, StateError

THROWN_AWAY = {"activate": False, "extendable": False}  # to be fitted again, from all good frames
NOT_OF_ALL = (*OF_MODEL, *NOT_OF["efficientad-..."], "weights")


@dataclass(frozen=True)
class Wanted:
    """What to compare: options of each kind, equal but for the kind and what only that kind takes."""

    kinds: tuple[FitOptions, ...]
    defective: Path | None = None
    keep: Path | None = None
    deadline_ms: float | None = None


def wanted_of(options: argparse.Namespace) -> Wanted:
    """Raises SettingsError for flags without effect, StateError where --keep can't be made."""
    for flag in NOT_OF_ALL:
        if getattr(options, flag) is not None and not any(
            _takes(kind, flag, options) for kind in options.models
        ):
            given = f"--{flag.replace('_', '-')}"
            raise SettingsError(
                f"{given} has no effect with --models {','.join(options.models)}; leave it out"
            )
    keep = options.keep
    if keep is not None and (keep.exists() or not keep.absolute().parent.is_dir()):
        raise StateError(f"--keep {keep} can't be made; give a folder that isn't there, in one that is")
    kinds = tuple(_options_of(kind, options) for kind in options.models)
    return Wanted(kinds, options.defective, keep, options.deadline_ms)


def _options_of(kind: str, options: argparse.Namespace) -> FitOptions:
    """What fit would make of the same flags; those of other kinds are left to them."""
    others = {flag: None for flag in NOT_OF_ALL if not _takes(kind, flag, options)}
    own = {"model": kind, "product": kind, "recipes_dir": Path(), **THROWN_AWAY, **others}
    unset = {field.name: None for field in fields(FitOptions)}  # fit has more flags than a comparison
    return fit_options(argparse.Namespace(**unset | vars(options) | own))


def _takes(kind: str, flag: str, options: argparse.Namespace) -> bool:
    if flag == "weights":  # of the backbone, where one is named; else of the trained kinds' teacher
        return (kind in EFFICIENTAD) == (options.backbone is None)
    if flag in OF_MODEL:
        return family(kind) in OF_MODEL[flag]
    return flag not in NOT_OF.get(family(kind), ())
