"""Compares runs over tar files, Parquet tables and an object store with a run over a folder.

    python benchmarks/shards.py photos/ --count 400

The photographs, repeated, are stored as a folder of links, as tar files as WebDataset writes them,
and as Parquet files with a column of images. The ways to label them take turns in one process; the
masks are compared before anything is printed. With moto installed, the tar files also lie on its
object store on this machine, which is itself a Python program that takes part of the time.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from inputs import machine, photographs

from selfment import PseudoLabeler
from selfment.images.load import find_images
from selfment.jobs.label import label_images
from selfment.shards import label_shards

Photos = Mapping[str, Path]  # by key


def write_folder(photos: Photos, folder: Path) -> None:
    """Makes a folder of links to the photographs."""
    folder.mkdir()
    for key, photo in photos.items():
        (folder / f"{key}{photo.suffix}").symlink_to(photo.resolve())


def write_tars(photos: Photos, folder: Path, count: int) -> None:
    """Writes tar files of ``count`` photographs each."""
    folder.mkdir()
    for number, part in enumerate(parts(photos, count)):
        with tarfile.open(folder / f"{number:05}.tar", "w") as tar:
            for key, photo in part.items():
                tar.add(photo.resolve(), f"{key}{photo.suffix}")


def write_tables(photos: Photos, folder: Path, count: int) -> None:
    """Writes Parquet files of ``count`` photographs each."""
    folder.mkdir()
    for number, part in enumerate(parts(photos, count)):
        images = [
            {"bytes": photo.read_bytes(), "path": f"{key}{photo.suffix}"}
            for key, photo in part.items()
        ]
        pq.write_table(pa.table({"image": images}), folder / f"{number:05}.parquet")


def parts(photos: Photos, count: int) -> Iterator[Photos]:
    """Yields the photographs in parts of ``count``."""
    items = iter(photos.items())
    while part := dict(islice(items, count)):
        yield part


@contextmanager
def object_store(folder: Path) -> Iterator[str | None]:
    """Starts an object store with the files of a folder; None if moto is missing."""
    try:
        import boto3  # type: ignore[import-untyped]
        from moto.server import ThreadedMotoServer
    except ImportError as error:
        print(f"no object store: {error}")
        yield None
        return
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs each request
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
        client.create_bucket(Bucket="photos")
        for file in sorted(folder.iterdir()):
            client.upload_file(str(file), "photos", f"tars/{file.name}")
        yield f"?endpoint_override={host}:{port}&scheme=http&region=us-east-1"
    finally:
        server.stop()


def masks_in_folder(out: Path) -> dict[str, bytes]:
    """Returns the masks of a folder run, by key."""
    return {path.stem: path.read_bytes() for path in out.rglob("[!.]*.png")}


def masks_in_tars(out: Path) -> dict[str, bytes]:
    """Returns the masks in tar files, by key."""
    masks = {}
    for file in out.rglob("[!.]*.tar"):
        with tarfile.open(file) as tar:
            for member in tar:
                content = tar.extractfile(member)
                if member.name.endswith(".png") and content is not None:
                    masks[member.name.removesuffix(".png")] = content.read()
    return masks


def masks_in_tables(out: Path) -> dict[str, bytes]:
    """Returns the masks in Parquet files, by key."""
    rows = [row for file in out.rglob("[!.]*.parquet") for row in pq.read_table(file).to_pylist()]
    return {row["key"]: row["mask"]["bytes"] for row in rows}


def masks_on_store(url: str) -> dict[str, bytes]:
    """Returns the masks in tar files on an object store, by key."""
    from selfment.shards.stores import open_store

    store = open_store("out", url)
    masks = {}
    for file in store.list():
        if file.name.endswith(".tar") and not file.name.startswith("."):
            with tarfile.open(fileobj=io.BytesIO(store.read(file.name))) as tar:
                for member in tar:
                    content = tar.extractfile(member)
                    if member.name.endswith(".png") and content is not None:
                        masks[member.name.removesuffix(".png")] = content.read()
    return masks


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the arguments, and measures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path, help="a folder of photographs")
    parser.add_argument("--count", type=int, default=400, help="photographs (%(default)s)")
    parser.add_argument("--shard", type=int, default=100, help="of a shard (%(default)s)")
    parser.add_argument("--size", type=int, default=768, help="side in pixels (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    arguments = parser.parse_args(argv)
    names = cycle(photographs(arguments.photos))
    photos = {f"{i:06}": photo for i, photo in enumerate(islice(names, arguments.count))}
    labeler = PseudoLabeler(size=arguments.size)
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_folder(photos, root / "folder")
        write_tars(photos, root / "tars", arguments.shard)
        write_tables(photos, root / "tables", arguments.shard)
        with object_store(root / "tars") as query:
            compare(labeler, root, query, len(photos), arguments.rounds)


def compare(labeler: PseudoLabeler, root: Path, query: str | None, count: int, rounds: int) -> None:
    """Labels in each way, in turns, and prints the rates; exits with 1 if masks differ."""

    def shards(inputs: str, out: str, to: str) -> None:
        label_shards(inputs, out, labeler, to=to, progress=False)

    images = find_images(root / "folder")
    ways: dict[str, tuple[Callable[[Path], object], Callable[[Path], dict[str, bytes]]]] = {
        "folder to folder": (
            lambda out: label_images(images, out, labeler, progress=False),
            masks_in_folder,
        ),
        "tar to files": (lambda out: shards(f"{root}/tars", f"{out}", "files"), masks_in_folder),
        "tar to tar": (lambda out: shards(f"{root}/tars", f"{out}", "tar"), masks_in_tars),
        "Parquet to Parquet": (
            lambda out: shards(f"{root}/tables", f"{out}", "parquet"),
            masks_in_tables,
        ),
    }
    if query is not None:
        ways["tar to tar on an object store"] = (
            lambda out: shards(f"s3://photos/tars{query}", f"s3://photos/{out.name}{query}", "tar"),
            lambda out: masks_on_store(f"s3://photos/{out.name}{query}"),
        )
    labeler([images[0].path])  # loads the backbone
    rates: dict[str, list[float]] = {way: [] for way in ways}
    reference: dict[str, bytes] = {}
    for turn in range(rounds):
        for number, (way, (run, masks)) in enumerate(ways.items()):
            out = root / f"out-{turn}-{number}"
            start = time.perf_counter()
            run(out)
            rates[way].append(count / (time.perf_counter() - start))
            found = masks(out)
            reference = reference or found
            if len(found) != count or found != reference:
                sys.exit(f"error: the masks of {way!r} are not those of the folder")
    first = rates["folder to folder"]
    print(f"{count} images, {rounds} rounds; the masks are the same bytes")
    print("| | images/s | ratio to the folder, median of the rounds |\n|---|---|---|")
    for way, values in rates.items():
        ratio = statistics.median(mine / other for mine, other in zip(values, first, strict=True))
        spread = f"{min(values):.1f} to {max(values):.1f}"
        print(f"| {way} | {statistics.median(values):.1f} ({spread}) | {ratio:.2f} |")


if __name__ == "__main__":
    main()
