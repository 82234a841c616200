"""The comparison as one page that needs nothing else: what to take and why, the figures, and the maps."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path

import cv2
import numpy as np

from calibrate import report
from calibrate.compare_result import Comparison, Example, found_of, share
from calibrate.compare_tasks import Measured, Seen
from calibrate.compare_words import Advice
from calibrate.synthetic import KINDS
from inspectord.frame import Pixels

CSS = """
main { max-width: 1040px }
.wide-table { overflow-x: auto; font-size: .9rem }
.wide-table th { white-space: normal; overflow-wrap: normal; vertical-align: bottom }
.wide-table th, .wide-table td { padding-right: 14px } .chosen { background: #e8f4ea }
th:first-child, td:first-child { text-align: left }
td.why { text-align: left; white-space: normal; min-width: 24em }
.maps { display: grid; gap: 8px; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)) }
.maps figure { margin: 0 } .maps img { width: 100% } .over { color: #b32017; font-weight: bold }"""
MARK = (60, 200, 0)  # BGR, of the box around a made-up defect


def write_page(path: Path, comparison: Comparison, advice: Advice) -> None:
    """Write the page: no scripts, nothing loaded from elsewhere. Raises OSError if it can't be written."""
    path.write_text(_page(comparison, advice), encoding="utf-8", errors="backslashreplace")


def _page(comparison: Comparison, advice: Advice) -> str:
    sections = {
        "The figures": _table(comparison, advice),
        "What each kind finds": _families(comparison),
        "What each kind sees": _maps(comparison),
        "What the columns say": report.definitions(_meanings(comparison)),
        "How it was measured": report.definitions(_measured(comparison)),
    }
    changes = "".join(f"<li>{escape(text)}</li>" for text in advice.changes)
    # The policy makes the browser refuse what such a page must not do.
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Model kinds compared</title>
<meta http-equiv="Content-Security-Policy"
content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{report.CSS}{CSS}</style></head>
<body><main><h1>Model kinds compared</h1><p class="headline">{escape(advice.why)}</p>
<p>{escape(advice.evidence)}</p>{f"<h2>What would change this</h2><ul>{changes}</ul>" if changes else ""}
{"".join(f"<h2>{title}</h2>{content}" for title, content in sections.items())}</main></body></html>"""


def _table(comparison: Comparison, advice: Advice) -> str:
    columns = comparison.columns()
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    rows = []
    for row in comparison.rows:
        cells = [f"<td>{escape(text)}</td>" for text in comparison.cells(row)]
        if row.measured is None:
            cells.append(f'<td class="why" colspan="{len(columns) - 1}">failed: {escape(row.why)}</td>')
        rows.append(f"<tr{' class=chosen' * (row.kind == advice.kind)}>{''.join(cells)}</tr>")
    return f'<div class="wide-table"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _families(comparison: Comparison) -> str:
    """Found of each family of made-up defects, clear and faint."""
    able = comparison.able()
    head = "".join(f"<th>{escape(kind)}</th>" for kind in able)
    rows = []
    for family in KINDS:
        cells = "".join(f"<td>{_of_family(measured, family)}</td>" for measured in able.values())
        rows.append(f"<tr><td>{family}</td>{cells}</tr>")
    return f"""<p>Made-up defects over the limit, clear and faint ones.</p>
<div class="wide-table"><table><tr><th>family</th>{head}</tr>{"".join(rows)}</table></div>"""


def _of_family(measured: Measured, family: str) -> str:
    kinds = (f"{strength}-{family}" for strength in ("clear", "faint"))
    images = ([image for image in measured.samples.images if image.kind == kind] for kind in kinds)
    return ", ".join(share(found_of(some)) for some in images)


def _maps(comparison: Comparison) -> str:
    able = comparison.able()
    if not able:
        return "<p>No kind could be measured.</p>"
    figures = [
        f"<h3>{escape(example.title)}</h3><div class='maps'>{_example(example, number, able)}</div>"
        for number, example in enumerate(comparison.examples)
    ]
    return f"""<p>The same frames for every kind; heat as in the daemon's pictures, a red line around
what lies over the limit. Green: where a made-up defect was drawn.</p>{"".join(figures)}"""


def _example(example: Example, number: int, able: dict[str, Measured]) -> str:
    parts = []
    for kind, measured in able.items():
        seen = measured.seen[number]
        if seen.anomaly_map is None:
            parts.append(f"<figure><figcaption>{escape(kind)}: {escape(seen.why)}</figcaption></figure>")
            continue
        shown = report.Example(example.title, example.pixels, seen.anomaly_map)
        plain, heated = report.pictures(shown, measured.spec)
        if not parts:
            parts.append(_figure("the frame", "", _marked(plain, example)))
        parts.append(_figure(kind, f": {_of_limit(seen, measured)}", heated))
    return "".join(parts)


def _figure(name: str, said: str, picture: Pixels) -> str:
    """said is HTML."""
    image = f'<img src="{report.jpeg(picture)}" alt="{escape(name)}">'
    return f"<figure>{image}<figcaption>{escape(name)}{said}</figcaption></figure>"


def _of_limit(seen: Seen, measured: Measured) -> str:
    limit = measured.spec.limits.score
    text = f"{seen.score / (limit or 1):.0%} of its limit" if math.isfinite(seen.score) else "no score"
    return text if seen.score <= limit else f'<span class="over">{text}</span>'


def _marked(plain: Pixels, example: Example) -> Pixels:
    """The picture with a box around what was drawn."""
    if example.mask is None:
        return plain
    zoom = plain.shape[1] / example.mask.shape[1]
    x, y, width, height = (round(side * zoom) for side in cv2.boundingRect(example.mask.astype(np.uint8)))
    marked = plain.copy()
    cv2.rectangle(marked, (x - 5, y - 5), (x + width + 5, y + height + 5), MARK, 2)
    return marked


def _meanings(comparison: Comparison) -> dict[str, str]:
    given = {
        "given": "on the defective frames that were given: AUROC, the probability that a defective one "
        "scores above a good one; AUPRO, how well the map covers the defects' masks (up to 30 % of good "
        "pixels; - without masks); and how many pass at the limit. For information: they had no say.",
    }
    return {
        "ms p50 / p99": "milliseconds in which half, and 99 of 100 frames are done, as the daemon does them; "
        "in the quietest of three rounds",
        "memory": "the most that loading the recipe and scoring took, in a process of its own",
        "clear, faint found": "made-up defects on held-out good frames that are rejected at the limit, which "
        f"good frames alone have set; faint ones have 35 % of the contrast ({', '.join(KINDS)})",
        "AUROC": "the probability that a frame with a made-up defect scores above a held-out good one: 1 is "
        "perfect, 0.5 is guessing; whatever the limit",
        "good rejected": "held-out good frames that are rejected or could not be inspected",
        **(given if comparison.defective else {}),
    }


def _measured(comparison: Comparison) -> dict[str, str]:
    texts = {
        "good frames": f"{', '.join(comparison.folders)}: {comparison.taught} taught, "
        f"{len(comparison.held_out)} held out (seed {comparison.seed})",
        "threads": str(comparison.threads),
        "defective": comparison.defective or "none given",
    }
    if comparison.deadline_ms is not None:
        texts["deadline"] = f"{comparison.deadline_ms:g} ms"
    for kind, measured in comparison.able().items():
        runtime, model = measured.spec.runtime, measured.spec.model
        failed = f"; the given frames: {measured.given_failed}" if measured.given_failed else ""
        texts[kind] = (
            f"{model.backbone} ({', '.join(model.layers)}), {runtime.words} on {runtime.device}, "
            f"{measured.timed.frames} frames timed{failed}"
        )
    return texts
