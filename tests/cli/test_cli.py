"""The command line: exit codes, and one sentence for each error."""

from __future__ import annotations

import json
import os
import shlex
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import selfment
from helpers import processes
from helpers.commands import call
from selfment import CutOptions, backbones
from selfment.cli import COMMANDS, choices, parser
from selfment.evaluation.scores import PROTOCOLS
from selfment.images.refine import METHODS as REFINEMENTS
from selfment.jobs.exports import FORMATS
from selfment.methods import METHODS, Selfment
from selfment.shards.formats import FORMATS as OUTPUTS

DINOV3 = "vit_small_patch16_dinov3.lvd1689m"


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.RandomState(0).randint(0, 255, (40, 60, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_version(capsys):
    assert call(capsys, "--version") == (0, f"selfment {selfment.__version__}\n", "")


@pytest.mark.parametrize("words", [["--version"], ["--help"], *([c, "--help"] for c in COMMANDS)])
def test_help_appears_without_importing_torch(words):
    code = f"""
import sys
from selfment.cli import main
try:
    main({words})
except SystemExit as end:
    assert end.code == 0
assert not {{"torch", "timm", "numpy", "PIL"}} & set(sys.modules)
"""
    assert processes.run([sys.executable, "-c", code], check=True).stdout


def test_the_choices_are_those_of_the_package():
    assert choices.DTYPES == backbones.DTYPES
    assert choices.FEATURES == backbones.FEATURES
    assert choices.POSITIONS == backbones.POSITIONS
    assert tuple(METHODS) == choices.METHODS
    assert choices.FORMATS == FORMATS
    assert choices.REFINEMENTS == REFINEMENTS
    assert choices.OUTPUTS == OUTPUTS
    assert tuple(PROTOCOLS) == choices.PROTOCOLS


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_has_examples_that_parse(capsys, command):
    examples = call(capsys, command, "--help")[1].partition("examples:")[2].split("\n")
    lines = [line.strip() for line in examples if line.strip()]
    assert lines
    for line in lines:
        program, *words = shlex.split(line)
        assert (program, parser(words).parse_args(words).command) == ("selfment", command)


@pytest.mark.parametrize("out", ["gs:/x", ""])
def test_what_looks_like_a_url_is_no_output_folder(capsys, photo, tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(capsys, "label", photo, "--out", out)
    assert (code, err.splitlines()[-1]) == (
        2,
        f"selfment label: `out` must be a path on this machine: got {out!r}",
    )
    report = ("--pred", tmp_path, "--gt", tmp_path, "--report", out)
    assert call(capsys, "eval", *report)[::2] == (
        2,
        f"selfment eval: `report` must be a path on this machine: got {out!r}\n",
    )
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--workers", "2"], "`workers` must be left alone without --engine ray: got 2"),
        (["--address", "auto"], "`address` must be left alone without --engine ray: got 'auto'"),
        (["--engine", "ray", "--workers", "0"], "`workers` must be an integer >= 1: got 0"),
        (["--engine", "ray", "--threads", "0"], "`threads` must be an integer >= 1: got 0"),
        (
            ["--engine", "ray", "--gpus", "1.5"],
            "`gpus` must be a share of one GPU, or a whole number of GPUs: got 1.5",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_of_ray(capsys, photo, tmp_path, words, sentence):
    expected = (2, "", f"selfment label: {sentence}\n")
    assert call(capsys, "label", photo, "--out", tmp_path / "out", *words) == expected
    words = ["--head", photo, "--out", tmp_path / "out", *words]
    assert call(capsys, "predict", photo, *words)[2].endswith(f"selfment predict: {sentence}\n")


def test_ray_starts_no_processes_under_torchrun(capsys, photo, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = ("label", photo, "--out", tmp_path / "out", "--engine", "ray")
    sentence = "selfment label: `engine` must be left alone under torchrun: got 'ray'\n"
    assert call(capsys, *words) == (2, "", sentence)


def test_info(capsys):
    code, out, _ = call(capsys, "info")
    assert code == 0
    assert torch.__version__ in out
    assert selfment.__version__ in out
    assert "CUDA" in out


def test_label_samples_with_overlays(capsys, tmp_path):
    out = tmp_path / "out"
    code, printed, err = call(
        capsys, "label", "--samples", "--out", out, "--size", 160, "--overlay", "--batch", 2
    )
    assert (code, printed) == (0, "")
    assert "DINO" in err
    assert "image/s" in err
    assert f"5 labelled, 0 already done, 0 failed; see {out}/labels.jsonl" in err
    assert Image.open(out / "astronaut.png").size == (512, 512)
    assert (out / "overlays/chelsea.jpg").is_file()


def test_options_reach_the_labeler(capsys, photo, tmp_path):
    options = ("--size", 96, "--tau", 0.3, "--eps", 1e-4, "--graph", "weighted", "--orient", "seed")
    assert call(capsys, "label", photo, "--out", tmp_path / "out", *options)[0] == 0
    expected = selfment.PseudoLabeler(
        size=96, method=Selfment(CutOptions(tau=0.3, eps=1e-4, graph="weighted", orient="seed"))
    )
    found = json.loads((tmp_path / "out/labels.jsonl").read_text())
    assert found["eigenvalue"] == expected(photo).eigenvalue.item()


def test_automatic_threshold_and_rejection(capsys, photo, tmp_path):
    options = ("--size", 96, "--tau", "auto", "--min-confidence", 0.9)
    assert call(capsys, "label", photo, "--out", tmp_path / "out", *options)[0] == 0
    expected = selfment.PseudoLabeler(size=96, method=Selfment(CutOptions(tau="auto")))(photo)
    found = json.loads((tmp_path / "out/labels.jsonl").read_text())
    assert found["tau"] == expected.tau.item()
    assert found["confidence"] == expected.confidence.item() < 0.9
    assert found["rejected"]
    assert not np.asarray(Image.open(tmp_path / "out/photo.png")).any()
    options = ("--size", 96, "--min-confidence", 2)
    code, _, err = call(capsys, "label", photo, "--out", tmp_path / "out", *options)
    assert code == 2
    assert "`min_confidence` must be in [0, 1]: got 2.0" in err


def test_a_failed_image_is_exit_code_1(capsys, photo, tmp_path):
    (tmp_path / "bad.png").write_text("not an image")
    code, _, err = call(
        capsys, "label", f"{tmp_path}/*.png", "--out", tmp_path / "out", "--size", 96
    )
    assert code == 1
    assert "bad.png: not an image that Pillow knows" in err
    assert "1 labelled, 0 already done, 1 failed" in err
    assert "Traceback" not in err


def test_a_local_checkpoint(capsys, photo, tmp_path):
    timm = pytest.importorskip("timm")
    torch.save(timm.create_model("vit_tiny_patch16_224").state_dict(), tmp_path / "tiny.pth")
    options = ("--backbone", "vit_tiny_patch16_224", "--weights", tmp_path / "tiny.pth")
    options += ("--features", "keys", "--dtype", "bfloat16", "--size", 96)
    code, _, err = call(capsys, "label", photo, "--out", tmp_path / "out", *options)
    assert (code, "DINO" in err) == (0, False)
    assert Image.open(tmp_path / "out/photo.png").size == (60, 40)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["label", "--out", "OUT"], "give either the images to label, INPUT..., or --samples"),
        (["label", "PHOTO", "--samples", "--out", "OUT"], "give either the images to label"),
        (["label", "PHOTO"], "the following arguments are required: --out"),
        (["label", "absent", "--out", "OUT"], "no such file or folder: 'absent'"),
        (["label", "PHOTO", "--out", "PHOTO/out"], "`out` must be a folder that can be written"),
        (["label", "PHOTO", "--out", "OUT", "--size", "100"], "`size` must be a multiple of 16"),
        (
            ["label", "PHOTO", "--out", "OUT", "--tau", "x"],
            "argument --tau: must be a number or 'auto': got 'x'",
        ),
        (["label", "PHOTO", "--out", "OUT", "--eps", "2"], "`eps` must be in [1e-30, 1): got 2.0"),
        (["label", "PHOTO", "--out", "OUT", "--threads", "0"], "`threads` must be an integer >= 1"),
        (["label", "PHOTO", "--out", "OUT", "--graph", "full"], "argument --graph: invalid choice"),
        (["label", "PHOTO", "--out", "OUT", "--backbone", "resnet50"], "plain ViT of timm"),
        (
            ["label", "PHOTO", "--out", "OUT", "--backbone", DINOV3, "--weights", "absent.pth"],
            "absent.pth' does not exist",
        ),
        (["paint"], "invalid choice: 'paint'"),
        (
            ["label", "PHOTO", "--out", "OUT", "--steps", "5"],
            "selfment label: unrecognized arguments: --steps 5; see selfment label --help",
        ),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_usage_errors_are_one_sentence(capsys, photo, tmp_path, arguments, sentence):
    places = {"PHOTO": str(photo), "OUT": str(tmp_path / "out")}
    given = [places.get(part, part.replace("PHOTO", str(photo))) for part in arguments]
    code, out, err = call(capsys, *given)
    errors = [line for line in err.splitlines() if not line.startswith("note:")]
    assert (code, out, len(errors)) == (2, "", 1)
    assert errors[0].startswith("selfment")
    assert sentence in errors[0]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            "train . --out run --no-cache --cache kept",
            "train: `cache` must be left alone with --no-cache: got 'kept'",
        ),
        (
            "train . --out run --no-cache --cache-limit 1",
            "train: `cache_limit` must be left alone with --no-cache: got 1.0",
        ),
        (
            "compare . --out out --tau 0.1,0.2 --workers 2",
            "compare: `workers` must be left alone with several thresholds, --tau 0.1,0.2: got 2",
        ),
        (
            "eval --pred . --gt . --pictures 3",
            "eval: `pictures` must be left alone without a page, --report F.html: got 3",
        ),
        ("reproduce cod --list", "reproduce: `recipe` must be left alone with --list: got 'cod'"),
        ("label . --out out --objects 0", "label: `objects` must be an integer >= 1: got 0"),
        ("label . --out out --batch 0", "label: `batch` must be an integer >= 1: got 0"),
    ],
)
def test_options_without_effect_and_their_names(capsys, photo, monkeypatch, words, sentence):
    monkeypatch.chdir(photo.parent)
    code, out, err = call(capsys, *words.split())
    assert (code, out, err.splitlines()[-1]) == (2, "", f"selfment {sentence}")
    assert sorted(path.name for path in photo.parent.iterdir()) == ["photo.png"]


@pytest.mark.skipif(not os.path.exists("/proc/self"), reason="the system has no /proc")
@pytest.mark.parametrize("place", ["/dev/null", "/proc/x"])
@pytest.mark.parametrize(
    ("words", "argument"),
    [
        ("label . --out", "`out` must be a folder"),
        ("label . --to tar --out", "`out` must be a folder"),
        ("train . --size 96 --out", "`out` must be a folder"),
        ("compare . --tau 0.1,0.2 --out", "`out` must be a folder"),
        ("compare photo.png --gt gt --size 96 --out", "`out` must be a folder"),
        ("eval --pred . --gt . --json", "`json` must be a file"),
    ],
)
def test_an_output_that_cannot_be_written_is_named(
    capsys, photo, monkeypatch, words, argument, place
):
    monkeypatch.chdir(photo.parent)
    if "--gt gt" in words:
        (photo.parent / "gt").mkdir()
        Image.open(photo).convert("1").save(photo.parent / "gt/photo.png")
    code, _, err = call(capsys, *words.split(), place)
    assert code == 2
    assert f"{argument} that can be written: got {place!r} (" in err.splitlines()[-1]


def test_interrupt_is_exit_code_130(capsys, photo, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(selfment.PseudoLabeler, "start_batch", interrupt)
    code, _, err = call(capsys, "label", photo, "--out", tmp_path / "out", "--size", 96)
    assert code == 130
    assert err.endswith("selfment label: interrupted; what was done is kept\n")


def test_threads(capsys, photo, tmp_path):
    before = torch.get_num_threads()
    try:
        options = ("--size", 96, "--threads", 1)
        assert call(capsys, "label", photo, "--out", tmp_path / "out", *options)[0] == 0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_the_module_runs_without_a_network(photo, tmp_path):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)}
    command = [sys.executable, "-m", "selfment", "label", photo, "--out", tmp_path / "out"]
    done = processes.run(
        [*command, "--backbone", DINOV3],
        env=environment,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"selfment label: the weights of {DINOV3} cannot be downloaded")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_module_that_cannot_load_is_one_error_and_info_says_why(photo, tmp_path):
    def selfment(*arguments):
        return processes.run(
            [sys.executable, "-m", "selfment", *arguments],
            env={**os.environ, "SELFMENT_ISA": "sse9"},
        )

    reason = "SELFMENT_ISA must be one of avx512vnni, avx512, avx2, portable: got 'sse9'"
    label = selfment("label", str(photo), "--out", str(tmp_path / "out"))
    assert (label.returncode, label.stderr) == (2, f"selfment label: {reason}\n")
    info = selfment("info")
    assert info.returncode == 0
    assert reason in info.stdout
