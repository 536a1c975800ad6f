"""Units of work on a local Ray: results, kills, and interrupts."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import call
from helpers.heads import a_head
from helpers.pictures import pictures
from helpers.runs import results
from selfment import PseudoLabeler
from selfment.images.load import find_images
from selfment.jobs import cluster, ranks
from selfment.jobs.cluster import RayOptions, Remains, run_units
from selfment.jobs.folder import INTERRUPTED
from selfment.jobs.label import label_images
from selfment.jobs.records import Records
from selfment.models.head import HeadInfo, save_head

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system"),
]

ray: Any = pytest.importorskip(
    "ray", reason='Ray is not installed: pip install "selfment[ray]"', exc_type=ImportError
)

OPTIONS = RayOptions(workers=2)


@pytest.fixture(scope="module", autouse=True)
def local_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Ray that all tests use; it leaves a token in the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=128 << 20,
            log_to_driver=False,
        )
        yield
        ray.shutdown()


def test_a_ray_that_does_not_answer_is_named(monkeypatch):
    def init(**_: object) -> None:
        raise ConnectionError("Initialization failure from server:\nTraceback\nno room for it\n")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    sentence = (
        r"^`address` must be that of a Ray that answers: got 'ray://host:1' "
        r"\(Initialization failure from server: no room for it\)$"
    )
    options = RayOptions(address="ray://host:1")
    with pytest.raises(ConnectionError, match=sentence):
        list(run_units(lambda: str.upper, ["a"], options, nothing_done))


def work(folder: Path, fatal: str = "", kills: int = 0) -> Callable[[], Callable[[str], str]]:
    """A factory of a function that notes each call in the file of its unit.

    ``fatal``: the unit whose first calls, as many as ``kills``, kill the worker.
    """

    def factory() -> Callable[[str], str]:
        def function(unit: str) -> str:
            import sys

            print(f"unit {unit} begins", file=sys.stderr)
            print("half a line", end="", file=sys.stderr)
            file = folder / unit
            with file.open("a") as calls:
                calls.write(f"{os.getpid()} ")
            if unit == fatal and len(file.read_text().split()) <= kills:
                os.kill(os.getpid(), signal.SIGKILL)
            return unit.upper()

        return function

    return factory


def nothing_done(unit: str) -> Remains:
    return Remains(None, f"the contents of {unit}")


def test_a_killed_worker_is_replaced(tmp_path, capsys):
    units = ["a", "b", "c", "d", "e"]
    options = RayOptions(workers=3)  # for which there is no room
    done = list(run_units(work(tmp_path, "b", kills=1), units, options, nothing_done))
    assert sorted(done) == ["A", "B", "C", "D", "E"]
    calls = {unit: (tmp_path / unit).read_text().split() for unit in units}
    assert [len(calls[unit]) for unit in units] == [1, 2, 1, 1, 1]
    assert len({number for numbers in calls.values() for number in numbers}) == 3  # processes
    said = capsys.readouterr().err.splitlines()
    assert said.count("a worker was killed and is started again") == 1
    # What was said within a second before a kill may be lost; nothing is repeated.
    assert all(said.count(f"unit {unit} begins") == 1 for unit in units)
    assert said.count("half a line") == 5


def test_a_unit_that_kills_each_worker_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "RESTARTS", 1)
    sentence = (
        "a worker was killed 2 times without doing anything new; "
        "the cause may be the contents of b$"
    )
    with pytest.raises(ChildProcessError, match=sentence):
        list(run_units(work(tmp_path, "b", kills=9), ["a", "b", "c"], OPTIONS, nothing_done))
    assert len((tmp_path / "b").read_text().split()) == 2
    assert all((tmp_path / unit).exists() for unit in "ac")


def test_kills_with_progress_between_them_are_not_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "RESTARTS", 1)

    def calls(unit: str) -> Remains:
        return Remains((tmp_path / unit).read_text(), unit)

    assert list(run_units(work(tmp_path, "a", kills=3), ["a"], OPTIONS, calls)) == ["A"]
    assert len((tmp_path / "a").read_text().split()) == 4


def test_an_error_is_raised_here_and_ends_the_others_in_good_order(tmp_path):
    def factory() -> Callable[[str], None]:
        def function(unit: str) -> None:
            import time

            (tmp_path / unit).touch()
            if unit == "bad":
                while not (tmp_path / "good").exists():
                    time.sleep(0.01)
                raise ValueError("`unit` must be good: got 'bad'")
            try:
                while True:
                    time.sleep(0.01)
            finally:
                (tmp_path / "good").write_text("in good order")

        return function

    with pytest.raises(ValueError, match=r"^`unit` must be good: got 'bad'$"):
        list(run_units(factory, ["good", "bad"], OPTIONS, nothing_done))
    assert (tmp_path / "good").read_text() == "in good order"


def test_predictions_are_those_of_one_process(tmp_path, capsys):
    photos = pictures(tmp_path / "photos", *(f"{index}.png" for index in range(5)))
    (photos / "broken.png").write_bytes(b"no image")
    save_head(tmp_path / "head", a_head(), HeadInfo("classic"))
    command = ["predict", photos, "--head", tmp_path / "head", "--size", 64, "--binary", 0.5]
    code, _, err = call(capsys, *command, "--out", tmp_path / "out", "--engine", "ray")
    assert code == 1
    sentence = f"cannot read {photos}/broken.png: not an image that Pillow knows"
    assert err.count(sentence) == 1
    assert f"5 segmented, 0 already done, 1 failed; see {tmp_path}/out/pred" in err
    assert call(capsys, *command, "--out", tmp_path / "alone")[0] == 1
    assert results(tmp_path / "out") == results(tmp_path / "alone")


def test_errors_are_those_of_label(tmp_path, capsys):
    photos = pictures(tmp_path / "photos", "a.png", "b.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/labels.jsonl").write_text("of another program\n")
    command = ["label", photos, "--out", tmp_path / "out", "--size", 96]
    (code, _, err), (alone, _, said) = (
        call(capsys, *command, *engine) for engine in (("--engine", "ray"), ())
    )
    assert code == alone == 2
    assert err.splitlines()[-1] == said.splitlines()[-1]
    assert "must hold no file labels.jsonl of another kind" in err


def test_images_that_may_kill_a_worker(tmp_path, monkeypatch):
    """Those of its rank without a result, in order: not started, or started and not ended."""
    photos = pictures(tmp_path / "photos", *(f"{index:02}.png" for index in range(40)))
    (photos / "04.png").write_bytes(b"no image")
    images, out = find_images([photos]), tmp_path / "out"
    label_images(images[:8], out, PseudoLabeler(size=96), progress=False)
    stored = Records(out / "labels.jsonl")
    stored.add({**stored.get("06.png"), "error": INTERRUPTED})
    stored.close()

    def killed(job: object, units: range, options: object, inspect: Any) -> Iterator[Remains]:
        yield inspect(units[0])

    monkeypatch.setattr(ranks, "run_units", killed)
    found = ranks.Ranks(print, images, out / "labels.jsonl", "mask", 2).run(OPTIONS)[0]
    assert {path for path, _ in found.done} == {str(photos / "00.png"), str(photos / "02.png")}
    listed = ", ".join(str(photos / f"{index:02}.png") for index in range(6, 22, 2))
    assert found.suspects == f"one of these images: {listed} and 4 more"
