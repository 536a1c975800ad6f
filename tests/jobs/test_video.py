"""Videos: frames, sizes, times, content, and files that are broken or cut short."""

from __future__ import annotations

import io
import json
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.folders import SHARED
from helpers.heads import a_head
from helpers.videos import SIZE, decoded, pattern, turned, video
from selfment import Segmenter, cli
from selfment.images.video import VideoError
from selfment.jobs.predict import PredictionSummary, find_inputs, predict_images
from selfment.jobs.video import segment_video
from selfment.models.head import HeadInfo, save_head

av = pytest.importorskip("av")


@pytest.fixture
def segmenter():
    return Segmenter(a_head(), "classic", 64, batch_size=5)


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "h264"), ("mkv", "h264"), ("avi", "mpeg4")])
def test_each_frame_has_its_saliency(segmenter, tmp_path, suffix, codec):
    source = video(tmp_path / f"in.{suffix}", codec=codec)
    summary = segment_video(source, tmp_path / "out.mp4", segmenter, progress=False)
    assert (summary.frames, summary.size, summary.rate) == (12, SIZE, 10)
    frames, times = decoded(tmp_path / "out.mp4")
    assert times == pytest.approx([index / 10 for index in range(12)])
    with av.open(str(source)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    for frame, picture in zip(frames, pictures, strict=True):
        expected = 255 * segmenter(picture).numpy()
        assert expected.std() > 15
        assert np.abs(frame - expected[..., None]).max() < 12
        assert np.abs(frame - expected[..., None]).mean() < 2


def test_times_that_are_not_even_are_kept(segmenter, tmp_path):
    times = [0, 1, 2, 7, 8, 20]
    source = video(tmp_path / "in.mp4", times)
    segment_video(source, tmp_path / "out.mp4", segmenter, progress=False)
    assert decoded(tmp_path / "out.mp4")[1] == pytest.approx([time / 10 for time in times])


@pytest.mark.parametrize("keep_aspect", [False, True])
def test_odd_sizes_are_rounded_to_even(tmp_path, keep_aspect):
    source = video(tmp_path / "in.mkv", range(3), size=(51, 37))
    segmenter = Segmenter(a_head(), "classic", 64, keep_aspect=keep_aspect)
    summary = segment_video(
        source, tmp_path / "s.mp4", segmenter, overlay=tmp_path / "o.mp4", progress=False
    )
    assert (summary.size, summary.frames) == ((51, 37), 3)
    for name in ("s.mp4", "o.mp4"):
        assert [frame.shape for frame in decoded(tmp_path / name)[0]] == [(36, 50, 3)] * 3


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_constant_saliency_keeps_its_level(tmp_path, share):
    head = a_head()
    for parameter in head.classifier.parameters():
        parameter.data.zero_()
    head.classifier.bias.data[:] = torch.tensor([1 - share, share]).clamp(min=1e-9).log()
    source = video(tmp_path / "in.mp4", range(4))
    outputs = {name: tmp_path / f"{name}.mp4" for name in ("saliency", "mask", "overlay")}
    segmenter = Segmenter(head, "classic", 64)
    segment_video(source, segmenter=segmenter, threshold=0.2, progress=False, **outputs)
    found = {name: np.stack(decoded(path)[0]) for name, path in outputs.items()}
    assert np.abs(found["saliency"] - 255.0 * share).max() <= 2
    assert np.abs(found["mask"] - 255.0 * (share > 0.2)).max() <= 2
    # The dark part of the pattern: tinted where the saliency exceeds the threshold, else darkened.
    tinted, darkened = 0.45 * 40 + 0.55 * np.array([255, 56, 92]), 0.65 * 40
    expected = tinted if share > 0.2 else darkened
    assert np.abs(found["overlay"][:, 48:, 64:].mean((0, 1, 2)) - expected).max() < 8


def test_rotation_is_undone(segmenter, tmp_path):
    source = video(tmp_path / "in.mp4", range(2))
    turned(source)
    overlay = tmp_path / "overlay.mp4"
    summary = segment_video(source, tmp_path / "s.mp4", segmenter, overlay=overlay, progress=False)
    assert (summary.size, summary.rotation) == ((64, 96), -90)
    upright = decoded(overlay)[0][0].astype(int)
    reddish = upright[..., 0] - upright[..., 2]
    # The bright patch was at the upper left.
    assert reddish[:30, 34:].mean() > reddish[40:, :30].mean() + 20
    frames, _ = decoded(tmp_path / "s.mp4")
    assert frames[0].shape == (96, 64, 3)


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "h264"), ("mkv", "h264"), ("avi", "mpeg4")])
def test_a_video_that_is_cut_short_leaves_nothing(segmenter, tmp_path, suffix, codec):
    source = video(tmp_path / f"in.{suffix}", range(30), codec=codec)
    data = source.read_bytes()
    source.write_bytes(data[: len(data) * 2 // 3])
    (tmp_path / "out").mkdir()
    with pytest.raises(VideoError, match=rf"cannot read .*in\.{suffix}: [^\n]+$"):
        segment_video(source, tmp_path / "out/s.mp4", segmenter, progress=False)
    assert not list((tmp_path / "out").iterdir())


def with_sound(path: Path, frames: int, seconds: float, *, late: int = 0, rate: int = 10) -> Path:
    """A video whose sound lasts ``seconds``, in packets between those of the pictures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        webm = path.suffix == ".webm"
        avi = path.suffix == ".avi"
        video_codec = "libvpx" if webm else "mpeg4" if avi else "h264"
        pictures = container.add_stream(video_codec, rate=rate)
        pictures.width, pictures.height = SIZE
        pictures.pix_fmt = "yuv420p"
        codecs = {".webm": "libopus", ".avi": "mp2"}
        sound = container.add_stream(codecs.get(path.suffix, "aac"), rate=48000)
        sound.layout = "mono"
        packets = []
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(pattern(index), format="rgb24")
            frame.pts, frame.time_base = late + index, Fraction(1, rate)
            packets += pictures.encode(frame)
        packets += pictures.encode(None)
        step, kind = (1152, "s16p") if avi else (960, "fltp")
        for start in range(0, int(48000 * seconds), step):
            tone = np.sin(np.arange(start, start + step)[None] / 20)
            tone = (9000 * tone).astype(np.int16) if avi else tone.astype(np.float32)
            noise = av.AudioFrame.from_ndarray(tone, format=kind, layout="mono")
            noise.pts, noise.time_base, noise.sample_rate = start, Fraction(1, 48000), 48000
            packets += sound.encode(noise)
        packets += sound.encode(None)
        packets.sort(key=lambda packet: packet.dts * packet.time_base)
        container.mux(packets)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["mkv", "webm"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.8])
def test_a_video_with_sound_that_is_cut_short_is_no_success(segmenter, tmp_path, suffix, share):
    source = with_sound(tmp_path / f"in.{suffix}", 100, 10)
    data = source.read_bytes()
    source.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(VideoError, match=r"cut short, after \d+\.\d of 10\.0 seconds"):
        segment_video(source, tmp_path / "s.mp4", segmenter, progress=False)
    assert not (tmp_path / "s.mp4").exists()


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.3, 0.6, 0.8])
def test_an_avi_with_sound_that_is_cut_short_is_no_success(segmenter, tmp_path, share):
    source = with_sound(tmp_path / "in.avi", 100, 10)
    assert segment_video(source, tmp_path / "s.mp4", segmenter, progress=False).frames == 100
    data = source.read_bytes()
    source.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(VideoError, match=r"cut short, after \d+ of 100 frames|cut short$"):
        segment_video(source, tmp_path / "t.mp4", segmenter, progress=False)
    assert not (tmp_path / "t.mp4").exists()


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["mkv", "webm", "mp4", "mov"])
@pytest.mark.parametrize(("seconds", "late"), [(3, 0), (9, 0), (1, 0), (3, 25)])
def test_whole_videos_with_sound_are_whole(segmenter, tmp_path, suffix, seconds, late):
    """Sound as long as the pictures, longer, shorter, and pictures that begin later."""
    source = with_sound(tmp_path / f"in.{suffix}", 30, seconds, late=late)
    assert segment_video(source, tmp_path / "s.mp4", segmenter, progress=False).frames == 30


@pytest.mark.slow
def test_videos_of_the_cases(segmenter, tmp_path):
    folder = SHARED / "cases/video"
    if not folder.is_dir():
        pytest.skip(f"no videos that are whole and cut: {folder} is missing")
    for source in sorted(folder.iterdir()):
        if "cut" in source.stem:
            with pytest.raises(VideoError, match=r"cut short, after 2\.\d of 5\.0 seconds"):
                segment_video(source, tmp_path / "s.mp4", segmenter, progress=False)
        else:
            assert segment_video(source, tmp_path / "s.mp4", segmenter, progress=False).frames == 60


def test_sound_with_a_cover_picture_is_no_video(segmenter, tmp_path):
    sound, cover = io.BytesIO(), io.BytesIO()
    with av.open(sound, "w", format="mp3") as container:
        stream = container.add_stream("mp3", rate=44100)
        noise = av.AudioFrame.from_ndarray(
            np.zeros((1, 1152), np.float32), format="fltp", layout="mono"
        )
        noise.sample_rate = 44100
        for _ in range(60):
            container.mux(stream.encode(noise))
        container.mux(stream.encode(None))
    Image.fromarray(pattern(0)).save(cover, "JPEG")
    picture = b"\0image/jpeg\0\3\0" + cover.getvalue()
    frame = b"APIC" + len(picture).to_bytes(4, "big") + b"\0\0" + picture
    size = bytes(len(frame) >> shift & 127 for shift in (21, 14, 7, 0))
    (tmp_path / "a.mp4").write_bytes(b"ID3\3\0\0" + size + frame + sound.getvalue())
    with pytest.raises(VideoError, match="it holds no video, only sound and a cover picture"):
        segment_video(tmp_path / "a.mp4", tmp_path / "s.mp4", segmenter, progress=False)


def test_without_an_encoder_nothing_begins(segmenter, tmp_path, monkeypatch):
    def missing(name, mode):
        raise av.codec.codec.UnknownCodecError(name)

    source = video(tmp_path / "a.mp4", range(3))
    monkeypatch.setattr(av.codec, "Codec", missing)
    with pytest.raises(ImportError, match=r"H\.264, which the PyAV installed here cannot encode"):
        predict_images(find_inputs([source]), tmp_path / "out", segmenter, progress=False)
    assert not list((tmp_path / "out").rglob("*.mp4"))


@pytest.mark.parametrize("content", [b"", b"not a video at all" * 100, None])
def test_what_is_no_video(segmenter, tmp_path, content):
    if content is not None:
        (tmp_path / "in.mp4").write_bytes(content)
    with pytest.raises(VideoError, match=r"cannot read .*in\.mp4: "):
        segment_video(tmp_path / "in.mp4", tmp_path / "s.mp4", segmenter, progress=False)
    assert not (tmp_path / "s.mp4").exists()


def test_a_video_fails_whole_when_the_model_does(tmp_path):
    class Failing(Segmenter):
        passes = 0

        def saliency_batch(self, batch):
            self.passes += 1
            if self.passes == 3:
                raise RuntimeError("out of memory\nand more")
            return super().saliency_batch(batch)

    source = video(tmp_path / "in/a.mp4")
    segmenter = Failing(a_head(), "classic", 64, batch_size=2)
    out = tmp_path / "out"
    summary = predict_images(find_inputs([source]), out, segmenter, progress=False, overlays=True)
    assert summary == PredictionSummary(failed=1)
    record = json.loads((out / "predictions.jsonl").read_text())
    assert record["error"] == f"cannot segment {source}: out of memory"
    assert [path for path in out.rglob("*") if path.is_file()] == [out / "predictions.jsonl"]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_video(tmp_path):
    class Watching(Segmenter):
        prepared = computed = most = 0

        def preprocess(self, image):
            self.prepared += 1
            self.most = max(self.most, self.prepared - self.computed)
            return super().preprocess(image)

        def saliency_batch(self, batch):
            assert len(batch) <= 4
            self.computed += len(batch)
            return super().saliency_batch(batch)

    segmenter = Watching(a_head(), "classic", 64, batch_size=4)
    source = video(tmp_path / "in.mp4", range(60))
    assert segment_video(source, tmp_path / "s.mp4", segmenter, progress=False).frames == 60
    assert segmenter.most <= 8


def test_predict_takes_folders_of_both(capsys, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    video(folder / "sub/clip.MP4")
    (folder / "broken.mov").write_bytes(b"nothing")
    Image.fromarray(pattern(0)).save(folder / "photo.png")
    save_head(tmp_path / "head", a_head(), HeadInfo("classic"))
    command = ["predict", str(folder), "--head", str(tmp_path / "head"), "--out", str(out)]
    command += ["--size", "64", "--overlay", "--binary", "0.5"]
    assert cli.main(command) == 1
    err = capsys.readouterr().err
    assert f"cannot read {folder}/broken.mov: " in err
    assert "2 segmented, 0 already done, 1 failed" in err
    lines = map(json.loads, (out / "predictions.jsonl").read_text().splitlines())
    record = {Path(line["image"]).name: line for line in lines}["clip.MP4"]
    assert (record["saliency"], record["frames"], record["fps"]) == (
        "sub/clip_saliency.mp4",
        12,
        10,
    )
    for name in (record["saliency"], record["mask"], record["overlay"]):
        assert len(decoded(out / name)[0]) == 12
    (folder / "broken.mov").unlink()
    assert cli.main(command) == 0
    assert "0 segmented, 2 already done, 0 failed" in capsys.readouterr().err


def test_without_pyav_only_videos_fail(tmp_path, monkeypatch, segmenter, capsys):
    monkeypatch.setitem(sys.modules, "av", None)
    Image.fromarray(pattern(0)).save(tmp_path / "a.png")
    (tmp_path / "a.mp4").write_bytes(b"")
    done = predict_images(find_inputs([tmp_path]), tmp_path / "out", segmenter, progress=False)
    assert done == PredictionSummary(predicted=1, failed=1)
    needed = 'a video needs PyAV, which is missing here: pip install "selfment[video]"'
    assert f"cannot segment {tmp_path}/a.mp4: {needed}" in capsys.readouterr().err
    with pytest.raises(ImportError, match="a video needs PyAV"):
        predict_images(find_inputs([tmp_path / "a.mp4"]), tmp_path / "2", segmenter, progress=False)
