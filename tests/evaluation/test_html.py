"""The HTML page: whole, safe, small, and at work in a browser."""

from __future__ import annotations

import base64
import io
import os
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from helpers import processes
from helpers.commands import call
from helpers.scores import pair, save
from selfment.evaluation.folders import evaluate
from selfment.evaluation.html import to_html, write_html
from selfment.evaluation.report import ImageScores, Report
from selfment.evaluation.scores import PROTOCOLS, Evaluator
from selfment.images.suffixes import image_suffixes

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
EVIL = "<script>alert(1)</script>&\"'"
VOID = ("meta", "img")


class Reader(HTMLParser):
    """Checks that elements close in order; keeps texts of cells, and attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self.open[-1], data))


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
    report = evaluate(folders / "pred", folders / "gt", progress=False)
    return report, to_html(report, images=folders / "images", **options)


@pytest.mark.slow
def test_page_is_whole_and_needs_no_network(folders):
    report, text = page(folders)
    reader = Reader(text)
    for _, attributes in reader.seen:
        assert not attributes.get("href")
        assert attributes.get("src", "data:").startswith("data:")
    assert "url(" not in text
    assert "@import" not in text
    assert re.findall(r"https?://[^\s\"]*", text) == ["http://www.w3.org/2000/svg"] * 15
    cells = [data for tag, data in reader.texts if tag == "td"]
    for image in report.images:
        assert image.name in cells
        assert f"{image.scores['F_max']:.4f}" in cells
    headings = [data for tag, data in reader.texts if tag == "button"]
    assert headings == ["name", *PROTOCOLS["all"]]
    assert "note" in [attributes.get("class") for _, attributes in reader.seen]
    assert any("ground truth of 0 and 1" in data for tag, data in reader.texts if tag == "p")


@pytest.mark.slow
def test_names_are_escaped(folders):
    _, text = page(folders)
    assert "<script>alert" not in text
    assert text.count("<script>") == 1
    assert "x&lt;script&gt;alert(1)&lt;script&gt;&amp;&quot;&#x27;" in text


@pytest.mark.slow
def test_gallery_shows_worst_and_best(folders):
    report, text = page(folders, gallery=2)
    ranked = sorted(report.images, key=lambda image: image.scores["F_max"])
    captions = re.findall(r"<figcaption>(.*?) <b>(.*?)</b>", text)
    expected = [ranked[0], ranked[1], ranked[-1], ranked[-2]]
    assert [score for _, score in captions] == [f"{i.scores['F_max']:.4f}" for i in expected]
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]*)" alt="([^"]*)"', text)
    assert [alt for _, alt in pictures] == ["image", "ground truth", "prediction"] * 4
    sizes = {Image.open(io.BytesIO(base64.b64decode(data))).size for data, _ in pictures}
    assert sizes == {(200, 133), (90, 60)}
    assert "<img" not in page(folders, gallery=0)[1]
    (folders / "gt/a.png").unlink()
    again = to_html(report, gallery=9)
    assert again.count("ground truth cannot be read") == 1
    assert again.count("<figure>") == 5


@pytest.mark.slow
def test_a_score_of_which_less_is_better(folders):
    report = evaluate(folders / "pred", folders / "gt", metrics=["MAE"], progress=False)
    captions = re.findall(r"<figcaption>.*? <b>(.*?)</b>", to_html(report, gallery=1))
    scores = [image.scores["MAE"] for image in report.images]
    assert captions == [f"{max(scores):.4f}", f"{min(scores):.4f}"]


def test_scores_of_arrays_and_what_is_no_number():
    evaluator = Evaluator()
    saliency, truth = np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.uint8)
    saliency[4, 2:5] = truth[7, 2:5] = 255
    evaluator.update(saliency, truth, "low")
    text = to_html(evaluator.report())
    Reader(text)
    assert "<td>nan</td>" in text
    assert "<img" not in text


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
    write_html(report, tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 2_000_000


@pytest.mark.slow
def test_errors(folders):
    report, _ = page(folders)
    with pytest.raises(ValueError, match="`gallery` must be an integer >= 0: got -1"):
        to_html(report, gallery=-1)
    with pytest.raises(ValueError, match="`images` must be a folder that exists: got"):
        to_html(report, images=folders / "absent")
    assert ".jpg" in image_suffixes()
    save(folders / "images/a.bmp", np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match=r"`images` must hold one file of each stem: got a\.bmp"):
        to_html(report, images=folders / "images")


def test_command(capsys, folders):
    options = ("--report", folders / "out/page.html", "--images", folders / "images")
    code, *_ = call(capsys, "eval", "--pred", folders / "pred", "--gt", folders / "gt", *options)
    assert code == 0
    assert (folders / "out/page.html").read_text() == page(folders)[1]
    assert [file.name for file in (folders / "out").iterdir()] == ["page.html"]


def browse(path, size: str = "1200,1000") -> tuple[str, str]:
    """The page after its scripts have run, and what the browser's console says."""
    # --no-sandbox: as root, which CI may be, there is none. The rest keeps it off the network.
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
    quiet = ("background-networking", "component-update", "sync", "extensions", "breakpad")
    options += (*(f"--disable-{name}" for name in quiet), "--no-first-run", "--dump-dom")
    logging = ("--enable-logging=stderr", "--v=0", f"--user-data-dir={path.parent / 'profile'}")
    done = processes.run(
        [BROWSER, *options, *logging, f"--window-size={size}", path.as_uri()],
        env={**os.environ, "HOME": str(path.parent)},  # it keeps certificates there
    )
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, "\n".join(console)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="there is no chromium to open the page in")
@pytest.mark.parametrize(
    ("clicks", "order"),
    [
        ([], lambda names, scores: names),
        ([1], lambda names, scores: sorted(names, key=scores.get)),
        ([1, 1], lambda names, scores: sorted(names, key=scores.get, reverse=True)),
        ([1, 0], lambda names, scores: [*names[:2], "d9", "d10", *names[4:]]),
    ],
)
def test_a_click_sorts_in_a_browser(folders, clicks, order):
    report, text = page(folders)
    calls = "".join(f'document.querySelectorAll("button")[{column}].click();' for column in clicks)
    script = f'<script>console.log("it runs");{calls}</script>'
    (folders / "page.html").write_text(text.replace("</body>", f"{script}</body>"))
    found, console = browse(folders / "page.html")
    assert "it runs" in console
    assert "rror" not in console
    reader = Reader(found)
    rows = re.findall(r"<tr><td>(.*?)</td>", found)
    names = [image.name for image in report.images]
    scores = {image.name: image.scores["F_max"] for image in report.images}
    plain = [row.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") for row in rows]
    assert plain == order(names, scores)
    sorts = [attributes["aria-sort"] for _, attributes in reader.seen if "aria-sort" in attributes]
    assert sorts == ([] if not clicks else ["descending" if clicks == [1, 1] else "ascending"])
