"""Fit on a folder of real images, evaluate, then let the daemon replay the test images: are the scores equal?

    python -m benchmarks.real_images --data FOLDER [--letterbox WxH] [--json FILE] [-- FIT OPTION ...]

FOLDER has train/good, test/good and test/<defect>. Each step is the user's own command in a process of its
own. The replay has no rate, so nothing is displaced, and a deadline that nothing misses: every image must
come out with one verdict, the score that `calibrate evaluate` gives it, and the same side of the limit.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks._common import Words, calibrate, finish, new_report, scratch, table
from benchmarks._daemon import Daemon, counts
from inspectord.messages import Verdict, VerdictMessage
from inspectord.recipe import Recipe, active_recipe

LARGEST_DIFFERENCE = 1e-4  # relative; the tolerance of golden scores between two starts


def replayed(folder: Path, work: Path, recipe: Recipe) -> list[VerdictMessage]:
    """Every verdict of a daemon that reads all images of a folder once."""
    source = {"kind": "folder", "path": str(folder.resolve()), "letterbox": recipe.spec.frame.letterbox}
    camera = {"name": "cam1", "recipe": recipe.spec.product, "source": source, "deadline_ms": 60_000.0}
    with Daemon(work, work / "recipes", [camera], images={"save": "none"}) as daemon:
        return [message for _, message in daemon.verdicts(None)]


def compared(published: list[VerdictMessage], evaluated: list[dict[str, Any]]) -> dict[str, Any]:
    """How far the published scores lie from the evaluated ones, and whatever else does not agree."""
    expected = {image["file"]: image for image in evaluated}
    heard = {message.part_id: message for message in published}
    pairs = [
        (message.score, image["score"])
        for name, image in expected.items()
        if (message := heard.get(name)) is not None
        and message.score is not None
        and image["score"] is not None
    ]
    common = expected.keys() & heard.keys()
    return {
        "scores_compared": len(pairs),
        "largest_relative_difference": max((abs(a - b) / max(abs(b), 1e-12) for a, b in pairs), default=None),
        "equal_to_the_last_bit": sum(a == b for a, b in pairs),
        "without_a_verdict": sorted(expected.keys() - heard.keys()),
        "without_an_evaluation": sorted(heard.keys() - expected.keys()),
        "another_verdict": sorted(n for n in common if heard[n].verdict != expected[n]["verdict"]),
    }


def is_equal(found: dict[str, Any], verdicts: dict[str, Any], images: int) -> bool:
    """One verdict an image, all of them as evaluated, every inspected one within LARGEST_DIFFERENCE."""
    inspected = verdicts["verdicts"] - verdicts[Verdict.NOT_INSPECTED]
    lists = ("without_a_verdict", "without_an_evaluation", "another_verdict")
    return (
        verdicts["verdicts"] == images
        and verdicts["seq_missing"] == 0
        and found["scores_compared"] == inspected > 0
        and found["largest_relative_difference"] <= LARGEST_DIFFERENCE
        and not any(found[name] for name in lists)
    )


def benchmark(args: argparse.Namespace) -> dict[str, Any]:
    """The report as plain data."""
    report = new_report()
    options: Words = [*(["--letterbox", args.letterbox] if args.letterbox else []), *args.fit_options]
    with scratch() as work:
        common: Words = ["--recipes", work / "recipes"]
        fitted = calibrate("fit", args.data, "--product", args.product, *common, *options)
        scores = work / "evaluated.json"
        took = calibrate("evaluate", args.product, args.data, *common, "--json", scores)
        recipe = active_recipe(work / "recipes", args.product)
        evaluation = json.loads(scores.read_text(encoding="utf-8"))
        published = replayed(args.data / "test", work, recipe)
    images = evaluation.pop("images")
    verdicts, found = counts(published), compared(published, images)
    return report | {
        "data": args.data.name,
        "fit_options": [str(option) for option in options],
        "recipe": recipe.spec.model_dump(mode="json", exclude={"files"}),
        "fit": vars(fitted),
        "evaluate": vars(took),
        "evaluation": evaluation,
        "images": len(images),
        "verdicts": verdicts,
        "comparison": found,
        "equal": is_equal(found, verdicts, len(images)),
    }


def print_report(report: dict[str, Any]) -> None:
    """For a reader at a terminal."""
    limits, frame, found = report["recipe"]["limits"], report["recipe"]["frame"], report["evaluation"]
    print(
        f"{report['data']}: {limits['good_parts']} good frames of {frame['width']}x{frame['height']} "
        f"{frame['pixel_format']}; {' '.join(report['fit_options']) or 'default options'}"
    )
    table(
        ("step", "seconds", "peak RSS, MB"),
        [(step, report[step]["seconds"], report[step]["peak_mb"]) for step in ("fit", "evaluate")],
    )
    rows: list[tuple[str, object, str]] = [
        (each["kind"], each["image_auroc"], _rate(each["escapes"], "escaped")) for each in found["kinds"]
    ]
    rows.append(("all defects", found["image_auroc"], _rate(found["escapes"], "escaped")))
    rows.append(("good", None, _rate(found["false_rejects"], "rejected")))
    table(("kind", "image AUROC", "at the limit"), rows)
    if found["pixels"]:
        print("pixels: " + ", ".join(f"{name} {value:.4g}" for name, value in found["pixels"].items()))
    _print_comparison(report)


def _print_comparison(report: dict[str, Any]) -> None:
    verdicts, found = report["verdicts"], report["comparison"]
    kinds = ", ".join(f"{verdicts[kind]} {kind}" for kind in Verdict)
    worst = found["largest_relative_difference"]
    print(
        f"{report['images']} test images replayed by the daemon: {verdicts['verdicts']} verdicts ({kinds}), "
        f"{verdicts['seq_missing']} missing in seq"
    )
    print(
        f"published against evaluated scores: {found['scores_compared']} compared, "
        f"{found['equal_to_the_last_bit']} equal to the last bit, largest relative difference "
        f"{'-' if worst is None else f'{worst:.2e}'} (at most {LARGEST_DIFFERENCE:g} wanted): "
        f"{'equal' if report['equal'] else 'NOT EQUAL'}"
    )
    for name in ("without_a_verdict", "without_an_evaluation", "another_verdict"):
        if found[name]:
            print(f"{len(found[name])} {name.replace('_', ' ')}: {', '.join(found[name][:5])}")


def _rate(rate: dict[str, Any], what: str) -> str:
    return f"{rate['events']} of {rate['parts']} {what} ({rate['low']:.1%} to {rate['high']:.1%})"


def main(argv: list[str] | None = None) -> int:
    """Exit code 1 where the daemon's scores are not evaluate's."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.real_images", description="Real images, from fit to published scores."
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with train/good and test/<kind>")
    parser.add_argument("--letterbox", metavar="WxH", help="scale and pad images of mixed sizes")
    parser.add_argument("--product", help="name of the recipe; default: the folder's")
    parser.add_argument("--json", type=Path, help="also write the report to this file")
    parser.add_argument(
        "fit_options", nargs="*", metavar="-- FIT OPTION", help="after --: options for `calibrate fit`"
    )
    args = parser.parse_args(argv)
    args.product = args.product or args.data.resolve().name
    report = benchmark(args)
    print_report(report)
    finish(report, args.json)
    return 0 if report["equal"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
