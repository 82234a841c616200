"""`calibrate fit --adapt`: whether a fit becomes one whose networks learn from the part's own frames.

Light: what is found here is that torch is missing, too.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

from calibrate.options import ADAPT_FEWEST, ADAPTED, PLAIN, FitOptions
from calibrate.progress import Progress
from inspectord.errors import FitError


class NothingGainedError(FitError):
    """The networks of a fit that was to be adapted where that helps find no more than distances alone."""


def check(options: FitOptions) -> None:
    """Raises FitError where minutes of adapting are asked for that can't be had of any frames."""
    if options.adapt != "off" and options.model not in ADAPTED:
        raise FitError(
            f"--adapt {options.adapt} goes with --model {' or '.join(ADAPTED)} only; leave one of the two out"
        )
    if isinstance(options.adapt, float) and (why := _obstacle(options)):
        raise FitError(f"--adapt {options.adapt:g} can't be had: {why}")


def adapted(options: FitOptions, frames: int, progress: Progress) -> FitOptions:
    """The options with the kind that is adapted, where that is asked for and can be had of so many frames.

    "auto" notes why it can't; raises FitError where minutes were asked for.
    """
    if options.adapt == "off":
        return options
    why = _obstacle(options)
    if not why and frames < ADAPT_FEWEST:
        why = (
            f"it takes {ADAPT_FEWEST} different good frames, and here are {frames}; grab more with "
            "`calibrate capture`, or leave --adapt out"
        )
    if not why:
        minutes = None if options.adapt == "auto" else options.adapt
        return replace(options, model=ADAPTED[options.model], minutes=minutes)
    if options.adapt == "auto":
        progress.note(not_adapted(options.model, why))
        return options
    raise FitError(f"--adapt {options.adapt:g} can't be had: {why}")


def plain(options: FitOptions) -> FitOptions:
    """The options of an adapted fit without the adapting."""
    return replace(options, model=PLAIN.get(options.model, options.model), minutes=None, adapt="off")


def not_adapted(model: str, why: object) -> str:
    """What an operator reads where a kind is fitted plainly."""
    return f"warning: plain {model} is fitted, not adapted to the part: {why}"


def refused(options: FitOptions) -> str:
    """A flag that adapted kinds have nothing for, as it was given; empty where there is none."""
    flags = {
        "--precision int8": options.precision == "int8",
        "--per-tile": options.per_tile,
        "--normalise tile": options.normalise == "tile",
        "--reweight": options.reweight,
        f"--jobs {options.jobs}": options.jobs > 1,
        "--on": options.on,
    }
    return next((flag for flag, asked in flags.items() if asked), "")


def _obstacle(options: FitOptions) -> str:
    flags = {
        "--surroundings": options.surroundings and options.model == "padim",
        "--extendable": options.extendable,
        f"--folds {options.folds}": options.folds != "loo",
    }
    flag = refused(options) or next((flag for flag, asked in flags.items() if asked), "")
    if flag:
        return f"{flag} does not go with it; leave one of the two out"
    try:
        import_module("torch")
    except ImportError:
        return "it needs torch; `pip install 'inspectord[train]'`, or leave --adapt out"
    return ""
