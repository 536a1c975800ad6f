"""Photographs in shards, and the results of runs over them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from selfment.shards.stores import open_store

Files = dict[str, bytes]  #: contents of image files by name


def photos(count: int, broken: Iterable[int] = ()) -> Files:
    """Returns PNG files with a bright rectangle on noise; those with the numbers are broken."""
    files = {}
    for index in range(count):
        stream = np.random.RandomState(index)
        pixels = stream.randint(60, 120, (60 + index % 3, 80, 3)).astype(np.uint8)
        pixels[10:40, 20 + index % 5 : 50] = stream.randint(100, 255, 3)
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "PNG")
        files[f"{index:06}.png"] = b"no image" if index in broken else data.getvalue()
    return files


def write_folder(folder: Path, files: Files) -> Path:
    """Writes the files into a folder."""
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def tar_of(files: Files) -> bytes:
    """Returns a tar file with the files, and a text beside each as img2dataset writes it."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, content in files.items():
            for member, text in ((name, content), (f"{Path(name).stem}.json", b'{"url": ""}')):
                about = tarfile.TarInfo(member)
                about.size = len(text)
                tar.addfile(about, io.BytesIO(text))
    return data.getvalue()


def parquet_of(files: Files) -> bytes:
    """Returns a Parquet file with the images in a column, as `datasets` stores them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = io.BytesIO()
    images = [{"bytes": content, "path": name} for name, content in files.items()]
    pq.write_table(pa.table({"image": images, "text": ["a thing"] * len(images)}), data)
    return data.getvalue()


def write_shards(folder: str, kind: str, files: Files, count: int) -> str:
    """Writes the files in shards of ``count`` under a path or URL, which is returned."""
    store = open_store("out", folder)
    names = list(files)
    for start in range(0, len(names), count):
        part = {name: files[name] for name in names[start : start + count]}
        shard = tar_of(part) if kind == "tar" else parquet_of(part)
        store.write(f"{start // count:05}.{kind}", shard)
    return folder


def sealed(out: str) -> dict[str, bytes]:
    """Returns the content of each file of results, without what runs need to continue."""
    store = open_store("out", out)
    return {
        file.name: store.read(file.name) for file in store.list() if not file.name.startswith(".")
    }


def rows_of(data: bytes, kind: str) -> list[dict[str, Any]]:
    """Returns the records of a sealed shard, each with "mask", the PNG file or None."""
    if kind == "parquet":
        import pyarrow.parquet as pq

        rows = pq.read_table(io.BytesIO(data)).to_pylist()
        return [{**row, "mask": row["mask"] and row["mask"]["bytes"]} for row in rows]
    import json

    rows, mask = [], None
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            content = tar.extractfile(member)
            assert content is not None
            ending = member.name.partition(".")[2]
            if ending == "png":
                mask = content.read()
            elif ending == "json":
                rows.append({**json.loads(content.read()), "mask": mask})
                mask = None
    return rows


def masks(out: str) -> dict[str, bytes]:
    """Returns the masks of a run over shards by key, whatever they are stored in."""
    found = {}
    for name, data in sealed(out).items():
        kind = name.rpartition(".")[2]
        if kind == "png":
            found[Path(name).stem] = data
        elif kind in ("tar", "parquet"):
            found |= {row["key"]: row["mask"] for row in rows_of(data, kind) if row["mask"]}
    return found
