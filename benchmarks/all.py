"""All benchmarks in order, with their defaults; needs an otherwise idle machine.

    python -m benchmarks.all [--out FOLDER] [--data 'FOLDER [OPTION ...]' ...] [--anomalib]

One JSON file a benchmark goes to --out. Each --data is a folder of real images, with options of
benchmarks.real_images behind it in the same quotes; all of them go to benchmarks.accuracy, too, which takes
hours. Without --data these two are left out.
--anomalib adds comparisons with anomalib's PaDiM, PatchCore and EfficientAD; it installs about 2 GB below
.bench/ once.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

from benchmarks._common import BENCH_DIR, environment

PEERS = ("padim_parity", "anomalib_patchcore", "lite_padim", "precisions")
Step = tuple[str, list[str]]  # the JSON file's stem, and the command behind `python -m benchmarks.`


def steps(data: list[str], anomalib: bool, keep: Path) -> list[Step]:
    """What to run, in order; keep is a folder for the recipes of fit_memory."""
    found: list[Step] = [
        ("overhead", ["overhead"]),
        ("genicam", ["genicam"]),
        ("fit_memory", ["fit_memory", "--keep", str(keep)]),
        ("patchcore_fit", ["patchcore_fit"]),
        ("tile_ensemble", ["tile_ensemble"]),
    ]
    for number, text in enumerate(data, 1):
        folder, *options = shlex.split(text)
        name = f"real_images_{number}_{Path(folder).resolve().name}"
        found.append((name, ["real_images", "--data", folder, *options]))
    if data:
        found.append(("accuracy", ["accuracy", *(shlex.split(text)[0] for text in data)]))
    if anomalib:
        found.append(("anomalib_padim", ["anomalib_padim", "--ours", str(keep / "resnet18" / "model.xml")]))
        found += [(name, [name]) for name in PEERS]
    return found


def run(step: Step, out: Path) -> bool:
    """True where it ran and found nothing wrong."""
    name, (module, *options) = step
    print(f"--- {name}", flush=True)
    command = [sys.executable, "-m", f"benchmarks.{module}", "--json", str(out / f"{name}.json"), *options]
    return subprocess.run(command, env=environment(), check=False).returncode == 0


def main(argv: list[str] | None = None) -> int:
    """Exit code 1 where a benchmark failed or missed what it must hold; the others still run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.all", description="All benchmarks in order.")
    parser.add_argument("--out", type=Path, default=BENCH_DIR / "results", help="default: %(default)s")
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="'FOLDER [OPTION ...]'",
        help="real images; may be repeated",
    )
    parser.add_argument("--anomalib", action="store_true", help="also compare with anomalib's models")
    parser.add_argument("--json", type=Path, help="also write which benchmarks passed to this file")
    args = parser.parse_args(argv)
    out: Path = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    passed = {step[0]: run(step, out) for step in steps(args.data, args.anomalib, out / "recipes")}
    for name, good in passed.items():
        print(f"{name}: {'passed' if good else 'FAILED'}")
    if args.json is not None:
        args.json.write_text(json.dumps(passed, indent=2) + "\n", encoding="utf-8")
    return 0 if all(passed.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
