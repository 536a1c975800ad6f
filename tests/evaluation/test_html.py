"""The HTML page: whole, safe, small, and at work in a browser."""

from __future__ import annotations

import base64
import html
import io
import re

import numpy as np
import pytest
from PIL import Image

from helpers import browser
from helpers.commands import call
from helpers.pages import Reader, assert_loads_nothing, data_of
from helpers.scores import pair, save
from selfment.evaluation.folders import evaluate
from selfment.evaluation.html import make_page, write_html
from selfment.evaluation.report import ImageScores, Report
from selfment.evaluation.scores import PROTOCOLS, Evaluator
from selfment.images.suffixes import image_suffixes

EVIL = "<script>alert(1)</script>&\"'"


@pytest.fixture
def folders(tmp_path):
    """Five pairs and their photographs, one of an evil name."""
    names = ["a", "b", f"x{EVIL}".replace("/", ""), "d10", "d9"]
    for index, name in enumerate(names):
        saliency, truth = pair(index, (60, 90))
        save(tmp_path / f"pred/{name}.png", saliency)
        save(tmp_path / f"gt/{name}.png", truth // 255 if index == 1 else truth)
        save(tmp_path / f"images/{name}.jpg", np.full((300, 450, 3), 40 * index, np.uint8))
    return tmp_path


def page(folders, **options):
    """The scores of the folders, and the file with their page."""
    report = evaluate(folders / "pred", folders / "gt", progress=False)
    made = write_html(report, folders / "page.html", images=folders / "images", **options)
    return report, folders / "page.html", made


def ranked(report):
    return [image.name for image in sorted(report.images, key=lambda i: i.scores["F_max"])]


def galleries(file):
    """The names and scores in the galleries of the worst and of the best."""
    found = re.findall(r'data-row="\d+" aria-haspopup="dialog"><span></span>(.*?) <b>(.*?)</b>',
                       file.read_text())  # fmt: skip
    return [(html.unescape(name), score) for name, score in found]


@pytest.mark.slow
def test_page_is_whole_and_needs_no_network(folders):
    report, file, _ = page(folders)
    assert_loads_nothing(file)
    reader = Reader(file.read_text())
    cells = [data for tag, data in reader.texts if tag == "td"]
    names = [data for tag, data in reader.texts if tag == "button"]
    for image in report.images:
        assert image.name in names
        assert f"{image.scores['F_max']:.4f}" in cells
    assert names[names.index("name") :][: len(PROTOCOLS["all"]) + 1] == ["name", *PROTOCOLS["all"]]
    assert "note" in [attributes.get("class") for _, attributes in reader.seen]
    assert any("ground truth of 0 and 1" in data for tag, data in reader.texts if tag == "p")


@pytest.mark.slow
def test_names_are_escaped(folders):
    text = page(folders)[1].read_text()
    assert "<script>alert" not in text
    assert "x&lt;script&gt;alert(1)&lt;script&gt;&amp;&quot;&#x27;" in text


@pytest.mark.slow
def test_gallery_shows_worst_and_best(folders):
    report, file, made = page(folders, gallery=2)
    order = ranked(report)
    scores = {image.name: f"{image.scores['F_max']:.4f}" for image in report.images}
    expected = [order[0], order[1], order[-1], order[-2]]
    assert galleries(file) == [(name, scores[name]) for name in expected]
    assert (made.pictured, made.left_out, made.remark) == (5, 0, "")
    assert galleries(page(folders, gallery=0)[1]) == []


@pytest.mark.slow
def test_pictures_are_small_and_of_one_size(folders):
    save(folders / "gt/d9.png", np.zeros((300, 450), np.uint8))
    rows = {row["name"]: row["pictures"] for row in data_of(page(folders)[1])}
    for name, found in rows.items():
        sizes = {
            field: Image.open(io.BytesIO(base64.b64decode(found[field].partition(",")[2]))).size
            for field in ("photo", "truth", "prediction")
        }
        size = (200, 133) if name == "d9" else (90, 60)
        assert sizes == {"photo": (200, 133), "truth": size, "prediction": size}
    report = evaluate(folders / "pred", folders / "gt", progress=False)
    (folders / "gt/a.png").unlink()
    write_html(report, folders / "page.html")
    rows = {row["name"]: row["pictures"] for row in data_of(folders / "page.html")}
    assert (rows["a"]["truth"], rows["a"]["photo"]) == (None, None)
    assert re.fullmatch(r"cannot read .*/gt/a\.png: .*", rows["a"]["missing"][0])


@pytest.mark.slow
def test_what_is_left_out_is_said(capsys, folders):
    options = ("--report", folders / "page.html", "--pictures", 3)
    code, _, said = call(
        capsys, "eval", "--pred", folders / "pred", "--gt", folders / "gt", *options
    )
    assert code == 0
    remark = "the page has the pictures of 3 of 5 images, the best and the worst; --pictures 5"
    *_, before, last = said.splitlines()
    assert remark in before
    assert last == f"the page is {folders / 'page.html'}"
    assert remark in (folders / "page.html").read_text()
    report = evaluate(folders / "pred", folders / "gt", progress=False)
    order = ranked(report)
    pictured = {row["name"] for row in data_of(folders / "page.html") if row["pictures"]}
    assert pictured == {*order[-2:], order[0]}


@pytest.mark.slow
def test_a_score_of_which_less_is_better(folders):
    report = evaluate(folders / "pred", folders / "gt", metrics=["MAE"], progress=False)
    write_html(report, folders / "page.html", gallery=1)
    scores = [image.scores["MAE"] for image in report.images]
    found = [score for _, score in galleries(folders / "page.html")]
    assert found == [f"{max(scores):.4f}", f"{min(scores):.4f}"]


def test_scores_of_arrays_and_what_is_no_number(tmp_path):
    evaluator = Evaluator()
    saliency, truth = np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.uint8)
    saliency[4, 2:5] = truth[7, 2:5] = 255
    evaluator.update(saliency, truth, "low")
    made = write_html(evaluator.report(), tmp_path / "page.html")
    Reader((tmp_path / "page.html").read_text())
    assert b"<td>nan</td>" in made.content
    assert [row["pictures"] for row in data_of(tmp_path / "page.html")] == [None]
    assert (made.pictured, made.left_out) == (0, 0)


@pytest.mark.slow
def test_a_thousand_images_stay_small(tmp_path):
    report = Report(
        "all",
        dict.fromkeys(PROTOCOLS["all"], 0.5),
        [
            ImageScores(f"folder/{k:04}", dict.fromkeys(PROTOCOLS["all"], k / 1000))
            for k in range(1000)
        ],
    )
    noise = np.random.RandomState(0).randint(0, 255, (400, 500)).astype(np.uint8)
    save(tmp_path / "noise.png", noise)
    for image in report.images:
        image.prediction = image.truth = tmp_path / "noise.png"
    made = make_page(report, pictures=20)
    assert len(made.content) < 2_000_000
    assert (made.pictured, made.left_out) == (20, 980)


@pytest.mark.slow
def test_errors(folders):
    report, _, _ = page(folders)
    with pytest.raises(ValueError, match="`gallery` must be an integer >= 0: got -1"):
        make_page(report, gallery=-1)
    with pytest.raises(ValueError, match="`pictures` must be an integer >= 0: got -1"):
        make_page(report, pictures=-1)
    with pytest.raises(ValueError, match="`images` must be a folder that exists: got"):
        make_page(report, images=folders / "absent")
    assert ".jpg" in image_suffixes()
    save(folders / "images/a.bmp", np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match=r"`images` must hold one file of each stem: got a\.bmp"):
        make_page(report, images=folders / "images")


def test_command(capsys, folders):
    options = ("--report", folders / "out/page.html", "--images", folders / "images")
    code, *_ = call(capsys, "eval", "--pred", folders / "pred", "--gt", folders / "gt", *options)
    assert code == 0
    assert (folders / "out/page.html").read_bytes() == page(folders)[2].content
    assert [file.name for file in (folders / "out").iterdir()] == ["page.html"]


@browser.needs_browser
@pytest.mark.slow
def test_a_click_sorts_in_a_browser(folders):
    report, file, _ = page(folders)
    names = [image.name for image in report.images]
    scores = {image.name: image.scores["F_max"] for image in report.images}
    shown = "#images tbody button"
    with browser.opened() as opened:
        opened.open(file)
        assert opened.texts(shown) == names
        opened.click("#images th:nth-child(2) button")
        assert opened.texts(shown) == sorted(names, key=scores.get)
        opened.click("#images th:nth-child(2) button")
        assert opened.texts(shown) == sorted(names, key=scores.get, reverse=True)
        sorts = "[...document.querySelectorAll('th')].map(th => th.getAttribute('aria-sort'))"
        assert [s for s in opened.evaluate(sorts) if s] == ["descending"]
        opened.click("#images th:nth-child(1) button")
        assert opened.texts(shown) == [*names[:2], "d9", "d10", *names[4:]]
        assert opened.complaints() == []
        assert set(opened.requested()) == {"data", file.as_uri()}


@pytest.fixture
def ramps(tmp_path):
    """A saliency that rises from left to right, one that is a mask, and their truths."""
    ramp = np.tile(np.arange(0, 240, 6, dtype=np.uint8), (20, 1))
    truth = np.where(np.arange(40) >= 20, 255, 0).astype(np.uint8)[None].repeat(20, axis=0)
    save(tmp_path / "pred/ramp.png", ramp)
    save(tmp_path / "pred/equal.png", truth)
    for name in ("ramp", "equal"):
        save(tmp_path / f"gt/{name}.png", truth)
        save(tmp_path / f"images/{name}.jpg", np.full((20, 40, 3), 200, np.uint8))
    return tmp_path


OVERLAY = "[...byId('overlay').getContext('2d').getImageData(0, 10, byId('overlay').width, 1).data]"


def kinds(opened):
    """What the overlay says of each pixel of a row: found, missed, wrong, or nothing."""
    data = np.array(opened.evaluate(OVERLAY)).reshape(-1, 4)[:, :3]
    named = {name: np.array(opened.evaluate("COLOURS")[k]) for k, name in enumerate("fmw")}
    expected = {name: 0.6 * colour + 0.4 * 200 for name, colour in named.items()}
    expected["-"] = np.full(3, 0.7 * 200)
    return "".join(
        min(expected, key=lambda kind: np.abs(expected[kind] - pixel).sum()) for pixel in data
    )


@browser.needs_browser
def test_a_row_opens_its_pictures_and_a_threshold(ramps):
    report, file, _ = page(ramps)
    with browser.opened() as opened:
        opened.resize(1200, 900)
        opened.open(file)
        opened.click("tr[data-row='1'] td:nth-child(3)")
        assert opened.texts("#image-name") == ["ramp"]
        scores = next(image.scores for image in report.images if image.name == "ramp")
        assert f"IoU {scores['IoU']:.4f} · Acc" in opened.texts("#image-scores")[0]
        assert opened.texts("figcaption")[:3] == ["photograph", "ground truth", "prediction"]
        ready = "new Promise(done => { const look = () => levels ? done(true) : "
        ready += "setTimeout(look, 5); look(); })"
        assert opened.evaluate(ready)
        # The saliency of pixel k is 6 k: at 127, pixels from 22 on are foreground.
        assert kinds(opened) == 20 * "-" + 2 * "m" + 18 * "f"
        assert opened.texts("#at") == ["> 0.50: IoU 0.90 of these small pictures"]
        opened.enter("#threshold", 60)
        assert kinds(opened) == 11 * "-" + 9 * "w" + 20 * "f"
        opened.press("Tab")
        opened.evaluate("byId('next').focus()")
        opened.press("ArrowLeft")
        assert opened.texts("#image-name") == ["equal"]
        assert opened.evaluate(ready)
        assert kinds(opened) == 20 * "-" + 20 * "f"
        opened.press("Escape")
        assert not opened.evaluate("byId('image').open")
        # Only a test reads the canvas so often.
        assert [text for text in opened.complaints() if "Canvas2D" not in text] == []


@browser.needs_browser
def test_a_row_without_pictures_says_so(ramps):
    _, file, _ = page(ramps, pictures=0)
    with browser.opened() as opened:
        opened.open(file)
        opened.click("tr[data-row='0'] button")
        assert opened.texts("#image-notes") == ["its pictures are not in the page"]
        assert opened.texts("#panels") == opened.texts("#tune") == []
