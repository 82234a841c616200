"""What was calibrated is what runs: the line gets the scores that the laboratory saw."""

from __future__ import annotations

import cv2
import pytest
from helpers_daemon import Box, events_until, verdicts
from helpers_wire import seq_is

from calibrate.evaluate import evaluate
from calibrate.fit import fit
from calibrate.options import FitOptions
from calibrate.plan import prepare
from calibrate.progress import Silent
from inspectord.sources.parts import render_part


@pytest.mark.parametrize("wishes", [{}, {"tile": 48, "overlap": 16}, {"letterbox": (80, 80)}])
def test_the_daemon_publishes_the_scores_that_evaluate_reports(tmp_path, wishes):
    """Through the camera process, the ring, and ZeroMQ; equal to 1e-4, in practice to the last bit."""
    box, data = Box(tmp_path), tmp_path / "data"
    for folder, seed, count, rate in (
        ("train/good", 1, 24, 0),
        ("test/good", 2, 4, 0),
        ("test/bad", 3, 6, 1),
    ):
        (data / folder).mkdir(parents=True)
        for number in range(count):
            pixels = render_part(seed, number, 96, 80, rate).pixels
            cv2.imwrite(str(data / folder / f"{number}.png"), pixels)
    wanted = FitOptions("flange", box.recipes, (data,), threads=2, activate=True, **wishes)
    recipe = fit(prepare(wanted, Silent()), Silent())
    expected = {image.file: image for image in evaluate(recipe, data, Silent(), threads=1).images}
    letterboxed = recipe.spec.frame.letterbox
    # Again and again, so that the daemon is still there when the client has come.
    source = {"kind": "folder", "path": str(data / "test"), "letterbox": letterboxed, "loop": True}
    box.add_camera(source, product="flange", deadline_ms=5000)
    box.start()
    try:
        with box.connect(from_start=True) as client:
            found = verdicts(events_until(client, seq_is(len(expected))))
    finally:
        box.kill()
    assert {message.part_id for message in found} == set(expected)
    for message in found:
        assert message.score == pytest.approx(expected[message.part_id].score, rel=1e-4)
        assert message.verdict == expected[message.part_id].verdict
