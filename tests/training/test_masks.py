"""Training on masks that exist: of `selfment label`, redrawn, or anybody's; on chosen images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import processes
from helpers.commands import call
from helpers.training import equal, pictures, run, steps
from selfment.models.head import load_head
from selfment.training import read_names
from selfment.training.losses import contrastive, head_loss
from selfment.training.masks import area_averages


@pytest.fixture
def labels(folder: Path, tmp_path: Path, capsys) -> Path:
    """The folder of `selfment label` on the photographs, which rejects none."""
    out = tmp_path / "labels"
    assert call(capsys, "label", folder, "--out", out, "--size", 96)[0] == 0
    return out


def boxes(folder: Path, names: list[str], size: tuple[int, int] = (64, 64), **options) -> Path:
    """Masks of the left half."""
    folder.mkdir(parents=True, exist_ok=True)
    width, height = size
    mask = np.zeros((height, width), np.uint8)
    mask[:, : width // 2] = options.pop("value", 255)
    for name in names:
        Image.fromarray(mask).save(folder / name, **options)
    return folder


def reject(labels: Path, *names: str) -> None:
    """Makes the records say that images were rejected, and their masks empty."""
    from selfment.util.lines import with_checksum

    file = labels / "labels.jsonl"
    lines = []
    for row in map(json.loads, file.read_text().splitlines()):
        row.pop("crc32")
        row["rejected"] = row["image"] in names
        lines.append(with_checksum(json.dumps(row)) + "\n")
    file.write_text("".join(lines))
    for name in names:
        Image.new("L", (64, 64)).save(labels / name)


def train(capsys, folder: Path, out: Path, *options: object) -> tuple[int, str]:
    words = ("train", folder, "--out", out, "--size", 96, "--epochs", 2, *options)
    code, _, err = call(capsys, *words)
    return code, err


def spied(monkeypatch) -> dict[str, torch.Tensor]:
    """The labels that the next training is on, by the name of the image."""
    seen: dict[str, torch.Tensor] = {}

    def spy(head, samples, **options):
        seen.update({name: samples[i][1] for i, name in enumerate(samples.names)})
        return head

    monkeypatch.setattr("selfment.training.run.fit", spy)
    return seen


def test_area_averages_equal_their_definition() -> None:
    values = np.random.RandomState(0).randint(0, 256, (30, 42)).astype(np.uint8)
    whole = values.reshape(5, 6, 6, 7).mean(axis=(1, 3))
    np.testing.assert_allclose(area_averages(values, (5, 6)), whole, rtol=1e-6)
    # Each pixel is 7 x 4 parts, of which each cell of the grid has 30 x 42 whole ones.
    parts = values.repeat(7, axis=0).repeat(4, axis=1)
    cells = parts.reshape(7, 30, 4, 42).mean(axis=(1, 3))
    np.testing.assert_allclose(area_averages(values, (7, 4)), cells, rtol=1e-5)
    assert area_averages(np.array([[0, 255]], np.uint8), (2, 3)).tolist() == [[0, 127.5, 255]] * 2


def test_strips_of_rows_change_nothing(monkeypatch) -> None:
    values = np.random.RandomState(0).randint(0, 256, (50, 20)).astype(np.uint8)
    whole = area_averages(values, (7, 6))
    monkeypatch.setattr("selfment.training.masks._ROWS", 60)
    np.testing.assert_allclose(area_averages(values, (7, 6)), whole, rtol=1e-5)


def test_losses_of_soft_labels() -> None:
    stream = torch.Generator().manual_seed(0)
    logits = torch.randn(30, 2, generator=stream, dtype=torch.float64)
    embedding = torch.randn(30, 8, generator=stream, dtype=torch.float64)
    labels = torch.rand(30, generator=stream, dtype=torch.float64)
    loss = head_loss(logits, embedding, labels)
    chance, p = torch.sigmoid(logits[:, 1]), logits.softmax(1)[:, 1]
    bce = -(labels * chance.log() + (1 - labels) * (1 - chance).log()).mean()
    assert loss.bce.item() == pytest.approx(bce.item(), rel=1e-12)
    dice = 1 - (2 * (p * labels).sum() + 1e-6) / (p.sum() + labels.sum() + 1e-6)
    assert loss.dice.item() == pytest.approx(dice.item(), rel=1e-12)
    assert torch.equal(loss.contrastive, contrastive(embedding, labels > 0.5))
    hard = labels > 0.5
    for name, value in vars(head_loss(logits, embedding, hard.double())).items():
        assert torch.equal(value, getattr(head_loss(logits, embedding, hard), name))


def test_labels_of_selfment_are_trained_on_as_they_are(
    folder: Path, labels: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    seen = spied(monkeypatch)
    # The untrained head has learned nothing, which is exit code 1 or not: no matter here.
    _, err = train(capsys, folder, tmp_path / "run", "--labels", labels)
    assert "trained on 6 images, 0 failed" in err
    assert "left out" not in err
    assert "all background" not in err
    for name, shares in seen.items():
        mask = np.asarray(Image.open(labels / name))
        assert shares.dtype == torch.float32
        expected = area_averages(mask, (6, 6)).ravel() / 255
        np.testing.assert_allclose(shares, expected, atol=1e-6)
    assert sorted(seen) == sorted(path.name for path in folder.iterdir())
    assert any(((shares > 0) & (shares < 1)).any() for shares in seen.values())
    record = json.loads((tmp_path / "run/settings.json").read_text())
    assert record["labels_folder"] == str(labels)
    assert len(record["settings"]["labels"]) == 40
    assert "method" not in record["settings"]


def test_a_head_learns_the_masks_and_not_the_labels_of_the_labeler(
    folder: Path, tmp_path: Path, capsys
) -> None:
    """The masks are the complements of the objects, at a third of the size, in other files."""
    masks = tmp_path / "masks"
    masks.mkdir()
    for path in folder.iterdir():
        pixels = np.asarray(Image.open(path))
        ground = (pixels.max(axis=2) < 90).astype(np.uint8) * 255
        picture = Image.fromarray(ground).resize((21, 21), Image.Resampling.BOX)
        picture.save(masks / f"{path.stem}_mask.tif")
    code, err = train(capsys, folder, tmp_path / "run", "--labels", masks, "--epochs", 40)
    assert code == 0, err
    assert float(err.split("at IoU ")[1][:4]) > 0.9
    assert load_head(tmp_path / "run/head")[1].settings["labels"]
    assert str(tmp_path) not in (tmp_path / "run/head/config.json").read_text()


def test_every_count_is_told(folder: Path, tmp_path: Path, capsys) -> None:
    masks = boxes(tmp_path / "masks", ["00.png", "99.png"])
    Image.new("L", (64, 64)).save(masks / "01.png")
    boxes(masks, ["02.png"], (48, 64))
    (masks / "03.png").write_bytes(b"not an image")
    numbers = np.zeros((64, 64), np.uint8)
    numbers[10:30, 10:30], numbers[40:60, 20:50] = 1, 2
    Image.fromarray(numbers).save(masks / "04.png")
    code, err = train(capsys, folder, tmp_path / "run", "--labels", masks)
    assert code == 1
    assert (
        f"{masks / '02.png'} must have the aspect ratio of its image: got 48 x 64 pixels for the "
        f"64 x 64 of {folder / '02.png'}" in err
    )
    assert f"cannot read {masks / '03.png'}: not an image that Pillow knows" in err
    assert "trained on 3 images, 2 failed" in err
    assert "images left out: 1 without a label\n" in err
    assert "images trained on as all background: 1 with an empty label\n" in err
    assert f"images without a mask in {masks}: 1, as 05.png\n" in err
    assert "masks there without an image: 1, as 99.png\n" in err
    assert "not plain black and white: 1, as 04.png (ground truth of objects with numbers" in err
    assert "training: 6 steps on 3 images" in err


def test_masks_of_several_objects_are_foreground(
    folder: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    out = tmp_path / "objects"
    options = ("--size", 96, "--objects", 3)
    assert call(capsys, "label", folder, "--out", out, *options)[0] == 0
    seen = spied(monkeypatch)
    train(capsys, folder, tmp_path / "run", "--labels", out)
    assert len(seen) == 6
    for name, shares in seen.items():
        foreground = (np.asarray(Image.open(out / name)) > 0).astype(np.uint8)
        np.testing.assert_allclose(shares, area_averages(foreground, (6, 6)).ravel(), atol=1e-6)


def test_a_part_of_a_labelled_folder_and_a_turned_photograph(
    tmp_path: Path, capsys, monkeypatch
) -> None:
    photos = pictures(tmp_path / "photos/sub", 2).parent
    pictures(photos, 1)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.open(photos / "00.png").crop((0, 0, 64, 40)).save(photos / "t.jpg", exif=turned)
    labels = tmp_path / "labels"
    assert call(capsys, "label", photos, "--out", labels, "--size", 96)[0] == 0
    seen = spied(monkeypatch)
    _, err = train(capsys, photos / "sub", tmp_path / "part", "--labels", labels)
    assert sorted(seen) == ["00.png", "01.png"]
    seen.clear()
    _, err = train(capsys, photos, tmp_path / "whole", "--labels", labels)
    assert sorted(seen) == ["00.png", "sub/00.png", "sub/01.png", "t.jpg"]
    assert "trained on 4 images, 0 failed" in err


@pytest.mark.parametrize("existing", [True, False], ids=["masks", "labeler"])
def test_rejected_images_are_counted_and_can_be_left_out(
    folder: Path, labels: Path, tmp_path: Path, capsys, existing: bool
) -> None:
    if existing:
        reject(labels, "01.png", "03.png", "04.png")
        boxes(labels, ["03.png"])  # redrawn by hand
        options = ("--labels", labels)
        expected = 2
    else:
        confidences = [
            json.loads(line)["confidence"]
            for line in (labels / "labels.jsonl").read_text().splitlines()
        ]
        options = ("--min-confidence", sorted(confidences)[2])
        expected = 2
    _, err = train(capsys, folder, tmp_path / "all", *options)
    assert "trained on 6 images, 0 failed" in err
    assert f"images trained on as all background: {expected} rejected by the labeler\n" in err
    for cached in ("--no-cache", "--cache-limit=1"):
        out = tmp_path / cached
        _, err = train(capsys, folder, out, *options, "--drop-rejected", cached)
        assert "trained on 4 images, 0 failed" in err
        assert f"images left out: {expected} rejected\n" in err
    # Labels in the cache know it, too.
    cache = ("--cache", tmp_path / "all/cache")
    _, err = train(capsys, folder, tmp_path / "again", *options, "--drop-rejected", *cache)
    assert "trained on 4 images, 0 failed" in err
    assert equal(tmp_path / "--no-cache", tmp_path / "again")


def test_rejected_images_take_no_place_of_others(
    folder: Path, labels: Path, tmp_path: Path, capsys
) -> None:
    reject(labels, "00.png", "01.png", "03.png")
    options = ("--labels", labels, "--drop-rejected", "--max-images", 3)
    _, err = train(capsys, folder, tmp_path / "out", *options)
    assert "trained on 3 images, 0 failed" in err
    assert "images left out: 3 more than --max-images\n" in err
    assert {row["image"] for row in steps(tmp_path / "out")} == {"02.png", "04.png", "05.png"}
    reject(labels, *(f"{number:02}.png" for number in range(6)))
    code, err = train(capsys, folder, tmp_path / "none", *options)
    assert code == 2
    assert "`drop_rejected` must leave an image to train on: all 3 were rejected" in err


def test_only_the_named_images(folder: Path, labels: Path, tmp_path: Path, capsys) -> None:
    chosen = tmp_path / "chosen.txt"
    chosen.write_bytes(b"\xef\xbb\xbf# accepted\r\n02.png\r\n\r\n  05.png \r\n02.png\n")
    assert read_names(chosen) == ["02.png", "05.png", "02.png"]
    for name, options in (("new", ()), ("masks", ("--labels", labels))):
        _, err = train(capsys, folder, tmp_path / name, "--only", chosen, *options)
        assert "trained on 2 images, 0 failed" in err
        assert "images left out: 4 not named by --only\n" in err
        assert {row["image"] for row in steps(tmp_path / name)} == {"02.png", "05.png"}
    _, err = train(capsys, folder, tmp_path / "most", "--only", chosen, "--max-images", 1)
    assert "images left out: 4 not named by --only, 1 more than --max-images\n" in err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ("--only", "names"),
            "`only` must hold names of images relative to the folder that is searched, as "
            "'00.png': no image is named 'a.png', 'b.png', 'c.png' and 1 more",
        ),
        (("--only", "empty"), "`only` must be a text file that names an image at least: got "),
        (("--only", "nothing.txt"), "`only` must be a text file of names: got 'nothing.txt' (No "),
        (("--labels", "nowhere"), "`labels` must be a folder that exists: got 'nowhere'"),
        (("--labels", "others"), "`labels` must hold a mask of an image: "),
        (
            ("--labels", "others", "--drop-rejected"),
            "`drop_rejected` must come with the labels of `selfment label`, whose records say what",
        ),
        (
            ("--labels", "others", "--tau", "0.3"),
            "`tau` must be left alone with `labels`, which exist already: got 0.3",
        ),
        (
            ("--labels", "others", "--method", "tokencut"),
            "`method` must be left alone with `labels`, which exist already: got 'tokencut'",
        ),
        (("--labels", "bare"), "`labels` must be a folder with images: the folder "),
        (("--labels", "two"), "`labels` must hold one file of each stem: got 00.bmp and 00.png in"),
    ],
)
def test_wrong_options_are_one_sentence(
    folder: Path, tmp_path: Path, capsys, monkeypatch, options: tuple[str, ...], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("names").write_text("a.png\n00.png\nb.png\nc.png\nd.png")
    Path("empty").write_text("\n# nothing\n")
    boxes(Path("others"), ["x.png"])
    Path("bare").mkdir()
    boxes(Path("two"), ["00.png", "00.bmp"])
    code, err = train(capsys, folder, tmp_path / "run", *options)
    assert code == 2
    assert err.splitlines()[-1].startswith(f"selfment train: {sentence}")
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_must_have_the_same_masks(folder: Path, labels: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(folder, out, labels=labels, epochs=1)
    moved = tmp_path / "moved"
    shutil.copytree(labels, moved)
    assert run(folder, out, labels=moved, epochs=2, resume=True).steps == 6
    boxes(moved, ["03.png"])
    sentence = "must have the labels of the training it goes on with: that of 03.png has changed"
    with pytest.raises(ValueError, match=sentence):
        run(folder, out, labels=moved, epochs=3, resume=True)
    with pytest.raises(ValueError, match="they were masks that exist, are the labeler's"):
        run(folder, out, epochs=3, resume=True)
    names = [path.name for path in folder.iterdir() if path.name != "05.png"]
    with pytest.raises(ValueError, match=r"05\.png is missing, or cannot be labelled now"):
        run(folder, out, labels=labels, only=names, epochs=3, resume=True)
    run(folder, tmp_path / "whole", labels=labels, epochs=2)
    assert equal(out, tmp_path / "whole")


def test_other_photographs_of_the_same_names_are_told(labels: Path, tmp_path: Path, capsys) -> None:
    other = pictures(tmp_path / "other", 6, size=80)
    _, err = train(capsys, other, tmp_path / "run", "--labels", labels)
    assert (
        "images with the name of a labelled one, but other bytes, whose mask is used: 6, as 00.png"
        in err
    )


@pytest.mark.slow
def test_two_processes(folder: Path, tmp_path: Path) -> None:
    masks = boxes(tmp_path / "masks", [f"0{n}.png" for n in range(5)])
    boxes(masks, ["03.png"], (30, 64))
    words = ("train", folder, "--out", tmp_path / "run", "--size", 96, "--threads", 1)
    words += ("--epochs", 1, "--labels", masks)
    done = processes.torchrun(tmp_path, "-m", "selfment", *map(str, words))
    assert done.returncode == 1
    assert done.stderr.count("trained on 4 images, 1 failed, 2 steps") == 1
    assert "images left out: 1 without a label" in done.stderr
    assert {row["image"] for row in steps(tmp_path / "run")} <= {f"0{n}.png" for n in (0, 1, 2, 4)}
