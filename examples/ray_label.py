"""Labels images on a Ray cluster or a local Ray; the job can be killed and run again.

    python examples/ray_label.py photos/ --out labels/ --workers 2
    python examples/ray_label.py /mnt/photos --out /mnt/labels --address auto --workers 64 --gpus 1

All nodes must have images and ``--out`` under the same paths. A worker labels a block of images,
writes its masks and then one file ``records/<hash>.parquet``. Each file is written under a
temporary name and moved into place, and an image is done when it has a record. So after a kill and
a restart no mask is wrong, and at most the blocks in progress are labelled again. The masks are
those of ``selfment label``: PNG files under ``masks/``, or with ``--format parquet`` the same bytes
in the column ``png`` of the records. ``read_images`` is not used, because it ignores EXIF rotation
and ends the run at the first broken image.

The exit code is 1 if images failed; the errors are on stderr and in the records, and the next run
tries these images again.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from selfment import PseudoLabeler, PseudoLabels
from selfment.images.draw import mask_image
from selfment.images.load import ImageEntry, find_images, load_image

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import ray
    from ray.data import ActorPoolStrategy, DataContext
except ImportError as error:
    sys.exit(f'ray_label: Ray is needed ({error}): pip install "selfment[ray]"')

Row = dict[str, Any]

_MAPS = ("mask", "ncut_mask", "fiedler")  # the other fields are numbers
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("image", "mask", "settings", "worker", "error")),
        *((name, pa.int64()) for name in ("bytes", "mtime_ns", "width", "height")),
        ("time", pa.float64()),  # seconds since 1970
        ("numbers", pa.string()),  # the fields of PseudoLabels that are numbers, as JSON
        ("png", pa.binary()),
    ]
)


class BlockLabeler(PseudoLabeler):
    """A PseudoLabeler that labels a block of files, and writes masks and records."""

    def __init__(self, out: str, form: str, settings: str, threads: int, **options: Any) -> None:
        super().__init__(**options)
        torch.set_num_threads(threads)
        self.out = Path(out)
        self.form = form
        self.digest = settings

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        """Labels the columns ``path`` and ``mask``; returns the count, and the errors as JSON."""
        names = zip(map(str, batch["path"]), map(str, batch["mask"]), strict=True)
        rows = [self._read(path, mask) for path, mask in names]
        good = [row for row in rows if row["error"] is None]
        for start in range(0, len(good), self.batch_size):
            self._label_rows(good[start : start + self.batch_size])
        rows = [{name: row.get(name) for name in SCHEMA.names} for row in rows]
        key = hashlib.sha256("\0".join([self.digest, *batch["path"]]).encode()).hexdigest()[:32]
        table = pa.Table.from_pylist(rows, SCHEMA)
        # All masks are written: with their records the images are done.
        place(self.out / f"records/{key}.parquet", lambda file: pq.write_table(table, file))
        errors = [row["error"] for row in rows if row["error"] is not None]
        return {"labelled": [len(rows) - len(errors)], "errors": [json.dumps(errors)]}

    def _read(self, path: str, mask: str) -> Row:
        row: Row = {"image": path, "mask": mask, "settings": self.digest, "error": None}
        row |= {"worker": f"{socket.gethostname()}:{os.getpid()}", "time": time.time()}
        try:
            stat = os.stat(path)
            row |= {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
            picture = load_image(path)[0]
            row["width"], row["height"] = picture.size
            row["pixels"] = self.preprocess(picture)
        except Exception as error:
            self._fail(row, error)
        return row

    def _label_rows(self, rows: Sequence[Row]) -> None:
        try:
            labels: Any = self.label_batch(torch.stack([row["pixels"] for row in rows]))
        except Exception as error:
            # One image must not fail the others of its batch: label each by itself.
            if len(rows) == 1:
                self._fail(rows[0], error)
            else:
                for row in rows:
                    self._label_rows([row])
            return
        for index, row in enumerate(rows):
            del row["pixels"]
            try:
                self._write(row, labels, index)
            except OSError as error:
                self._fail(row, error)

    def _write(self, row: Row, labels: PseudoLabels, index: int) -> None:
        picture = mask_image(labels.mask[index], (row["width"], row["height"]))
        data = io.BytesIO()
        picture.save(data, "PNG")
        if self.form == "parquet":
            row["png"] = data.getvalue()
        else:
            place(self.out / "masks" / row["mask"], lambda file: file.write(data.getbuffer()))
        numbers = [field.name for field in fields(labels) if field.name not in _MAPS]
        values = {name: getattr(labels, name)[index].item() for name in numbers}
        finite = {name: value if np.isfinite(value) else None for name, value in values.items()}
        row["numbers"] = json.dumps(finite)

    def _fail(self, row: Row, error: Exception) -> None:
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        path = row["image"]
        row["error"] = text if path in text else f"cannot label {path}: {text}"


def place(path: Path, write: Callable[[Any], object]) -> None:
    """Lets ``write`` fill a temporary file, then moves it to ``path`` in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            write(file)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_records(out: Path, columns: Sequence[str] | None = None) -> dict[str, Row]:
    """Returns the latest record of each image; ``columns`` are read besides image and time."""
    wanted = None if columns is None else sorted({"image", "time", *columns})
    latest: dict[str, Row] = {}
    for file in sorted((out / "records").glob("*.parquet")):
        try:
            rows = pq.read_table(file, columns=wanted).to_pylist()
        except pa.ArrowInvalid:  # truncated, for example by a power failure
            print(f"{file} cannot be read: its images are labelled again", file=sys.stderr)
            continue
        for row in rows:
            if row["time"] >= latest.get(row["image"], row)["time"]:
                latest[row["image"]] = row
    return latest


def plan(
    images: Sequence[ImageEntry], out: Path, form: str, settings: str
) -> tuple[list[tuple[str, str]], int]:
    """Returns path and mask name of the images that are left to do, and the number of done ones."""
    columns = ("mask", "settings", "error", "bytes", "mtime_ns", *(["png"] * (form == "parquet")))
    known = read_records(out, columns)
    if any(row["settings"] != settings for row in known.values()):
        # A killed run would leave masks of one kind beside records of the other.
        raise ValueError(
            f"`--out` must be used with the same settings: {out} has records of others"
        )
    owners = {row["mask"]: image for image, row in known.items()}
    for folder in {entry.path.parent for entry in images}:
        if Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(out / "masks")):
            raise ValueError(f"`--out` must not hold the inputs: got {folder}")
    left, done = [], 0
    for entry in images:
        path = str(entry.path)
        row = known.get(path)
        name = entry.mask_name if row is None else row["mask"]
        if (
            owners.setdefault(name, path) != path
        ):  # the name belongs to an image of an earlier run, from another folder
            name = f"{name[:-4]}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}.png"
        if row is not None and _is_done(row, path, out, form):
            done += 1
        else:
            left.append((path, name))
    return left, done


def _is_done(row: Row, path: str, out: Path, form: str) -> bool:
    if row["error"] is not None:
        return False
    try:
        if not (row["png"] if form == "parquet" else os.path.getsize(out / "masks" / row["mask"])):
            return False
        stat = os.stat(path)
    except OSError:
        return False
    return (stat.st_size, stat.st_mtime_ns) == (row["bytes"], row["mtime_ns"])


def blocks(jobs: Sequence[tuple[str, str]], size: int) -> Iterator[pa.Table]:
    """Yields tables of ``size`` jobs each."""
    for start in range(0, len(jobs), size):
        paths, masks = zip(*jobs[start : start + size], strict=True)
        yield pa.table({"path": list(paths), "mask": list(masks)})


def label(jobs: Sequence[tuple[str, str]], arguments: argparse.Namespace, **fixed: Any) -> Row:
    """Labels all jobs on Ray; returns the number of labels, and the errors of failed images."""
    local = arguments.address is None
    ray.init(
        address=arguments.address,
        include_dashboard=False if local else None,
        log_to_driver=False,
        **({"num_cpus": arguments.workers * arguments.threads} if local else {}),
        **({"object_store_memory": 128 << 20} if local else {}),  # it stores only paths
    )
    try:
        DataContext.get_current().enable_progress_bars = False
        dataset = ray.data.from_arrow(list(blocks(jobs, arguments.block)))
        results = dataset.map_batches(
            BlockLabeler,
            fn_constructor_kwargs=fixed,
            compute=ActorPoolStrategy(size=arguments.workers),
            batch_size=arguments.block,
            num_cpus=arguments.threads,
            num_gpus=arguments.gpus,
        )
        total: Row = {"labelled": 0, "errors": []}
        for row in results.iter_rows():
            total["labelled"] += row["labelled"]
            total["errors"] += json.loads(row["errors"])
            for sentence in json.loads(row["errors"]):
                print(sentence, file=sys.stderr)
        return total
    finally:
        ray.shutdown()


def main(argv: Sequence[str] | None = None) -> int:
    """Labels what is left to label; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="images, folders, globs")
    add("--out", required=True, metavar="DIR", help="folder for masks and records")
    add("--format", default="png", choices=("png", "parquet"), help="(%(default)s)")
    add("--address", help="address of a Ray cluster: auto, ray://... (default: start a local Ray)")
    add("--workers", type=int, default=2, metavar="N", help="(%(default)s)")
    add("--threads", type=int, default=1, metavar="N", help="per worker (%(default)s)")
    add("--gpus", type=float, default=0, metavar="X", help="per worker, e.g. 0.5 (%(default)s)")
    add("--block", type=int, default=256, metavar="N", help="images per record file (%(default)s)")
    add("--batch", type=int, default=8, metavar="N", help="images per pass (%(default)s)")
    add("--backbone", default="classic", metavar="NAME", help="(%(default)s)")
    add("--weights", metavar="FILE", help="a local checkpoint of the ViT")
    add("--size", type=int, default=768, metavar="S", help="(%(default)s)")
    arguments = parser.parse_args(argv)
    out = Path(arguments.out).absolute()
    options = {
        "backbone": arguments.backbone,
        "size": arguments.size,
        "weights": arguments.weights,
        "batch_size": arguments.batch,
        "device": "cuda" if arguments.gpus else "cpu",
    }
    try:
        text = json.dumps(PseudoLabeler(**options).settings, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        images = find_images(arguments.inputs, out=out)
        jobs, done = plan(images, out, arguments.format, digest)
    except ValueError as error:
        print(f"ray_label: {error}", file=sys.stderr)
        return 2
    total: Row = {"labelled": 0, "errors": []}
    if jobs:
        fixed = {"out": str(out), "form": arguments.format, "settings": digest}
        total = label(jobs, arguments, **fixed, threads=arguments.threads, **options)
    failed = len(total["errors"])
    counts = f"{total['labelled']} labelled, {done} already done, {failed} failed"
    print(f"{counts}; see {arguments.out}/records", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
