"""How far a run over shards is: shares of its bytes, and a bar that leaves sentences alone."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers import shard_runs as shards
from helpers.commands import call
from helpers.shard_rows import unit
from helpers.shards import image, rows_of, tar
from selfment.shards.progress import Progress, Turn, turns
from selfment.shards.rows import SourceFile, Unit

pytest.importorskip("pyarrow", reason="no PyArrow: pip install 'selfment[shards]'")


def units(*sizes: int) -> list[Unit]:
    return [
        Unit(f"{size}", "tar", (SourceFile(f"/{size}.tar", f"{size}.tar", size, 5),))
        for size in sizes
    ]


def test_turns_have_the_share_of_their_bytes() -> None:
    left = turns(units(99, 299, 599), total=10)
    assert [turn.number for turn in left] == [8, 9, 10]
    assert [turn.before for turn in left] == [0, 0.1, 0.4]
    assert [turn.share for turn in left] == [0.1, 0.3, 0.6]
    assert turns([unit()], 1) == [Turn(unit(), 1, 1, 0.0, 1.0)]


@pytest.mark.parametrize(
    ("move", "shown"),
    [
        (lambda bar, left: None, ["2 of 4 shards:", "  0%|", ", 0 images, 0.0 images/s]"]),
        (lambda bar, left: bar.begin(left[1]), ["3 of 4 shards:", " 25%|"]),
        (lambda bar, left: [bar.begin(left[1]), bar.reach(0.5)], ["3 of 4 shards:", " 62%|"]),
        (lambda bar, left: [bar.begin(left[1]), bar.reach(None)], ["3 of 4 shards:", " 25%|"]),
        (lambda bar, left: [bar.begin(left[1]), bar.end()], ["4 of 4 shards:", "100%|"]),
        (lambda bar, left: bar.update(), ["2 of 4 shards:", ", 1 image, "]),
        (lambda bar, left: bar.add(left[1], 1234), ["3 of 4", " 75%|", ", 1,234 images, "]),
    ],
)
def test_the_bar(
    capsys: pytest.CaptureFixture[str],
    move: Callable[[Progress, list[Turn]], object],
    shown: list[str],
) -> None:
    left = turns(units(99, 299), total=4)
    bar = Progress(left[0], "image", show=True)
    move(bar, left)
    bar.close()
    last = capsys.readouterr().err.rstrip("\n").rpartition("\r")[2]
    assert all(words in last for words in shown), last


def test_rows_know_their_share(tmp_path: Path) -> None:
    files = {f"{number}.png": image(number) for number in range(4)}
    shards.write_folder(tmp_path / "images", files)
    shards.write_shards(f"{tmp_path}/table", "parquet", files, 4)
    for folder in ("images", "table"):
        assert [row.share for row in rows_of(tmp_path / folder)] == [0, 0.25, 0.5, 0.75]
    content = tar(files.items())
    (tmp_path / "a.tar").write_bytes(content)
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(content))
    starts = [place * 1024 / len(content) for place in range(4)]
    assert [row.share for row in rows_of(tmp_path / "a.tar")] == starts
    assert [row.share for row in rows_of(tmp_path / "a.tar.gz")] == [None] * 4


def test_a_run_shows_all_of_its_shards_and_sentences_on_lines_of_their_own(tmp_path, capsys):
    inputs = Path(shards.write_shards(f"{tmp_path}/in", "tar", shards.photos(6, broken=[4]), 2))
    words = ("label", inputs, "--out", tmp_path / "out", "--size", 64)
    assert call(capsys, "label", inputs / "00000.tar", *words[2:])[0] == 0
    code, _, err = call(capsys, *words)
    assert code == 1
    # What a terminal shows of each line.
    lines = [line.rpartition("\r")[2] for line in err.rstrip("\n").split("\n")]
    failed = f"cannot read {inputs}/00002.tar: 000004.png: not an image that Pillow knows"
    assert failed in lines
    bar = lines[-2]
    assert bar.startswith("3 of 3 shards: 100%|")
    assert ", 4 images, " in bar
