"""Training: the cache, the steps, resuming, several processes, and runs that are killed."""

from __future__ import annotations

import json
import re
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import mortal, processes
from helpers.commands import call
from helpers.training import equal, pictures, run, steps, weights
from selfment import PatchHead, PseudoLabeler
from selfment.models.head import load_head
from selfment.training.loop import Step
from selfment.training.losses import head_loss


def test_a_run_and_its_files(folder: Path, tmp_path: Path) -> None:
    summary = run(folder, tmp_path / "run", epochs=3)
    assert (summary.images, summary.failed, summary.steps) == (6, 0, 18)
    assert summary.head == tmp_path / "run/head"
    head, info = load_head(summary.head)
    assert (head.dim, info.backbone, info.size, info.features) == (384, "classic", 96, "tokens")
    rows = steps(tmp_path / "run")
    assert [row["step"] for row in rows] == list(range(1, 19))
    assert {row["image"] for row in rows[:6]} == {p.name for p in folder.iterdir()}
    assert all(np.isfinite(row["total"]) for row in rows)
    assert sum(row["total"] for row in rows[-6:]) < sum(row["total"] for row in rows[:6])
    settings = json.loads((tmp_path / "run/settings.json").read_text())
    assert settings["settings"]["lr"] == 1e-3
    assert settings["versions"]["torch"] == torch.__version__
    assert [p.name for p in (tmp_path / "run/tensorboard").iterdir()]
    last, _ = load_head(tmp_path / "run/epoch-003.pt")
    assert all(torch.equal(a, b) for a, b in zip(last.parameters(), head.parameters(), strict=True))
    # What travels with the head does not name this machine.
    assert str(tmp_path) not in (summary.head / "config.json").read_text()


@pytest.mark.slow
def test_labels_are_those_of_the_labeler(folder: Path, tmp_path: Path, monkeypatch) -> None:
    seen = {}

    def spy(head, samples, **options):
        for index in range(len(samples)):
            seen[samples.paths[index].name] = samples[index]
        return head

    monkeypatch.setattr("selfment.training.run.fit", spy)
    run(folder, tmp_path / "run")
    labeler = PseudoLabeler(size=96)
    assert len(seen) == 6
    for name, (features, labels) in seen.items():
        assert torch.equal(labels, labeler(folder / name).mask.flatten())
        pixels = labeler.preprocess(Image.open(folder / name))
        assert torch.equal(features, labeler.backbone(pixels[None])[0])


@pytest.mark.slow
def test_same_seed_same_weights_with_and_without_a_cache(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "a")
    run(folder, tmp_path / "b", use_cache=False)
    run(folder, tmp_path / "c", cache=tmp_path / "a/cache")
    run(folder, tmp_path / "d", cache_limit=400_000)
    assert not (tmp_path / "b/cache").exists()
    assert not (tmp_path / "c/cache").exists()
    files = list((tmp_path / "d/cache").rglob("*.safetensors"))
    # Features of 36 x 384 float32 numbers, 55 kB each.
    assert 0 < sum(file.stat().st_size for file in files) <= 400_000
    for other in "bcd":
        assert equal(tmp_path / "a", tmp_path / other)
    run(folder, tmp_path / "e", seed=5)
    assert not equal(tmp_path / "a", tmp_path / "e")


@pytest.mark.slow
def test_max_images_are_chosen_by_the_seed(folder: Path, tmp_path: Path) -> None:
    chosen = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run(folder, tmp_path / name, max_images=3, seed=seed, epochs=1).images == 3
        chosen.append({row["image"] for row in steps(tmp_path / name)})
    assert chosen[0] == chosen[1] != chosen[2]


@pytest.mark.slow
def test_bad_images_are_reported_and_left_out(folder: Path, tmp_path: Path, capsys) -> None:
    photos = pictures(tmp_path / "photos", 3)
    (photos / "01.png").write_bytes(b"not an image")
    summary = run(photos, tmp_path / "run", batch_size=3)
    assert (summary.images, summary.failed) == (2, 1)
    sentence = f"cannot read {photos / '01.png'}: not an image that Pillow knows"
    assert sentence in capsys.readouterr().err
    assert json.loads((tmp_path / "run/settings.json").read_text())["failed"] == [sentence]
    for file in photos.iterdir():
        file.write_bytes(b"not an image")
    with pytest.raises(
        ValueError, match="must hold one that can be labelled: got 3, of which none"
    ):
        run(photos, tmp_path / "other")


class StopError(Exception):
    pass


@pytest.mark.slow
def test_resuming_gives_the_same_weights(folder: Path, tmp_path: Path, monkeypatch) -> None:
    run(folder, tmp_path / "whole", epochs=3)

    def stop(step: Step) -> None:
        if step.epoch == 2 and step.step == 9:
            raise StopError

    from selfment.training.folder import RunFolder

    log = RunFolder.log
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "log", lambda self, step, bar: (log(self, step, bar), stop(step)))
        with pytest.raises(StopError):
            run(folder, tmp_path / "part", epochs=3)
    assert len(steps(tmp_path / "part")) == 9
    with pytest.raises(ValueError, match=r"unless it is resumed: .* has epoch-001.pt"):
        run(folder, tmp_path / "part", epochs=3)
    assert run(folder, tmp_path / "part", epochs=3, resume=True).steps == 12
    assert equal(tmp_path / "whole", tmp_path / "part")
    assert [r["step"] for r in steps(tmp_path / "part")] == list(range(1, 19))
    totals = [[row["total"] for row in steps(tmp_path / name)] for name in ("whole", "part")]
    assert totals[0] == totals[1]
    assert run(folder, tmp_path / "part", epochs=3, resume=True).steps == 0
    assert run(folder, tmp_path / "part", epochs=4, resume=True).steps == 6


@pytest.mark.slow
def test_a_resumed_run_must_be_the_same(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "run", epochs=1)
    with pytest.raises(ValueError, match=r"go(es)? on with: lr was 0.001, is 0.01"):
        run(folder, tmp_path / "run", lr=1e-2, resume=True)
    message = "must have the images of .*png is missing, or cannot be labelled now"
    with pytest.raises(ValueError, match=message):
        run(folder, tmp_path / "run", max_images=2, resume=True)
    run(folder, tmp_path / "run", epochs=3, resume=True)
    with pytest.raises(ValueError, match="`epochs` must be at least as many as are finished"):
        run(folder, tmp_path / "run", epochs=2, resume=True)
    run(folder, tmp_path / "numpy", epochs=1, lr=np.float64(1e-3), seed=np.int64(111))
    assert run(folder, tmp_path / "numpy", epochs=2, resume=True).steps == 6


def test_resuming_falls_back_to_a_checkpoint_that_can_be_read(
    folder: Path, tmp_path: Path, capsys
) -> None:
    run(folder, tmp_path / "run", epochs=2)
    whole = weights(tmp_path / "run")
    (tmp_path / "run/epoch-002.pt").write_bytes(b"")
    assert run(folder, tmp_path / "run", epochs=2, resume=True).steps == 6
    assert "epoch-002.pt' is not (" in capsys.readouterr().err
    assert all(torch.equal(x, whole[name]) for name, x in weights(tmp_path / "run").items())


def test_an_image_that_changes_after_it_was_labelled(tmp_path: Path, monkeypatch) -> None:
    photos = pictures(tmp_path / "photos", 2)

    def change(head, samples, **options):
        assert len(samples) == 2
        Image.new("RGB", (64, 64), (9, 99, 200)).save(photos / "01.png")
        samples[0]
        with pytest.raises(ValueError, match=r"01[.]png has changed since it was labelled"):
            samples[1]
        return head

    monkeypatch.setattr("selfment.training.run.fit", change)
    run(photos, tmp_path / "run", use_cache=False)


def test_one_run_at_a_time(folder: Path, tmp_path: Path, monkeypatch) -> None:
    def second(head, samples, **options):
        with pytest.raises(ValueError, match="one run at a time"):
            run(folder, tmp_path / "run")
        return head

    monkeypatch.setattr("selfment.training.run.fit", second)
    run(folder, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "`epochs` must be an integer >= 1: got 0"),
        ({"lr": float("nan")}, "`lr` must be a number > 0: got nan"),
        ({"weight_decay": -1}, "`weight_decay` must be a number >= 0: got -1"),
        ({"seed": -1}, "`seed` must be an integer from 0"),
        ({"cache_limit": -1}, "`cache_limit` must be an integer >= 0: got -1"),
        ({"feature_dtype": "int8"}, "`feature_dtype` must be 'float32' or 'bfloat16' or 'float16'"),
    ],
)
def test_wrong_arguments(folder: Path, tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(folder, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def words(folder: Path, out: Path, *options: str) -> list[str]:
    return [
        *("train", str(folder), "--out", str(out)),
        *("--size", "96", "--batch", "1", "--threads", "1", *options),
    ]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_killed_runs_go_on(tmp_path: Path) -> None:
    photos = pictures(tmp_path / "photos", 40)
    out = tmp_path / "run"
    arguments = words(photos, out, "--epochs", "6")
    cached = lambda: len(list(out.glob("cache/*/*.safetensors")))  # noqa: E731

    def killed_at(where: str, nth: int) -> None:
        command = [sys.executable, *mortal.command(tmp_path, where, nth, *arguments)]
        assert processes.run(command).returncode == -signal.SIGKILL

    killed_at("selfment.training.cache:write_atomically", 11)
    before = {p: p.stat().st_mtime_ns for p in out.glob("cache/*/*.safetensors")}
    assert len(before) == 10
    killed_at("selfment.training.folder:RunFolder.save", 3)
    assert (out / "epoch-002.pt").exists()
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert cached() == 80
    done = processes.run(mortal.alone(*arguments, "--resume"), check=True)
    assert "trained on 40 images, 0 failed" in done.stderr
    whole = tmp_path / "whole"
    again = words(photos, whole, "--epochs", "6", "--cache", str(out / "cache"))
    processes.run(mortal.alone(*again), check=True)
    assert equal(out, whole)
    assert [row["step"] for row in steps(out)] == list(range(1, 241))


@pytest.mark.slow
def test_two_processes_and_a_bad_image(tmp_path: Path) -> None:
    """The last image, which the second process reads, is broken; the first tells."""
    photos = pictures(tmp_path / "photos", 4)
    (photos / "03.png").write_bytes(b"not an image")
    done = processes.torchrun(
        tmp_path, "-m", "selfment", *words(photos, tmp_path / "run", "--epochs", "1")
    )
    assert done.returncode == 1
    assert done.stderr.count("trained on 3 images, 1 failed, 2 steps; the head is") == 1
    assert len(steps(tmp_path / "run")) == 2
    assert (tmp_path / "run/head/model.safetensors").is_file()


@pytest.mark.slow
def test_two_processes(folder: Path, tmp_path: Path) -> None:
    """Each takes half of the images and of the steps; the gradients are means."""
    done = processes.torchrun(
        tmp_path,
        "-m",
        "selfment",
        *words(folder, tmp_path / "run", "--epochs", "2", "--lr", "0.01"),
    )
    assert done.returncode == 0, done.stderr
    rows = steps(tmp_path / "run")
    assert len(rows) == 6
    settings = json.loads((tmp_path / "run/settings.json").read_text())
    assert settings["settings"]["processes"] == 2
    # The same by hand: a step has the mean gradient of two images.
    source = {}

    def keep(head, samples, **options):
        source["samples"] = [samples[index] for index in range(len(samples))]
        return head

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("selfment.training.run.fit", keep)
        run(folder, tmp_path / "one", batch_size=1)
    with torch.random.fork_rng():
        torch.manual_seed(111)
        head = PatchHead(384)
    adam = torch.optim.Adam(head.parameters(), lr=0.01, weight_decay=1e-5)
    indices = range(6)
    orders = []
    for rank in range(2):
        sampler = torch.utils.data.DistributedSampler(indices, 2, rank, shuffle=True, seed=111)
        order = []
        for epoch in (1, 2):
            sampler.set_epoch(epoch)
            order += list(sampler)
        orders.append(order)
    for row, first, second in zip(rows, *orders, strict=True):
        samples = [source["samples"][index] for index in (first, second)]
        loss = sum(head_loss(*head(f), labels).total for f, labels in samples) / 2
        assert row["total"] == pytest.approx(loss.item(), rel=1e-4)
        adam.zero_grad()
        loss.backward()
        adam.step()
    for name, value in weights(tmp_path / "run").items():
        torch.testing.assert_close(value, head.state_dict()[name], rtol=1e-3, atol=1e-5)


def test_the_default_length_is_that_of_the_paper_whatever_the_number_of_images(folder, tmp_path):
    epochs = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("selfment.training.run.fit", lambda *_, **options: epochs.append(options))
        run(folder, tmp_path / "six", epochs=None)
        run(folder, tmp_path / "two", epochs=None, max_images=2)
    assert [options["epochs"] for options in epochs] == [500, 1500]


@pytest.mark.parametrize(("bias", "side"), [(9.0, "foreground"), (-9.0, "background")])
def test_a_head_that_has_learned_nothing_is_said(
    folder: Path, tmp_path: Path, monkeypatch, capsys, bias: float, side: str
) -> None:
    def constant(head: PatchHead, *_: object, **__: object) -> None:
        with torch.no_grad():
            head.classifier.weight.zero_()
            head.classifier.bias.copy_(torch.tensor([0.0, bias]))

    monkeypatch.setattr("selfment.training.run.fit", constant)
    command = ("train", folder, "--out", tmp_path / "run", "--size", 96, "--epochs", 1)
    code, _, err = call(capsys, *command)
    assert code == 1
    assert "training: 6 steps on 6 images" in err
    share = 100 if side == "foreground" else 0
    agrees = rf"the head agrees with its labels at IoU 0\.\d\d, foreground {share}\.0 %"
    assert re.search(agrees, err)
    assert f"the head has learned nothing: it calls everything {side}; train for more" in err


def test_the_summary_says_how_well_the_head_agrees(folder: Path, tmp_path: Path) -> None:
    summary = run(folder, tmp_path / "run", epochs=30)
    assert summary.agreement > 0.8
    assert 0.02 < summary.foreground < 0.6
    assert (summary.empty, summary.is_constant) == (0, False)
    labeler = PseudoLabeler(size=96)
    head = load_head(summary.head)[0]
    both = either = 0
    for path in sorted(folder.iterdir()):
        pixels = labeler.preprocess(Image.open(path))[None]
        ours = head.saliency(labeler.backbone(pixels))[0] > 0.5
        labels = labeler(path).mask.flatten()
        both += int((ours & labels).sum())
        either += int((ours | labels).sum())
    assert summary.agreement == pytest.approx(both / either)


def test_the_checkpoints_of_the_last_three_epochs_are_kept(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(folder, out, epochs=5)
    assert {file.name for file in out.glob("*.pt")} == {f"epoch-00{n}.pt" for n in (3, 4, 5)}
    (out / "epoch-005.pt").write_bytes(b"cut off")
    assert run(folder, out, epochs=6, resume=True).steps == 12
    assert {file.name for file in out.glob("*.pt")} == {f"epoch-00{n}.pt" for n in (4, 5, 6)}
    run(folder, tmp_path / "whole", epochs=6)
    assert equal(out, tmp_path / "whole")
