"""What a comparison says: words that follow from the figures, and a page that tells the same."""

from __future__ import annotations

import re
from dataclasses import replace

import cv2
import numpy as np
import pytest
from helpers_recipe import write_recipe
from test_report import Tags, browse, chromium  # noqa: F401

from calibrate.compare_page import write_page
from calibrate.compare_result import Compared, Comparison, Example, struck_figures
from calibrate.compare_tasks import Measured, Seen, Timed
from calibrate.compare_words import advise
from calibrate.evaluation import GOOD, Evaluation, ImageScore, KindResult, Rate
from calibrate.synthetic import KINDS
from inspectord.recipe import blind_words, load_recipe

BLIND = blind_words(True, (), (1, 1))

# --- the words ---


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    return load_recipe(write_recipe(tmp_path_factory.mktemp("recipes"))).spec


@pytest.fixture
def row(spec):
    """A kind that finds the first so many, or those, of 60 clear and 60 faint; rejects of 20 good frames."""

    def make(kind, clear=60, faint=30, ms=10.0, rejects=0, blind="", given=None, given_failed=""):
        images = [score(GOOD, number, number < rejects) for number in range(20)]
        for strength, found in (("clear", clear), ("faint", faint)):
            places = range(found) if isinstance(found, int) else found
            for number in range(60):
                images.append(score(f"{strength}-{KINDS[number // 10]}", number, number in places))
        samples = evaluation(tuple(images))
        return Compared(
            kind,
            fit_s=5.0,
            measured=Measured(
                spec=spec,
                blindness=blind,
                timed=Timed(p50_ms=ms, p99_ms=1.5 * ms, frames=100, memory_mb=150.0),
                recipe_mb=3.0,
                samples=samples,
                given=given and replace(evaluation(()), image_auroc=given),
                given_failed=given_failed,
                seen=(Seen(0.5, np.full((8, 8), 0.5, np.float32)),),
            ),
            why="",
        )

    return make


def score(kind, number, rejected):
    return ImageScore(f"{kind}/{number:03d}.png", kind, float(rejected), "REJECT" if rejected else "PASS")


def evaluation(images):
    good = [image for image in images if image.kind == GOOD]
    kinds = sorted({image.kind for image in images} - {GOOD})
    escapes = {kind: [image.verdict == "PASS" for image in images if image.kind == kind] for kind in kinds}
    return Evaluation(
        recipe="r/1",
        recipe_hash="",
        limit=0.3,
        image_auroc=None,
        false_rejects=Rate.of(sum(image.verdict != "PASS" for image in good), len(good)),
        escapes=Rate.of(0, 0),
        kinds=tuple(
            KindResult(kind, None, Rate.of(sum(found), len(found))) for kind, found in escapes.items()
        ),
        pixels=None,
        images=images,
    )


def comparison(*rows, defective="", deadline_ms=None):
    return Comparison(
        folders=("good",),
        taught=60,
        held_out=("x",) * 20,
        seed=0,
        threads=1,
        strikes=60,
        defective=defective,
        deadline_ms=deadline_ms,
        rows=rows,
        examples=(Example("good, held out", np.full((64, 64, 1), 128, np.uint8), None),),
    )


def test_the_kind_that_surely_finds_more_is_taken_and_the_faster_one_named(row):
    advice = advise(comparison(row("quick", clear=40, faint=5, ms=2), row("keen", clear=60, faint=40, ms=20)))
    assert advice.kind == "keen"
    assert "surely more than quick" in advice.why
    assert any("If 30.0 ms a frame is too long: quick finds 40/60 clear" in text for text in advice.changes)


def test_of_kinds_that_find_the_same_but_for_chance_the_faster_is_taken(row):
    advice = advise(comparison(row("keen", faint=32, ms=20), row("quick", faint=30, ms=2)))
    assert advice.kind == "quick"
    assert "keen finds 60/60 clear and 32/60 faint" in advice.why
    assert "not surely more, and quick is 10.0 times as fast" in advice.why


def test_a_hardly_slower_kind_that_finds_a_little_more_is_not_passed_over(row):
    advice = advise(comparison(row("quick", faint=30, ms=10), row("keen", faint=33, ms=11)))
    assert advice.kind == "keen"
    assert "not surely more than quick, but no slower to speak of" in advice.why


def test_what_a_slower_kind_costs_that_finds_no_more_is_said(row):
    advice = advise(comparison(row("quick", faint=30, ms=10), row("slow", faint=30, ms=21)))
    assert advice.kind == "quick"
    assert "not surely more than slow, which takes 2.1 times as long" in advice.why
    assert "no slower" not in advice.why


def test_defective_frames_are_told_and_decide_nothing(row):
    for one, other in ((None, None), (0.99, 0.5), (0.5, 0.99)):
        rows = row("keen", faint=50, given=one), row("dull", faint=10, given=other)
        advice = advise(comparison(*rows, defective="bad" if one else ""))
        assert advice.kind == "keen"
        said = " ".join(advice.changes)
        assert ("They say the same: keen" in said) == (one == 0.99)
        assert ("There dull stands highest, not keen." in said) == (one == 0.5)


def test_what_the_kind_that_is_taken_lets_pass_is_named(row):
    chosen = row("keen", given=0.7)
    hole = KindResult("missing_hole", 0.2, Rate.of(3, 3))
    given = replace(chosen.measured.given, kinds=(hole,))
    chosen = replace(chosen, measured=replace(chosen.measured, given=given))
    said = advise(comparison(chosen, defective="bad")).changes
    assert any(text.startswith("missing_hole: 3 of 3 escape") for text in said)


def test_a_kind_that_is_ruled_out_is_not_brought_back_by_defective_frames(row):
    rows = row("keen", given=0.5), row("blind", blind=BLIND, given=0.99)
    advice = advise(comparison(*rows, defective="bad"))
    said = " ".join(advice.changes)
    assert advice.kind == "keen"
    assert "AUROC on them: keen 0.500." in said
    assert "stands highest" not in said


def test_why_a_kind_has_no_figures_on_the_defective_frames_is_told(row):
    rows = row("keen", given=0.5), row("dull", given_failed="mask.png is no image")
    for some in (rows, rows[1:]):
        said = advise(comparison(*some, defective="bad")).changes
        assert "dull could not be measured on the defective frames: mask.png is no image." in said


def test_a_kind_that_another_surely_beats_is_not_taken_however_fast(row):
    quick = row("quick", faint=range(30), ms=2)
    keen, sure = row("keen", faint=range(10, 50), ms=20), row("sure", faint=range(38), ms=10)
    assert advise(comparison(quick, keen)).kind == "quick"  # 20 places more and 10 fewer may be chance
    assert advise(comparison(quick, keen, sure)).kind == "sure"
    near = row("sure", faint=range(38), ms=20)
    assert "not surely more than quick, which another kind beats" in advise(comparison(quick, keen, near)).why


def test_a_kind_that_finds_fewer_never_beats_one_that_finds_more(row):
    more = row("more", clear=60, faint=16)
    fewer = row("fewer", clear=range(16, 60), faint=range(16, 47))  # one more at 31 places, two fewer at 16
    assert advise(comparison(more, fewer)).kind == "more"
    assert advise(comparison(fewer, more)).kind == "more"


def test_a_deadline_false_rejects_or_blindness_rule_a_kind_out_and_say_so(row):
    best = {"clear": 60, "faint": 60}
    rows = (
        row("slow", **best, ms=40),
        row("harsh", **best, rejects=10),
        row("blind", **best, blind=BLIND),
        row("half", **best, blind=blind_words(False, (2,), (2, 3))),
        row("poor", clear=29, faint=2),
        row("plain", clear=30, faint=2),
    )
    advice = advise(comparison(*rows, row("fair", clear=31, faint=3), deadline_ms=50))
    assert advice.kind == "fair"
    said = " ".join(advice.changes)
    assert "slow is left out: one frame in a hundred takes 60.0 ms, over 50 ms" in said
    assert "harsh is left out: it rejected 10/20 held-out good frames" in said
    assert f"blind is left out: {BLIND}." in said
    half = "half is left out: a good frame with a large square painted over passes in 1 of 6 tiles (row/col"
    assert half in said
    assert "poor is left out: it finds 29/60 clear made-up defects, too few to rely on: 30 are needed" in said


def test_where_a_single_kind_is_left_the_reason_says_why_the_others_are_out(row):
    rows = row("blind", blind=BLIND), row("plain"), Compared("gone", 1.0, None, "torch is missing")
    advice = advise(comparison(*rows))
    assert "No other kind can be recommended. blind is left out: a good frame with" in advice.why
    assert "gone could not be compared (torch is missing)" in advice.why
    assert not any("left out" in text or "gone" in text for text in advice.changes)
    assert "No other kind was compared." in advise(comparison(row("plain"))).why


@pytest.mark.parametrize("found", [30, 60])
def test_the_reason_says_how_much_a_kind_must_find(row, found):
    for rows in ([row("one", clear=found)], [row("one", clear=found), row("other", clear=found, ms=20)]):
        said = advise(comparison(*rows)).why
        assert f"finds {found}/60 clear" in said
        assert "A kind must find 30 of the 60 clear made-up defects to be recommended." in said


def test_where_no_kind_will_do_none_is_recommended(row):
    rows = row("blind", blind=BLIND), row("poor", clear=0, faint=0)
    advice = advise(comparison(*rows, Compared("gone", 1.0, None, "torch is missing")))
    assert advice.kind is None
    assert "No kind can be recommended" in advice.why
    assert any("gone could not be compared (torch is missing)" in text for text in advice.changes)


def test_the_words_say_on_what_they_rest(row):
    advice = advise(comparison(row("one")))
    assert "20 good frames that no kind was fitted to (of 80, seed 0)" in advice.evidence
    assert "60 made-up defects" in advice.evidence
    assert any("prove no more than at most 14 in 100" in text for text in advice.changes)


def test_a_defect_that_could_not_be_inspected_was_not_found(row, tmp_path):
    one = row("one")
    unseen = [
        replace(image, score=None, verdict="NOT_INSPECTED") if image.kind == "clear-spot" else image
        for image in one.measured.samples.images
    ]
    one = replace(one, measured=replace(one.measured, samples=evaluation(tuple(unseen))))
    assert struck_figures(one.measured)[0].found.events == 50
    write_page(tmp_path / "page.html", comparison(one), advise(comparison(one)))
    assert "<td>spot</td><td>0/10, " in (tmp_path / "page.html").read_text()


# --- the page ---


@pytest.fixture
def page(row, tmp_path):
    found = comparison(
        row("padim<b>", given=0.9),
        Compared("gone", 1.0, None, "<script>" + 30 * "torch is missing, "),
        defective="bad",
    )
    write_page(tmp_path / "page.html", found, advise(found))
    return tmp_path / "page.html"


def test_the_page_needs_nothing_from_elsewhere_and_names_are_text(page):
    text = page.read_text()
    tags = Tags(text)
    assert not tags.open
    assert {tag for tag, _ in tags.seen}.isdisjoint({"script", "link", "iframe", "object", "base", "a", "b"})
    assert all(uri.startswith("data:image/") for uri in tags.pictures())
    assert "default-src 'none'" in text
    assert "padim<b>" in tags.text
    assert "failed: <script>torch is missing" in tags.text


def test_a_browser_shows_the_row_to_take_and_nothing_sticks_out(chromium, tmp_path, page):  # noqa: F811
    shot = tmp_path / "shot.png"
    browse(chromium, tmp_path, page, f"--screenshot={shot}", "--window-size=1000,2400")
    picture = cv2.imread(str(shot)).astype(int)
    assert np.count_nonzero((np.abs(picture - (0xEA, 0xF4, 0xE8)) <= 2).all(axis=2)) > 5000
    boxed = re.sub(r"<meta http-equiv=[^>]*>", "", page.read_text())
    boxed = boxed.replace("<main>", '<div id="box" style="width: 400px; overflow: auto"><main>')
    measure = '<script>document.title = document.getElementById("box").scrollWidth</script>'
    copy = tmp_path / "copy.html"
    copy.write_text(boxed.replace("</main>", "</main></div>" + measure))
    seen = browse(chromium, tmp_path, copy, "--dump-dom")
    assert re.search(r"<title>(\d+)</title>", seen).group(1) == "400"
