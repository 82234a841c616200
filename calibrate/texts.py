"""What is written behind a flag, as a value; argparse shows the reason where it is none."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable


def adapt(text: str) -> str | float:
    """--adapt's type."""
    if text in ("auto", "off"):
        return text
    try:
        return number(0.01, float)(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither auto nor off nor minutes from 0.01 up, as in 5"
        ) from None


def number(lowest: float, kind: type[int] | type[float] = int) -> Callable[[str], float]:
    """A flag's type: a finite number from lowest up."""

    def convert(text: str) -> float:
        try:
            value: float = kind(text)
        except ValueError:
            value = math.nan
        if not lowest <= value < math.inf:
            whole = "whole number" if kind is int else "number"
            raise argparse.ArgumentTypeError(f"{text!r} is no {whole} from {lowest:g} up")
        return value

    return convert


count = number(0)


def _told(text: str, parse: Callable[[str], object]) -> object:
    """argparse hides a ValueError's text and shows an ArgumentTypeError's."""
    try:
        return parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def rate(text: str) -> object:
    from calibrate.limits import parse_rate

    return _told(text, parse_rate)


def roi(text: str) -> object:
    from calibrate.region import parse_roi

    return _told(text, parse_roi)


def polygon(text: str) -> object:
    from calibrate.region import parse_polygon

    return _told(text, parse_polygon)


def pair(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no pair of numbers; give it as in 640x480")
    return int(parts[0]), int(parts[1])


def folds(text: str) -> str:
    if text not in ("loo", "run") and not (text.isdecimal() and int(text) >= 2):
        raise argparse.ArgumentTypeError(f"{text!r} is not loo, run or a number from 2 up")
    return text


def coreset(text: str) -> str:
    share = text.removesuffix("%")
    try:
        size = float(share) if share != text else int(text)
    except ValueError:
        size = 0
    if not 0 < size <= (100 if share != text else math.inf):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no share or number of patches; give it as in 10% or 4000"
        )
    return text


def top_tiles(text: str) -> int:
    """max or top-K as the number of tiles."""
    count = "1" if text == "max" else text.removeprefix("top-")
    if count == text or not count.isdecimal() or int(count) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not max or top-K; give it as in max or top-3")
    return int(count)


def cluster(text: str) -> str:
    host, colon, port = text.removeprefix("dask://").rpartition(":")
    if not text.startswith("dask://") or not host or not colon or not port.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no cluster; give it as in dask://10.0.0.5:8786")
    return text


def names(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of names; give it as in layer1,layer2")
    return names


def feature(text: str) -> tuple[str, bool | int | float | str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is no setting; give NAME=VALUE, as in ExposureTime=2000")
    if value.lower() in ("true", "false"):
        return name, value.lower() == "true"
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            continue
    return name, value
