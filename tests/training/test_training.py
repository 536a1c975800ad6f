"""Training: the cache, the steps, resuming, several processes, and runs that are killed."""

from __future__ import annotations

import errno
import json
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from helpers import mortal, processes
from helpers.cases import object_on_ground
from selfment import CutOptions, PatchHead, PseudoLabeler
from selfment.images.load import find_images
from selfment.methods import Selfment
from selfment.models.head import load_head
from selfment.training.cache import TensorCache
from selfment.training.loop import Step, fit
from selfment.training.losses import head_loss
from selfment.training.run import Summary, train


def pictures(folder: Path, count: int, size: int = 64) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        stream = np.random.RandomState(index)
        pixels = stream.randint(60, 90, (size, size, 3)).astype(np.uint8)
        pixels[size // 4 : size // 2, size // 3 : 2 * size // 3] = stream.randint(100, 255, 3)
        Image.fromarray(pixels).save(folder / f"{index:02}.png")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("photos"), 6)


def run(inputs: Path, out: Path, **options) -> Summary:
    options = {"epochs": 2, "progress": False, **options}
    labeler = PseudoLabeler(size=96, batch_size=options.pop("batch_size", 2))
    return train(find_images([inputs]), out, labeler, **options)


def weights(out: Path) -> dict[str, Tensor]:
    return load_head(out / "head")[0].state_dict()


def equal(a: Path, b: Path) -> bool:
    return all(torch.equal(x, weights(b)[name]) for name, x in weights(a).items())


def steps(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "steps.jsonl").read_text().splitlines()]


def planted(count: int) -> list[tuple[Tensor, Tensor]]:
    """Images whose objects share a prototype, and the truth."""
    inside = torch.zeros(12, 9, dtype=torch.bool)
    inside[3:9, 3:6] = True
    features = object_on_ground(12, 9, 24)
    return [(features + 0.1 * index, inside.flatten()) for index in range(count)]


def test_fit_takes_the_steps_of_adam() -> None:
    samples = planted(3)
    ours, theirs = PatchHead(24), PatchHead(24)
    theirs.load_state_dict(ours.state_dict())
    taken: list[Step] = []
    fit(ours, samples, epochs=2, lr=3e-3, weight_decay=1e-4, seed=5, on_step=taken.append)
    adam = torch.optim.Adam(theirs.parameters(), lr=3e-3, weight_decay=1e-4)
    for step in taken:
        features, labels = samples[step.index]
        loss = head_loss(*theirs(features), labels)
        assert step.total == pytest.approx(loss.total.item(), rel=1e-6)
        assert step.bce == pytest.approx(loss.bce.item(), rel=1e-6)
        adam.zero_grad()
        loss.total.backward()
        adam.step()
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)
    assert [(s.epoch, s.step) for s in taken] == [(1, 1), (1, 2), (1, 3), (2, 4), (2, 5), (2, 6)]
    assert sorted(s.index for s in taken[:3]) == [0, 1, 2]
    assert not ours.training


@pytest.mark.slow
def test_fit_learns() -> None:
    samples = planted(8)
    head = PatchHead(24)
    fit(head, samples, epochs=15)
    features, labels = planted(9)[-1]
    assert ((head.saliency(features) > 0.5) == labels).float().mean() > 0.95


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


def test_nothing_is_extracted_or_labelled_twice(folder: Path, tmp_path: Path, monkeypatch) -> None:
    calls: list[str] = []
    for name in ("label_features", "preprocess"):
        original = getattr(PseudoLabeler, name)

        def counted(self, value, name=name, original=original):
            calls.append(name)
            return original(self, value)

        monkeypatch.setattr(PseudoLabeler, name, counted)
    cache = tmp_path / "cache"
    run(folder, tmp_path / "a", cache=cache)
    assert sorted(calls) == ["label_features"] * 3 + ["preprocess"] * 6
    calls.clear()
    run(folder, tmp_path / "b", cache=cache, lr=1e-2)
    assert calls == []
    # Other labels of the same features.
    labeler = PseudoLabeler(size=96, method=Selfment(CutOptions(tau=0.4)))
    train(find_images([folder]), tmp_path / "c", labeler, cache=cache, epochs=1, progress=False)
    assert calls == ["label_features"] * 6
    calls.clear()
    # The same content under another name.
    renamed = pictures(tmp_path / "renamed", 1)
    (renamed / "00.png").rename(renamed / "x.png")
    run(renamed, tmp_path / "d", cache=cache)
    assert calls == []
    # Other content under the same name.
    changed = tmp_path / "changed"
    changed.mkdir()
    Image.new("RGB", (64, 64), (9, 99, 200)).save(changed / "01.png")
    run(changed, tmp_path / "e", cache=cache)
    assert calls.count("preprocess") == 1


@pytest.mark.slow
def test_half_precision_features(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "a", feature_dtype="bfloat16")
    run(folder, tmp_path / "b", feature_dtype="bfloat16", use_cache=False)
    assert equal(tmp_path / "a", tmp_path / "b")
    largest = max(p.stat().st_size for p in (tmp_path / "a/cache").rglob("*.safetensors"))
    assert 36 * 384 * 2 <= largest < 36 * 384 * 2 + 200


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

    from selfment.training.run import _Run

    log = _Run.log
    with monkeypatch.context() as patch:
        patch.setattr(_Run, "log", lambda self, step, bar: (log(self, step, bar), stop(step)))
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


def test_a_loss_that_is_not_finite_ends_the_run(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"must be finite: got nan in step \d+, of epoch 1; .*1e\+30"
    ):
        run(folder, tmp_path / "run", lr=1e30)
    assert not (tmp_path / "run/head").exists()
    assert not list((tmp_path / "run").glob("epoch-*.pt"))


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


def test_the_cache_knows_the_weights_that_were_loaded(folder: Path, tmp_path: Path) -> None:
    import timm

    for name in ("a", "b"):
        torch.manual_seed(ord(name))
        model = timm.create_model("vit_tiny_patch16_224", pretrained=False)
        torch.save(model.state_dict(), tmp_path / f"{name}.pth")
    weights = tmp_path / "weights.pth"
    (tmp_path / "a.pth").rename(weights)

    def trained(out: Path, labeler: PseudoLabeler) -> Path:
        options = {"cache": tmp_path / "cache", "epochs": 1, "progress": False}
        train(find_images([folder]), out, labeler, **options)
        return out

    def labeler() -> PseudoLabeler:
        return PseudoLabeler("vit_tiny_patch16_224", 64, weights=weights)

    first = labeler()
    _ = first.backbone
    (tmp_path / "b.pth").rename(weights)
    trained(tmp_path / "old", first)
    trained(tmp_path / "new", labeler())
    assert not equal(tmp_path / "old", tmp_path / "new")


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


def test_cache(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path, limit=5000)
    tensor = torch.arange(1000, dtype=torch.int16)
    assert cache.get("ab12") is None
    assert cache.put("ab12", tensor)
    assert torch.equal(cache.get("ab12"), tensor)
    assert cache.put("cd34", tensor)
    assert not cache.put("ef56", tensor)  # over the limit
    assert not TensorCache(tmp_path, limit=5000).put("ef56", tensor)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"`cache` must be a folder: got .*file/cache'"):
        TensorCache(tmp_path / "file/cache")
    # Cut off, as by a power failure: there is no such tensor.
    (tmp_path / "ab/ab12.safetensors").write_bytes(b"\x10")
    assert cache.get("ab12") is None


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_a_cache_that_takes_nothing(
    folder: Path, tmp_path: Path, monkeypatch, capsys, trouble: str
) -> None:
    run(folder, tmp_path / "whole")
    capsys.readouterr()
    if trouble == "full":
        usage = shutil.disk_usage(tmp_path)._replace(free=10_000_000)
        monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    else:

        def refuse(path, write):
            raise OSError(errno.EROFS, "Read-only file system")

        monkeypatch.setattr("selfment.training.cache.write_atomically", refuse)
    assert run(folder, tmp_path / "run").failed == 0
    assert equal(tmp_path / "whole", tmp_path / "run")
    assert capsys.readouterr().err.count("cache: not all is kept in") == 1
    assert not list((tmp_path / "run").glob("cache/*/*"))


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
    killed_at("selfment.training.run:_Run.save", 3)
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
