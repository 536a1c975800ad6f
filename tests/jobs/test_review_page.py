"""The page of labels at work in a browser: keys, filters, the choice and its lists."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from helpers import browser
from helpers.commands import label
from helpers.pictures import picture, records, things
from selfment.jobs.report import report_labels
from selfment.training.choice import read_names

pytestmark = browser.needs_browser

NAMES = ["a1.jpg", "a2.jpg", "a10.jpg", "sub/<i>\"ü'&.jpg", "sub/z \u2028 y.jpg"]
STATUS = "document.getElementById('status').textContent"
CARDS = "#cards .name"
BADGES = (
    "Object.fromEntries([...document.querySelectorAll('.card[data-verdict]')]"
    ".map(card => [card.querySelector('.name').textContent, card.dataset.verdict]))"
)


@pytest.fixture
def out(capsys, tmp_path):
    """Labels with Fiedler vectors of five images, one broken image, one without foreground."""
    photos = things(tmp_path / "photos", *NAMES)
    Image.new("RGB", (40, 30), (80, 90, 100)).save(photos / "flat.png")
    (photos / "broken.jpg").write_text("no image")
    label(capsys, photos, tmp_path / "out", "--report", tmp_path / "out/report.html",
          "--size", 192, "--min-confidence", 0.001)  # fmt: skip
    return tmp_path / "out"


@pytest.fixture
def page(out):
    """The page of these labels in the browser."""
    with browser.opened() as opened:
        opened.resize(1200, 900)
        opened.open(out / "report.html")
        yield opened
        assert opened.complaints() == []
        assert set(opened.requested()) == {"data", (out / "report.html").as_uri()}


def test_keys_choose_and_the_choice_survives_a_reload(page):
    assert page.texts(CARDS) == [*NAMES[:3], "broken.jpg", "flat.png", *NAMES[3:]]
    page.press("a", "r", "a")
    first = {"a1.jpg": "accepted", "a2.jpg": "rejected", "a10.jpg": "accepted"}
    assert page.evaluate(BADGES) == first
    assert "accepted" in page.evaluate(STATUS)
    page.press("a")  # on the image that failed
    assert page.evaluate(STATUS) == "broken.jpg has no label that can be accepted or rejected."
    page.press("a")
    assert page.evaluate(STATUS) == "flat.png: accepted, although it has no foreground."
    page.press("u")
    assert page.evaluate(STATUS) == "Undone: flat.png."
    page.press("End", "r")
    expected = first | {NAMES[4]: "rejected"}
    assert page.evaluate(BADGES) == expected
    page.reload()
    assert page.evaluate(BADGES) == expected
    assert page.texts("#states button")[:4] == ["All 7", "Undecided 2", "Accepted 2", "Rejected 2"]


def test_lists_name_the_images_as_the_records_do(page, out):
    page.click(".card:nth-child(3) button.bad")
    page.click("#accept-shown")
    assert page.evaluate(STATUS) == "5 images accepted, 1 without foreground."
    page.click("#save-accepted")
    chosen = page.saved("accepted.txt").decode()
    assert chosen.endswith("\n")
    assert chosen.split("\n")[:-1] == ["a1.jpg", "a2.jpg", "flat.png", *NAMES[3:]]
    assert read_names(page.folder / "accepted.txt") == chosen.split("\n")[:-1]
    assert {record["image"] for record in records(out).values()}.issuperset(chosen.split("\n")[:-1])
    page.click("#save-rejected")
    assert page.saved("rejected.txt") == b"a10.jpg\n"
    page.press("u")
    assert page.evaluate(BADGES) == {"a10.jpg": "rejected"}


def test_a_label_that_has_changed_is_undecided_again(page, out):
    page.press("a", "a")
    Image.fromarray(np.full((90, 120), 255, np.uint8)).save(out / "a1.png")
    report_labels(out, progress=False)
    page.reload()
    assert page.evaluate(BADGES) == {"a2.jpg": "accepted"}
    assert page.evaluate(STATUS) == "1 verdicts were on labels that have changed: undecided again."


def test_a_browser_that_keeps_nothing_says_so(page):
    full = "throw new DOMException('', 'QuotaExceededError')"
    page.evaluate(f"Storage.prototype.setItem = () => {{ {full} }}")
    page.press("a")
    assert page.evaluate(STATUS) == (
        "a1.jpg: accepted. This browser does not keep the choice (QuotaExceededError): save the "
        "lists before you leave."
    )


def test_another_folder_has_a_choice_of_its_own(out, tmp_path):
    shutil.copytree(out, tmp_path / "other")  # the same images and the same labels
    report_labels(tmp_path / "other", tmp_path / "other.html", progress=False)
    with browser.opened() as opened:
        opened.open(out / "report.html")
        opened.press("a")
        assert opened.evaluate(BADGES) == {"a1.jpg": "accepted"}
        opened.open(tmp_path / "other.html")
        assert opened.evaluate(BADGES) == {}


def test_sort_and_filter(page, out):
    rows = records(out)
    confidence = {name: rows[name.rpartition("/")[2]]["confidence"] for name in NAMES}
    page.enter("#sort", "confidence")
    falling = sorted([*NAMES], key=confidence.get)
    assert page.texts(CARDS) == ["flat.png", *falling, "broken.jpg"]
    page.click("#direction")
    assert page.texts(CARDS) == [*falling[::-1], "flat.png", "broken.jpg"]
    limit = (confidence[falling[1]] + confidence[falling[2]]) / 2
    page.enter("#least-confidence", limit)
    assert page.texts(CARDS) == falling[:1:-1]
    page.enter("#least-confidence", "")
    page.enter("#most-confidence", limit)
    assert page.texts(CARDS) == [*falling[1::-1], "flat.png"]
    page.click("#clear-filters")
    page.enter("#most-foreground", 0)
    assert page.texts(CARDS) == ["flat.png"]
    page.click("#clear-filters")
    page.enter("#least-area", 1)
    assert sorted(page.texts(CARDS)) == sorted(NAMES)
    page.enter("#search", "SUB/")
    assert sorted(page.texts(CARDS)) == sorted(NAMES[3:])
    page.click("#clear-filters")
    buttons = page.texts("#states button")
    assert buttons[4:] == ["Low confidence 1", "Failed 1"]
    page.click("#states button:nth-child(8)")
    assert page.texts(CARDS) == ["broken.jpg"]
    page.click("#states button:nth-child(5)")
    assert page.texts(CARDS) == ["flat.png"]


def test_layers(page):
    shown = "getComputedStyle(document.querySelector('.card .vector')).opacity"
    fill = "getComputedStyle(document.querySelector('.card path')).fill"
    stroke = "getComputedStyle(document.querySelector('.card path')).stroke"
    # The change of the opacity takes a moment.
    page.evaluate("document.head.append(element('style', {}, '* {transition: none !important}'))")
    assert page.evaluate(shown) == "0"
    page.press("m")
    assert (page.evaluate(shown), page.evaluate(fill)) == ("1", "none")
    page.press("m", "v")
    assert page.evaluate(shown) == "1"
    page.press("v")
    assert page.evaluate(fill) != "none"
    page.press("f", "o")
    assert (page.evaluate(fill), page.evaluate(stroke)) == ("none", "none")


def test_arrows_move_by_rows_and_columns(page):
    focused = "document.activeElement.querySelector?.('.name')?.textContent"
    page.resize(500, 900)  # two columns
    page.press("ArrowRight", "ArrowDown")
    assert page.evaluate(focused) == "broken.jpg"
    page.press("ArrowLeft", "ArrowUp", "ArrowUp")
    assert page.evaluate(focused) == "a1.jpg"
    page.press("a", "n")
    assert page.evaluate(focused) == "a10.jpg"
    page.press("End", "ArrowRight", "ArrowDown", "a")
    assert page.evaluate(focused) == NAMES[4]
    page.press("?")
    assert page.evaluate("document.getElementById('help').open")
    page.press("r", "Escape")
    assert page.evaluate(BADGES) == {"a1.jpg": "accepted", NAMES[4]: "accepted"}


@pytest.mark.slow
def test_a_thousand_images_are_small_and_smooth(capsys, tmp_path):
    """A page of 1,000 photographs stays under 15 MB and has few pictures at a time."""
    for index in range(1000):
        file = picture(tmp_path / f"photos/{index:04}.jpg", index, (360, 240), quality=80)
        assert file.stat().st_size > 10_000  # noise, which takes more than a photograph
    label(capsys, tmp_path / "photos", tmp_path / "out", "--report", tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size < 15_000_000
    with browser.opened() as opened:
        opened.resize(1200, 900)
        opened.open(tmp_path / "page.html")
        assert len(opened.texts("#cards .name")) == 1000
        pictures_made = "document.querySelectorAll('#cards image').length"
        assert 0 < opened.evaluate(pictures_made) < 200
        opened.press("End", "a")
        assert opened.evaluate(BADGES) == {"0999.jpg": "accepted"}
        assert 0 < opened.evaluate(pictures_made) < 200
