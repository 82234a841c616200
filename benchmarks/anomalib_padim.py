"""Latency of a recipe's graph beside anomalib's PaDiM, both in OpenVINO, in one process, taking turns.

    python -m benchmarks.anomalib_padim --ours RECIPE_DIR_OR_XML [--json FILE]

The first run makes a venv with anomalib (about 2 GB under .bench/, git-ignored) and exports its PaDiM there:
ResNet-18, layer1 to layer3, 100 features, 256 x 256, random weights, since weights do not change the time.
Where pip would fetch a CUDA torch, PIP_INDEX_URL or PIP_FIND_LINKS can point it to a CPU one; either works.

What is timed is one synchronous request on a batch of one, with the input already in memory and the outputs
not copied. Both graphs start from pixels, but anomalib's takes float32 from 0 to 1 as (n, 3, 256, 256): the
conversion from camera bytes stays outside its graph and its time. Its graph ends with the blurred map at
256 x 256, scaled to 0 to 1, the score, and both thresholded. Its free batch dimension is fixed at one first.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openvino as ov

from benchmarks._common import BENCH_DIR, in_words, machine, versions

EXPORTER = Path(__file__).resolve().parent / "_anomalib_export.py"
TORCH = "torch==2.13.0"
PACKAGES = (  # torch is named again so that no dependency can replace it
    TORCH,
    "anomalib==2.7.0",
    "torchvision==0.28.0",
    "timm==1.0.31",
    "onnx==1.23.2",
    "onnxscript==0.7.2",
    "openvino==2026.4.1",
)
PRECISIONS = ("f32", "bf16")
SIDE_PX = 256
LARGEST_DIFFERENCE = 1e-3  # relative to the largest value of an image
SIGMA_PX, RADIUS_PX = 4.0, 16  # of anomalib's blur


def blurred(distance: np.ndarray, interpolation: int) -> np.ndarray:
    """anomalib's map of distances (rows, columns): to 256 x 256 by one of OpenCV's ways, then a Gaussian."""
    scaled = cv2.resize(distance.astype(np.float64), (SIDE_PX, SIDE_PX), interpolation=interpolation)
    size = 2 * RADIUS_PX + 1
    return cv2.GaussianBlur(scaled, (size, size), SIGMA_PX, borderType=cv2.BORDER_REFLECT_101)


def widen(worst: dict[str, float], pairs: dict[str, tuple[Any, Any]]) -> None:
    """Take in how far an image's (found, known) lie apart at most, relative to the largest known value."""
    for name, (found, known) in pairs.items():
        worst[name] = max(worst[name], float(np.max(np.abs(found - known)) / np.max(known)))


def run(command: Iterable[str | Path]) -> None:
    """Runs command with its output on stderr; a failure ends the benchmark and names the command."""
    words = [str(word) for word in command]
    if subprocess.run(words, stdout=sys.stderr, check=False).returncode != 0:
        raise SystemExit(f"anomalib_padim: this step failed, see above: {' '.join(words)}")


def make_venv(venv: Path) -> None:
    """A venv with anomalib; one that is there is only brought to the versions wanted."""
    python = venv / "bin" / "python"
    if not python.exists():
        run([sys.executable, "-m", "venv", venv])
    run([python, "-m", "pip", "install", "--quiet", TORCH])
    run([python, "-m", "pip", "install", "--quiet", *PACKAGES])


def prepare(venv: Path, export_dir: Path, exporter: Path = EXPORTER) -> dict[str, Any]:
    """What export.json under export_dir says; makes venv and export first unless the export is there."""
    marker = export_dir / "export.json"
    if not marker.exists():
        make_venv(venv)
        run([venv / "bin" / "python", exporter, export_dir])
    facts: dict[str, Any] = json.loads(marker.read_text())
    return facts


def find_xml(path: Path) -> Path:
    """path itself if it is a file, else the one .xml under that directory."""
    found = [path] if path.is_file() else sorted(path.rglob("*.xml"))
    if len(found) != 1:
        raise SystemExit(
            f"anomalib_padim: {path} has {len(found)} .xml files, one is needed; give --ours the file itself"
        )
    return found[0]


def load(core: Any, xml: Path) -> Any:
    """The model of xml with its batch fixed at one; it must have one input of known height and width."""
    model = core.read_model(xml)
    if len(model.inputs) != 1:
        raise SystemExit(f"anomalib_padim: {xml} has {len(model.inputs)} inputs, the benchmark feeds one")
    shape = model.input(0).partial_shape
    if shape.is_dynamic:
        shape[0] = 1
        model.reshape(shape)
    if model.input(0).partial_shape.is_dynamic:
        raise SystemExit(f"anomalib_padim: {xml} takes {shape}; export it with a fixed height and width")
    return model


def example_input(model: Any) -> np.ndarray:
    """Random pixels for the model's input: uint8 from 0 to 255, or a float type from 0 to 1."""
    port = model.input(0)
    pixels = np.random.default_rng(0).integers(0, 256, tuple(port.shape), dtype=np.uint8)
    wanted = port.element_type.to_dtype()
    return pixels if wanted == np.uint8 else (pixels / 255).astype(wanted)


def describe(xml: Path, model: Any) -> dict[str, Any]:
    """What a reader needs in order to see what each graph takes and gives."""

    def port_text(port: Any) -> str:
        return f"{port.get_any_name()} {port.element_type.get_type_name()} {list(port.shape)}"

    return {
        "xml": xml.name,
        "input": port_text(model.input(0)),
        "outputs": [port_text(port) for port in model.outputs],
    }


def compile_request(core: Any, model: Any, precision: str, threads: int) -> Any:
    """An inference request on the CPU in precision, or an exit if this CPU runs something else."""
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads,
    }
    compiled = core.compile_model(model, "CPU", settings)
    actual = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if actual != precision:
        raise SystemExit(f"anomalib_padim: asked for {precision}, the CPU runs {actual}; try --precision f32")
    return compiled.create_infer_request()


def duration_ms(request: Any, pixels: np.ndarray) -> float:
    """Time of one synchronous inference."""
    start_ns = time.perf_counter_ns()
    request.infer({0: pixels}, share_inputs=True, share_outputs=True)
    return (time.perf_counter_ns() - start_ns) / 1e6


def take_turns(requests: list[Any], inputs: list[np.ndarray], warm_up: int, rounds: int) -> np.ndarray:
    """Durations in ms of shape (rounds, requests); each row is one turn of all, one after the other."""
    rows = [
        [duration_ms(request, pixels) for request, pixels in zip(requests, inputs, strict=True)]
        for _ in range(warm_up + rounds)
    ]
    return np.array(rows[warm_up:])


def summarise(durations: np.ndarray) -> dict[str, dict[str, float]]:
    """Percentiles of each side, and of the ratio ours / anomalib within each round."""

    def percentiles(values: np.ndarray, low: int, high: int) -> dict[str, float]:
        picked = np.percentile(values, [50, low, high])
        return dict(zip(("median", f"p{low:02}", f"p{high}"), map(float, picked), strict=True))

    return {
        "ours_ms": percentiles(durations[:, 0], 10, 90),
        "anomalib_ms": percentiles(durations[:, 1], 10, 90),
        "ratio": percentiles(durations[:, 0] / durations[:, 1], 5, 95),
    }


def compare(ours_xml: Path, theirs_xml: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Times both graphs in every precision asked for; the report as plain data."""
    core = ov.Core()
    host = machine()
    models = [load(core, ours_xml), load(core, theirs_xml)]
    inputs = [example_input(model) for model in models]

    def measure(precision: str) -> dict[str, dict[str, float]]:
        requests = [compile_request(core, model, precision, args.threads) for model in models]
        return summarise(take_turns(requests, inputs, args.warm_up, args.rounds))

    results = {precision: measure(precision) for precision in args.precision}
    return {
        "machine": host,
        "versions": versions(),
        "settings": {"threads": args.threads, "warm_up": args.warm_up, "rounds": args.rounds},
        "models": {
            "ours": describe(ours_xml, models[0]),
            "anomalib": describe(theirs_xml, models[1]),
        },
        "results": results,
    }


def print_report(report: dict[str, Any]) -> None:
    """The report for a reader at a terminal."""
    for part in ("machine", "versions", "exported_with", "settings"):
        print(f"{part}: {in_words(report[part])}")
    for side, facts in report["models"].items():
        print(f"{side}: takes {facts['input']}, gives {'; '.join(facts['outputs'])}")
    for precision, result in report["results"].items():
        for side in ("ours", "anomalib"):
            ms = result[f"{side}_ms"]
            print(f"{precision:5}{side:9}{ms['median']:7.2f} ms  (p10 {ms['p10']:.2f}, p90 {ms['p90']:.2f})")
        ratio = result["ratio"]
        print(
            f"{precision:5}ours / anomalib {ratio['median']:.3f}, pairwise median "
            f"(5-95 %: {ratio['p05']:.3f} to {ratio['p95']:.3f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Latency of a recipe's graph beside anomalib's PaDiM.")
    parser.add_argument("--ours", type=Path, help="recipe directory with one .xml under it, or an .xml")
    parser.add_argument("--prepare-only", action="store_true", help="only make anomalib's export")
    parser.add_argument("--venv", type=Path, default=BENCH_DIR / "anomalib-venv")
    parser.add_argument(
        "--export-dir", type=Path, default=BENCH_DIR / "anomalib-padim", help="remove it to export anew"
    )
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--warm-up", type=int, default=20, help="rounds that are run but not counted")
    parser.add_argument("--json", type=Path, help="also write the report to this file")
    args = parser.parse_args()
    if args.ours is None and not args.prepare_only:
        parser.error("give --ours RECIPE_DIR_OR_XML, or --prepare-only")
    export = prepare(args.venv, args.export_dir)
    theirs_xml = args.export_dir / export["model"]
    if args.prepare_only:
        print(theirs_xml)
        return
    report = {**compare(find_xml(args.ours), theirs_xml, args), "exported_with": export["versions"]}
    print_report(report)
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
