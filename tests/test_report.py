"""The report: one page that needs nothing else, the same for the same data, and seen in a real browser."""

import base64
import os
import pickle
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers_recipe import write_recipe

from calibrate.limits import find_limit
from calibrate.report import Example, ReportData, write_report
from inspectord.recipe import load_recipe

ROOT = Path(__file__).parent.parent
CELL = 8.0
JPEG_NOISE = 12
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
]


def chi_scores(n):
    return np.sqrt(np.random.default_rng(0).chisquare(20, n))


def calm_map(limit, rows, columns):
    return np.full((rows, columns), 0.3 * limit, np.float32)


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    return load_recipe(write_recipe(tmp_path_factory.mktemp("recipes"))).spec


@pytest.fixture
def make_data(spec):
    """Data for a page; the parts are even grey, or noise where noisy."""

    def make(shape=(64, 64, 1), roi=None, scores=None, rate=0.01, name="part_{}.png", noisy=False, marks=()):
        height, width, channels = shape
        roi = roi or (0, 0, width, height)
        scores = chi_scores(40) if scores is None else scores
        limit = find_limit(scores, rate)
        rng = np.random.default_rng(1)
        pixels = rng.integers(0, 256, shape, np.uint8) if noisy else np.full(shape, 128, np.uint8)
        cells = calm_map(limit.score, -int(-roi[3] // CELL) + 2, -int(-roi[2] // CELL) + 1)  # with padding
        for place, of_limit in marks:
            cells[place] = of_limit * limit.score
        mono = {"pixel_format": "Mono8" if channels == 1 else "BGR8"}
        changed = {
            "frame": spec.frame.model_copy(update={"width": width, "height": height, **mono}),
            "region": spec.region.model_copy(update={"roi": roi}),
            "limits": spec.limits.model_copy(update={"score": limit.score}),
        }
        return ReportData(
            product="demo",
            version="0007",
            spec=spec.model_copy(update=changed),
            limit=limit,
            held_out=scores,
            names=["/good/" + name.format(number) for number in range(len(scores))],
            examples=[Example(title, pixels, cells) for title in ("lowest", "median", "highest")],
            warnings=list(limit.warnings),
            provenance={"host": "box1"},
        )

    return make


class Tags(HTMLParser):
    """All tags and attributes, and whether every opened tag is closed."""

    def __init__(self, page):
        super().__init__()
        self.seen, self.open, self.text = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def pictures(self):
        return [attributes["src"] for tag, attributes in self.seen if tag == "img"]


def written(tmp_path, data):
    path = tmp_path / "report.html"
    write_report(path, data)
    return path


def page_of(tmp_path, data):
    return written(tmp_path, data).read_text(encoding="utf-8")


def decoded(uri):
    data = base64.b64decode(uri.partition(",")[2])
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


def heat_pictures(page):
    """The three pictures under their heat maps; before them come the chart, the scale and each plain one."""
    return [decoded(uri) for uri in Tags(page).pictures()[3::2]]


def bar_heights(page, colour):
    """Heights in points of the chart's bars in one colour; the transparent ground over the limit is none."""
    bars = re.findall(r'<path d="([^"]*)"[^>]*style="fill: (#\w+); stroke: #ffffff', chart_of(page))
    ys = [[float(y) for y in re.findall(r"[ML] \S+ (\S+)", path)] for path, fill in bars if fill == colour]
    return [max(each) - min(each) for each in ys]


def chart_of(page):
    return base64.b64decode(Tags(page).pictures()[0].partition(",")[2]).decode()


def reddish(picture):
    """Pixels (y, x) of the line around what lies over the limit."""
    blue, green, red = (picture[..., channel].astype(int) for channel in range(3))
    return np.argwhere((red > 170) & (red - green > 60) & (red - blue > 60))


def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing(tmp_path, make_data):
    page = page_of(tmp_path, make_data())
    tags = Tags(page)
    assert not tags.open
    assert "http:" not in page
    assert "https:" not in page
    assert {tag for tag, _ in tags.seen}.isdisjoint({"script", "link", "iframe", "object", "base", "a"})
    assert all(uri.startswith("data:image/") for uri in tags.pictures())
    assert len(tags.pictures()) == 2 + 2 * 3
    assert "default-src 'none'" in page
    assert not re.search(r"url\(|@import|\son\w+=", page)


def test_the_same_data_give_the_same_bytes_in_another_process(tmp_path, make_data):
    here = written(tmp_path, make_data()).read_bytes()
    assert written(tmp_path, make_data()).read_bytes() == here
    code = (
        "import pickle, sys; from pathlib import Path; from calibrate.report import write_report;"
        "write_report(Path(sys.argv[1]), pickle.load(sys.stdin.buffer))"
    )
    there = tmp_path / "there.html"
    environment = {**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"}
    command = [sys.executable, "-c", code, str(there)]
    subprocess.run(
        command, input=pickle.dumps(make_data()), cwd=ROOT, env=environment, check=True, timeout=60
    )
    assert there.read_bytes() == here


def test_it_leaves_the_settings_of_matplotlib_alone(tmp_path, make_data):
    import matplotlib

    before = dict(matplotlib.rcParams)
    written(tmp_path, make_data())
    assert dict(matplotlib.rcParams) == before


def test_matplotlib_is_loaded_only_to_draw():
    code = "import sys, calibrate.report; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.strip() == "False", done.stderr


def test_it_says_what_the_limit_means_and_what_to_mind(tmp_path, make_data):
    data = make_data()
    text = Tags(page_of(tmp_path, data)).text
    assert data.limit.headline() in text
    assert data.limit.sample_sizes() in text
    assert f"limit\n{data.limit.score:.4g}" in text
    assert data.limit.method in text
    assert data.warnings
    assert all(warning in text for warning in data.warnings)
    assert "one map cell = 8 × 8 pixels of the frame" in text
    assert "box1" in text


def test_without_warnings_there_is_no_box(tmp_path, make_data):
    page = page_of(tmp_path, make_data(scores=chi_scores(2000)))
    assert '<div class="warnings">' not in page
    assert "No warnings." in page


def test_the_ten_highest_parts_are_listed_from_the_top(tmp_path, make_data):
    data = make_data()
    order = np.argsort(-data.held_out)
    listed = re.findall(r"part_(\d+)\.png", page_of(tmp_path, data))
    assert listed == [str(number) for number in order[:10]]


def test_a_part_over_the_limit_is_marked_in_words(tmp_path, make_data):
    data = make_data(scores=chi_scores(3000))
    assert data.limit.above >= 10
    page = page_of(tmp_path, data)
    assert page.count("(over the limit)") == 10
    assert f"Over the limit: {data.limit.above:,}." in page


def test_a_score_at_the_limit_is_neither_listed_nor_drawn_as_over_it(tmp_path, make_data):
    data = make_data(scores=np.full(50, 3.25))
    assert data.limit.score == 3.25
    page = page_of(tmp_path, data)
    assert "(over the limit)" not in page
    assert max(bar_heights(page, "#1f77b4")) > 100
    assert max(bar_heights(page, "#d62728")) < 0.1


def test_names_are_text_and_never_markup(tmp_path, make_data):
    data = make_data(name='<script>alert("{}")</script>&<b>.png')
    page = page_of(tmp_path, data)
    assert "<script" not in page
    assert "script>&<b>.png" in Tags(page).text


def test_a_name_that_is_not_utf_8_does_not_stop_the_page(tmp_path, make_data):
    name = os.fsdecode(b"gr\xfcn_{}.png")
    assert r"gr\udcfcn_" in page_of(tmp_path, make_data(name=name))


def test_a_name_missing_for_a_score_is_an_error(tmp_path, make_data):
    data = make_data()
    data.names.pop()
    with pytest.raises(ValueError, match="zip"):
        written(tmp_path, data)


@pytest.mark.parametrize(
    "shape", [(64, 64, 1), (256, 4096, 3), (4096, 256, 1), (480, 480, 3), (1, 1, 1)], ids=str
)
def test_every_frame_shape_gives_a_small_page(tmp_path, make_data, shape):
    page = page_of(tmp_path, make_data(shape, noisy=True))
    assert len(page) < 1.05e6
    for picture in heat_pictures(page):
        height, width = picture.shape[:2]
        assert width <= 960
        assert height <= 640
        assert width * height <= 1.01 * 400 * 400


@pytest.mark.parametrize(
    "scores",
    [
        chi_scores(10),
        chi_scores(100_000),
        np.full(50, 3.25),
        np.zeros(50),
        np.append(chi_scores(3000), [1e6] * 40),
        1e-7 * chi_scores(50),
        5 + 1e-9 * chi_scores(50),
    ],
    ids=["10", "100,000", "all equal", "all zero", "far out", "tiny", "nearly equal"],
)
def test_all_scores_draw(tmp_path, make_data, scores):
    page = page_of(tmp_path, make_data(scores=scores))
    assert f"Histogram of {len(scores):,} scores" in page
    assert "nan" not in Tags(page).text
    assert chart_of(page).count("<path") < 500


def test_heat_has_one_scale_and_leaves_out_the_padding(tmp_path, make_data):
    """Hot cells beyond the region, or elsewhere in it, change no colour here."""
    padding = [((slice(-2, None), slice(None)), 9.0), ((slice(None), -1), 9.0)]
    calm = heat_pictures(page_of(tmp_path, make_data((480, 480, 1))))[0]
    padded = heat_pictures(page_of(tmp_path, make_data((480, 480, 1), marks=padding)))[0]
    assert len(reddish(calm)) == 0
    assert np.abs(padded.astype(int) - calm).max() <= JPEG_NOISE
    hot = heat_pictures(page_of(tmp_path, make_data((480, 480, 1), marks=[((30, 15), 1.9)])))[0]
    assert np.abs(hot[:150].astype(int) - calm[:150]).max() <= JPEG_NOISE


@pytest.mark.parametrize(
    ("shape", "roi"),
    [
        ((480, 480, 1), (0, 0, 480, 480)),
        ((512, 2048, 3), (1000, 100, 640, 333)),
        ((64, 64, 1), (7, 9, 50, 50)),
    ],
    ids=str,
)
def test_one_cell_over_the_limit_is_outlined_where_it_lies(tmp_path, make_data, shape, roi):
    row, column = 3, 4
    picture = heat_pictures(page_of(tmp_path, make_data(shape, roi, marks=[((row, column), 1.05)])))[0]
    zoom = picture.shape[1] / shape[1]
    found = reddish(picture).mean(axis=0) / zoom
    expected = roi[1] + (row + 0.5) * CELL, roi[0] + (column + 0.5) * CELL
    assert np.abs(found - expected).max() < CELL / 2 + 1 / zoom


def test_an_outline_survives_cells_smaller_than_a_pixel(tmp_path, make_data):
    shape = (2000, 8000, 1)
    picture = heat_pictures(page_of(tmp_path, make_data(shape, marks=[((101, 333), 1.05)])))[0]
    assert len(reddish(picture)) > 0


@pytest.fixture(scope="module")
def chromium():
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    if os.environ.get("CI") == "true":
        pytest.fail("no chromium here; CI must install it, for the report has to be seen in a browser")
    pytest.skip("no chromium here; `apt-get install chromium` to see the report in a browser")


def browse(chromium, tmp_path, page, *flags):
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [chromium, *FLAGS, profile, *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.fixture
def telling_page(tmp_path, make_data):
    """A page with names as long as they get, and a warning."""
    return written(tmp_path, make_data((256, 4096, 3), name="a_very_long_name_" * 12 + "{}<script>.png"))


def test_a_browser_reads_the_whole_page(chromium, tmp_path, make_data, telling_page):
    page = browse(chromium, tmp_path, telling_page, "--dump-dom")
    text = Tags(page).text
    assert make_data().limit.headline() in text
    assert "Where it comes from" in text
    assert "<script" not in page


@pytest.mark.parametrize("width", [1000, 400])
def test_a_browser_shows_the_chart_the_warnings_and_the_pictures(chromium, tmp_path, telling_page, width):
    shot = tmp_path / "shot.png"
    browse(chromium, tmp_path, telling_page, f"--screenshot={shot}", f"--window-size={width},3600")
    picture = cv2.imread(str(shot))
    assert picture.shape[1] == width
    for bgr in ((0xE0, 0xF4, 0xFF), (0xB4, 0x77, 0x1F), (0x28, 0x27, 0xD6)):  # warnings, bars, limit
        assert np.count_nonzero((np.abs(picture.astype(int) - bgr) <= 2).all(axis=2)) > 50


def test_nothing_sticks_out_of_a_narrow_screen(chromium, tmp_path, telling_page):
    """The page forbids scripts, so a copy without its policy measures itself in a box of 400 px.

    A box, since a headless window that takes no screenshot is never narrower than 500 px.
    """
    page = re.sub(r"<meta http-equiv=[^>]*>", "", telling_page.read_text())
    page = page.replace("<main>", '<div id="box" style="width: 400px; overflow: auto"><main>')
    measure = '<script>document.title = document.getElementById("box").scrollWidth</script>'
    copy = tmp_path / "copy.html"
    copy.write_text(page.replace("</main>", "</main></div>" + measure))
    seen = browse(chromium, tmp_path, copy, "--dump-dom")
    assert re.search(r"<title>(\d+)</title>", seen).group(1) == "400"
