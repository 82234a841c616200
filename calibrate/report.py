"""report.html: what a recipe is worth, for the person at the line, on one page that needs nothing else."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from html import escape
from pathlib import Path, PurePath

import cv2
import numpy as np

from calibrate.limits import Limit, in_words
from calibrate.tail import Doubles
from inspectord.frame import Pixels
from inspectord.inspect import Floats
from inspectord.recipe import RecipeToml

SIDE, WIDEST, HIGHEST = 400, 960, 640  # a picture's area and sides in px: six of pure noise make 1 MB
METHODS = {
    kind: f" (what differs from {normal}, told by networks that were shown made-up defects)"
    for kind, normal in (("patchcore-seg", "PatchCore's bank"), ("padim-seg", "PaDiM's Gaussians"))
}
HEAT_FULL = 2.0  # times the limit, as in the daemon's overlays: a colour means the same in both
LISTED = 10
CSS = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1c2530; background: #fff; margin: 0 }
main { max-width: 920px; margin: 0 auto; padding: 8px 16px 32px; overflow-wrap: anywhere }
h2 { font-size: 1.15rem; margin: 36px 0 8px; border-bottom: 1px solid #d5dbe1; break-after: avoid }
small, figcaption, dt { color: #56616d; font-size: .9rem; font-weight: normal }
figure { margin: 12px 0 } figure, tr, .warnings { break-inside: avoid; print-color-adjust: exact }
.headline { font-size: 1.25rem } .warnings { border: 2px solid #b50; background: #fff4e0; padding: 8px 16px }
img { max-width: 100%; height: auto; display: block } .chart { width: 620px }
.pair { display: flex; flex-wrap: wrap; gap: 8px } .pair:not(.wide) img { max-width: min(100%, 456px) }
.scale { display: grid; grid-template-columns: 1fr auto 1fr; width: 320px; max-width: 100% }
.scale img { grid-column: 1 / 4; width: 100%; height: 16px } .scale :last-child { text-align: right }
table { border-collapse: collapse } tr + tr { border-top: 1px solid #ddd } tr.over { background: #fde8e6 }
th, td { text-align: right; vertical-align: top; white-space: nowrap; padding: 4px 16px 4px 0 }
.file { text-align: left; white-space: normal; width: 99%; unicode-bidi: isolate }
dl { display: grid; grid-template-columns: min(11em, 27%) 1fr; gap: 4px 16px } dd { margin: 0 }"""


@dataclass(frozen=True)
class Example:
    """A good part and the finished recipe's map of it."""

    title: str
    pixels: Pixels  # (height, width, channels)
    anomaly_map: Floats  # (rows, columns)


@dataclass(frozen=True)
class ReportData:
    """All that the page shows; the same data give the same bytes."""

    product: str
    version: str
    spec: RecipeToml
    limit: Limit
    held_out: Doubles  # (n,) scores of good parts, each held out
    names: list[str]  # path of each held-out part, in the same order
    examples: list[Example]
    warnings: list[str]
    provenance: dict[str, str]


def write_report(path: Path, data: ReportData) -> None:
    """Write the page: no scripts, nothing loaded from elsewhere. Raises OSError if it can't be written."""
    # A file name that is not UTF-8 arrives with lone surrogates, which UTF-8 can't hold.
    path.write_text(_page(data), encoding="utf-8", errors="backslashreplace")


def _page(data: ReportData) -> str:
    product, version = escape(data.product), escape(data.version)
    limit_found = {
        "wanted": f"at most {in_words(data.limit.wanted_rate)} good parts rejected",
        "held out": data.spec.limits.folds,
        "limit": data.limit.method,
    }
    sections = {
        "Scores of the good parts": _chart(data),
        "Look at these first: are they really good?": _highest(data),
        "What the recipe sees": _examples(data),
        "Settings": definitions(_settings(data.spec)),
        "How the limit was found": definitions(limit_found),
        "Where it comes from": definitions(data.provenance),
    }
    # The policy makes the browser refuse what such a page must not do.
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{product} {version}: calibration report</title>
<meta http-equiv="Content-Security-Policy"
content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{CSS}</style></head><body><main>
<h1>{product} <small>recipe {version}</small></h1><p class="headline">{escape(data.limit.headline())}</p>
<p><small>{escape(data.limit.sample_sizes())}</small></p>{_warnings(data.warnings)}
{"".join(f"<h2>{title}</h2>{content}" for title, content in sections.items())}</main></body></html>"""


def _warnings(warnings: list[str]) -> str:
    texts = "".join(f"<p>{escape(text)}</p>" for text in warnings)
    return f'<div class="warnings"><b>Please read</b>{texts}</div>' if warnings else "<p>No warnings.</p>"


def definitions(table: dict[str, str]) -> str:
    """Names and what they mean, as HTML."""
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in table.items())
    return f"<dl>{rows}</dl>"


def _chart(data: ReportData) -> str:
    n, limit = len(data.held_out), data.limit
    return f"""<figure><img class="chart" src="{_histogram(data.held_out, limit.score)}"
alt="Histogram of {n:,} scores up to {data.held_out.max():.4g}; the limit is {limit.score:.4g}">
<figcaption>The higher its score, the less a part looks like the others. Each of the {n:,} good parts was
scored as if it were new, by statistics that did not know it. Over the limit: {limit.above:,}. The dots are
the highest, listed below; what lies too far right to show counts in the last bar.</figcaption></figure>"""


def _histogram(scores: Doubles, limit: float) -> str:
    """Parts per score as the data URI of an SVG."""
    from matplotlib import style  # half a second that only a report needs
    from matplotlib.figure import Figure

    edges = _edges(scores, limit)
    # A score at the limit passes, so a bar holds its upper edge, not its lower one as in np.histogram.
    places = np.clip(np.searchsorted(edges, scores) - 1, 0, len(edges) - 2)
    counts = np.bincount(places, minlength=len(edges) - 1)
    colours = np.where(edges[1:] > limit, "C3", "C0")
    with style.context(["default", {"svg.hashsalt": "calibrate"}]):
        figure = Figure(figsize=(5, 2.7), layout="constrained")
        axes = figure.add_subplot(xlabel="score", ylabel="good parts", xlim=(edges[0], edges[-1]))
        axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=colours, edgecolor="white", lw=0.4)
        axes.axvspan(limit, edges[-1], color="C3", alpha=0.08, lw=0)
        axes.axvline(limit, color="C3")
        top = axes.get_xaxis_transform()
        axes.text(limit, 1.03, f"limit {limit:.4g}", transform=top, ha="center", color="C3", weight="bold")
        dots = np.minimum(np.sort(scores)[-LISTED:], edges[-1])
        axes.plot(dots, 0 * dots + 0.03, ".k", ms=4, transform=top, clip_on=False)
        axes.locator_params(axis="y", nbins=4, integer=True)
        axes.yaxis.set_major_formatter("{x:,.0f}")
        svg = io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
    return _data_uri("image/svg+xml", svg.getvalue())


def _edges(scores: Doubles, limit: float) -> Doubles:
    """Edges of even bars; one is the limit, so no bar lies on both sides. Far scores join the last."""
    below = int(np.clip(2 * math.sqrt(len(scores)), 8, 50))
    span = max(limit - float(scores.min()), 0.01 * abs(limit)) or 1.0  # not 0 if all parts score the same
    above = np.clip(np.ceil((scores.max() - limit) / span * below), below // 4, below)
    return limit + span / below * np.arange(-below, above + 1)


def _highest(data: ReportData) -> str:
    highest = sorted(zip(data.held_out.tolist(), data.names, strict=True), reverse=True)[:LISTED]
    rows = "".join(_row(score, PurePath(name), data.limit.score) for score, name in highest)
    return f"""<p>If one of these parts is not good, take its picture out of the folder and fit again:
it has taught the recipe that its defect is normal.</p>
<table><tr><th>score</th><th>of limit</th><th class="file">file</th></tr>{rows}</table>"""


def _row(score: float, file: PurePath, limit: float) -> str:
    kind, mark = ("over", " (over the limit)") if score > limit else ("", "")
    name = f"<small>{escape(str(file.parent))}/</small>{escape(file.name)}{mark}"
    cells = f'<td>{score:#.4g}</td><td>{score / (limit or 1):.0%}</td><td class="file">{name}</td>'
    return f'<tr class="{kind}">{cells}</tr>'


def _examples(data: ReportData) -> str:
    ramp = np.tile(np.linspace(0, 1, 256, dtype=np.float32), (8, 1))
    scale = jpeg(_blended(np.full((8, 256, 3), 128, np.uint8), ramp))
    return f"""<p>First each part, then what the recipe makes of it. A red line surrounds what lies over the
limit. The finished recipe knows these parts, so their maps are calmer than their held-out scores.</p>
<div class="scale"><img src="{scale}" alt="colours of the heat map"><span>0</span><span>limit
{data.spec.limits.score:.4g}</span><span>{HEAT_FULL:g} × limit</span></div>
{"".join(_example(example, data.spec) for example in data.examples)}"""


def _example(example: Example, spec: RecipeToml) -> str:
    plain, heated = pictures(example, spec)
    wide = "wide" if plain.shape[1] > 2 * plain.shape[0] else ""
    peak = float(example.anomaly_map.max())
    return f"""<figure><figcaption>The part with the <strong>{escape(example.title)}</strong> held-out score.
Its map reaches {peak:.4g}, {peak / (spec.limits.score or 1):.0%} of the limit.</figcaption>
<div class="pair {wide}"><img src="{jpeg(plain)}" alt="the part">
<img src="{jpeg(heated)}" alt="its heat map"></div></figure>"""


def pictures(example: Example, spec: RecipeToml) -> tuple[Pixels, Pixels]:
    """The frame as BGR in a size to look at; and under heat, excess outlined, a border round the region."""
    height, width, channels = example.pixels.shape
    zoom = min(SIDE / math.sqrt(width * height), WIDEST / width, HIGHEST / height, 1.0)
    zoom = max(zoom, SIDE // 2 // max(width, height))  # a tiny frame is shown enlarged
    size = max(1, round(width * zoom)), max(1, round(height * zoom))
    frame = np.repeat(example.pixels, 3 // channels, axis=2)
    plain = cv2.resize(frame, size, interpolation=cv2.INTER_AREA if zoom < 1 else cv2.INTER_NEAREST)
    heated = plain.copy()
    x, y, roi_width, roi_height = spec.region.roi
    left, top = min(int(x * zoom), size[0] - 1), min(int(y * zoom), size[1] - 1)
    region = heated[top : math.ceil((y + roi_height) * zoom), left : math.ceil((x + roi_width) * zoom)]
    heat, over = _heat(example.anomaly_map, spec, region.shape[0], region.shape[1])
    region[:] = _blended(region, heat)
    outlines, _ = cv2.findContours(cv2.dilate(over, np.ones((5, 5))), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    for colour, thickness in (((255, 255, 255), 4), ((40, 40, 255), 2)):
        cv2.drawContours(region, outlines, -1, colour, thickness)
    cv2.rectangle(heated, (left - 1, top - 1, region.shape[1] + 2, region.shape[0] + 2), (255, 255, 255))
    return plain, heated


def _heat(anomaly_map: Floats, spec: RecipeToml, height: int, width: int) -> tuple[Floats, Pixels]:
    """Heat of 0 to 1, and 1 where over the limit, both (height, width), without padding. NaN is hot."""
    limit, (columns, rows) = spec.limits.score, np.array(spec.region.roi[2:]) / spec.tiles.cell_px
    step_x, step_y = columns / width, rows / height  # cells per pixel of the picture
    inside = anomaly_map[: math.ceil(rows), : math.ceil(columns)]
    reach = np.ones((math.ceil(step_y), math.ceil(step_x)))  # of several cells in a pixel the highest shows
    cells = cv2.dilate(np.nan_to_num(inside, nan=np.inf), reach)
    both = np.dstack((np.clip(cells / max(HEAT_FULL * limit, 1e-9), 0, 1), cells > limit)).astype(np.float32)
    to_cell = np.array([[step_x, 0, step_x / 2 - 0.5], [0, step_y, step_y / 2 - 0.5]])
    flags, border = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, cv2.BORDER_REPLICATE
    both = cv2.warpAffine(both, to_cell, (width, height), flags=flags, borderMode=border)
    return both[..., 0], (both[..., 1] >= 0.5).astype(np.uint8)


def _blended(pixels: Pixels, heat: Floats) -> Pixels:
    """Heat over BGR pixels, as in the daemon's overlays (inspectord.images)."""
    colours = cv2.applyColorMap((heat * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
    weight = np.clip(heat * 1.2, 0, 0.6)[..., None]
    return np.asarray(pixels * (1 - weight) + colours * weight, np.uint8)


def jpeg(pixels: Pixels) -> str:
    """The picture as a data URI."""
    return _data_uri("image/jpeg", bytes(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 85])[1]))


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _settings(spec: RecipeToml) -> dict[str, str]:
    frame, tiles, model, runtime = spec.frame, spec.tiles, spec.model, spec.runtime
    x, y, width, height = spec.region.roi
    return {
        "frame": f"{frame.width} × {frame.height} pixels, {frame.pixel_format}{', padded' * frame.letterbox}",
        "region": f"{width} × {height} pixels from x {x}, y {y}; {spec.region.ignored_fraction:.1%} ignored",
        "tiles": f"{tiles.rows} × {tiles.columns} (rows × columns) of {tiles.width} × {tiles.height} pixels, "
        f"overlap {tiles.overlap}, of the region scaled by {tiles.scale:.3g}. A tile is a piece of it, "
        "looked at by itself; the maps of all tiles are joined into one.",
        "resolution": f"one map cell = {tiles.cell_px:.3g} × {tiles.cell_px:.3g} pixels of the frame",
        "method": f"{model.kind}{METHODS.get(model.kind, '')}, features from {model.backbone} "
        f"({', '.join(model.layers)})",
        "parameters": ", ".join(f"{name} = {value}" for name, value in model.parameters.items()),
        "runs on": f"{runtime.device} with precision {runtime.words}, OpenVINO {runtime.openvino}",
        "content hash": spec.content_hash,
    }
