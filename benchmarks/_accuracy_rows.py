"""From cells to the tables of benchmarks.accuracy: means over seeds, and how sure they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from calibrate.evaluation import GOOD
from calibrate.metrics import auroc

Doubles = npt.NDArray[np.float64]
Row = dict[str, Any]
RESAMPLES = 2000
BUSY = 3.0  # runnable processes; a fit on two cores just before leaves about two
PIXELS = ("auroc", "aupro_30", "aupro_05")
HEAD = (
    *("data", "configuration", "model", "image AUROC", "95 % interval", "each seed"),
    *("pixel AUROC", "AUPRO 0.30", "AUPRO 0.05", "false rejects", "escapes"),
    *("fit s", "fit MB", "ms", "recipe MB"),
)


def mean_auroc(good: Doubles, bad: Doubles) -> float:
    """Mean over seeds of the image AUROC; good (seeds, n), bad (seeds, m)."""
    return fmean(auroc(*scores) for scores in zip(good, bad, strict=True))


def bootstrap_interval(good: Doubles, bad: Doubles) -> tuple[float, float] | None:
    """95 % interval of mean_auroc over images, drawn again among the good and among the defective ones.

    One draw takes the same images in every seed. None for fewer than two images of a sort. Where no draw can
    change the order, as at an AUROC of 1, both ends are equal: it knows only the images it was given.
    Efron 1979, percentile method.
    """
    if min(good.shape[1], bad.shape[1]) < 2:
        return None
    found = stats.bootstrap(
        (np.arange(good.shape[1]), np.arange(bad.shape[1])),
        lambda i, j: mean_auroc(good[:, i], bad[:, j]),
        vectorized=False,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def row(cells: Sequence[dict[str, Any]]) -> Row:
    """The figures of one configuration on one data set; cells, at least one, differ in their seed only."""
    done = [cell for cell in cells if cell["failed"] is None]
    failures = [f"seed {cell['seed']}: {cell['failed']}" for cell in cells if cell["failed"] is not None]
    found: Row = {name: cells[0][name] for name in ("data", "configuration", "options")}
    found |= {"seeds": [cell["seed"] for cell in done], "failures": failures}
    return found | _figures(done) if done else found


def _figures(cells: Sequence[dict[str, Any]]) -> Row:
    results, recipes = [cell["evaluation"] for cell in cells], [cell["recipe"] for cell in cells]
    kinds = [kind["kind"] for kind in results[0]["kinds"]]
    masked = all(result["pixels"] for result in results)
    return {
        "model": f"{recipes[0]['kind']} {recipes[0]['backbone']}",
        "image_auroc": _image_auroc(cells, [result["image_auroc"] for result in results]),
        "kinds": [_kind(cells, index, kind) for index, kind in enumerate(kinds)],
        "pixels": {n: fmean(r["pixels"][n] for r in results) for n in PIXELS} if masked else None,
        "false_rejects": _rate([result["false_rejects"] for result in results]),
        "escapes": _rate([result["escapes"] for result in results]),
        "same_for_all_seeds": len(cells) > 1 and all(c["images"] == cells[0]["images"] for c in cells),
        "not_inspected": max(sum(image[2] is None for image in cell["images"]) for cell in cells),
        "unlike": [
            result["likeness"]["above"]
            for result in results
            if result["likeness"] and not result["likeness"]["alike"]
        ],
        "blind": sum(recipe["is_blind"] for recipe in recipes),
        "fit_s": fmean(cell["fit"]["seconds"] for cell in cells),
        "fit_peak_mb": max(cell["fit"]["peak_mb"] for cell in cells),
        "latency_ms": median(cell["latency_ms"]["p50"] for cell in cells),
        "load_1min": max(cell["latency_ms"]["load_1min"] for cell in cells),
        "recipe_mb": max(recipe["mb"] for recipe in recipes),
    }


def _kind(cells: Sequence[dict[str, Any]], index: int, kind: str) -> Row:
    found = [cell["evaluation"]["kinds"][index] for cell in cells]
    return {
        "kind": kind,
        "image_auroc": _image_auroc(cells, [each["image_auroc"] for each in found], kind),
        "escapes": _rate([each["escapes"] for each in found]),
    }


def _image_auroc(cells: Sequence[dict[str, Any]], each: list[float | None], kind: str | None = None) -> Row:
    """each: as `calibrate evaluate` found them, a seed; None where there was nothing to compare."""
    known = [value for value in each if value is not None]
    good = _scores(cells, lambda name: name == GOOD)
    bad = _scores(cells, lambda name: name != GOOD if kind is None else name == kind)
    interval = bootstrap_interval(good, bad)
    return {"mean": fmean(known) if known else None, "each": each, "interval": interval}


def _scores(cells: Sequence[dict[str, Any]], wanted: Callable[[str], bool]) -> Doubles:
    """Scores (seeds, images) of the images of a kind that every seed's recipe could inspect."""
    tables = [
        {file: score for file, kind, score, _ in cell["images"] if wanted(kind) and score is not None}
        for cell in cells
    ]
    common = sorted(set.intersection(*(set(table) for table in tables)))
    return np.array([[table[file] for file in common] for table in tables])


def _rate(rates: list[dict[str, Any]]) -> Row:
    parts = rates[0]["parts"]
    events = [rate["events"] for rate in rates]
    return {"mean": fmean(events) / parts if parts else None, "events": events, "parts": parts}


# --- as text ---


@dataclass(frozen=True)
class Table:
    title: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def markdown(self) -> str:
        lines = [self.head, tuple("---" for _ in self.head), *self.rows]
        cells = ["| " + " | ".join(text.replace("|", "/") for text in line) + " |" for line in lines]
        return "\n".join([f"**{self.title}**", "", *cells, ""])


def tables(rows: Sequence[Row]) -> list[Table]:
    """What people read: all figures, each kind of defect, and each configuration over all data sets."""
    done = [row for row in rows if row["seeds"]]
    found = [
        Table(
            "Every configuration on every data set",
            HEAD,
            [_cells(row) if row["seeds"] else _failed_cells(row) for row in rows],
        ),
        Table(
            "By kind of defect",
            ("data", "configuration", "kind", "images", "image AUROC", "95 % interval", "escapes"),
            [_kind_cells(row, kind) for row in done for kind in row["kinds"]],
        ),
    ]
    data = {row["data"] for row in rows}
    return [*found, _over_data_sets(done, len(data))] if len(data) > 1 else found


def _cells(row: Row) -> tuple[str, ...]:
    pixels = row["pixels"] or dict.fromkeys(PIXELS)
    return (
        row["data"],
        row["configuration"],
        row["model"],
        *_auroc_cells(row["image_auroc"]),
        " ".join(map(_share, row["image_auroc"]["each"])),
        *(_share(pixels[name]) for name in PIXELS),
        _counted(row["false_rejects"]),
        _counted(row["escapes"]),
        f"{row['fit_s']:.1f}",
        f"{row['fit_peak_mb']:.0f}",
        f"{row['latency_ms']:.2f}",
        f"{row['recipe_mb']:.1f}",
    )


def _failed_cells(row: Row) -> tuple[str, ...]:
    known = (row["data"], row["configuration"], "-", "FAILED")
    return (*known, *("-" for _ in HEAD[len(known) :]))


def _kind_cells(row: Row, kind: Row) -> tuple[str, ...]:
    images = str(kind["escapes"]["parts"])
    figures = (*_auroc_cells(kind["image_auroc"]), _counted(kind["escapes"]))
    return row["data"], row["configuration"], kind["kind"], images, *figures


def _over_data_sets(rows: Iterable[Row], of: int) -> Table:
    means: dict[str, list[float]] = {}
    for row in rows:
        if row["image_auroc"]["mean"] is not None:
            means.setdefault(row["configuration"], []).append(row["image_auroc"]["mean"])
    lines = [
        (name, f"{len(values)} of {of}", _share(fmean(values)), _share(min(values)))
        for name, values in means.items()
    ]
    return Table("Over all data sets", ("configuration", "data sets", "mean image AUROC", "lowest"), lines)


def _auroc_cells(found: Row) -> tuple[str, str]:
    interval = found["interval"]
    return _share(found["mean"]), "-" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _counted(rate: Row) -> str:
    """As in 1.0 % (2, 1, 3 of 191), an event count a seed."""
    if rate["mean"] is None:
        return "-"
    return f"{rate['mean']:.1%} ({', '.join(map(str, rate['events']))} of {rate['parts']})"


def remarks(rows: Iterable[Row]) -> list[str]:
    """What no column says: failures, images not inspected, recipes that see nothing, a busy machine."""
    said = []
    for row in rows:
        name = f"{row['data']}, {row['configuration']}"
        said += [f"{name}: FAILED, {failure}" for failure in row["failures"]]
        if row.get("same_for_all_seeds"):
            said.append(f"{name}: every seed gives the same scores; nothing in this recipe is random")
        if row.get("not_inspected"):
            said.append(f"{name}: {row['not_inspected']} images could not be inspected; no AUROC counts them")
        if row.get("unlike"):
            most = max(row["unlike"], key=lambda above: above["events"])
            said.append(
                f"{name}: in {len(row['unlike'])} of {len(row['seeds'])} seeds good test frames are unlike "
                f"the fit's: up to {most['events']} of {most['parts']} score more than nine in ten of those, "
                "held out; AUROC tells of that too"
            )
        if row.get("blind"):
            said.append(
                f"{name}: {row['blind']} of {len(row['seeds'])} recipes pass their marked frame, and fit by "
                "itself would not have activated them"
            )
        if row.get("load_1min", 0) > BUSY:
            said.append(
                f"{name}: timed on a busy machine (load {row['load_1min']:.1f}); fit s and ms mean little"
            )
    return said
