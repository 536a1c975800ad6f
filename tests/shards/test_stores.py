"""Stores: the same operations on local folders, in memory and on an object store."""

from __future__ import annotations

import errno
import os
import pickle
import random
import uuid
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from helpers.shards import units_of
from helpers.stores import under
from selfment.shards import store as store_module
from selfment.shards.arrow_store import ArrowStore
from selfment.shards.fsspec_store import FsspecStore, _HttpFile, _stamp
from selfment.shards.sources import Sources
from selfment.shards.store import Store
from selfment.shards.stores import LocalStore, open_store
from selfment.shards.urls import Url, split_root

NAMES = ["a b%20.tar", "c/d é.bin", "c/e/f.json", "x?y.txt"]


@pytest.fixture
def filled(store: Store) -> Store:
    for number, name in enumerate(NAMES):
        store.write(name, bytes([number]) * (number + 1))
    return store


def test_what_was_written_is_read(filled: Store) -> None:
    for number, name in enumerate(NAMES):
        content = bytes([number]) * (number + 1)
        assert filled.read(name) == content
        with filled.open(name) as file:
            assert file.read(1) == content[:1]
            assert file.seek(0) == 0
            assert file.read() == content
    filled.write(NAMES[0], b"again", durable=True)
    assert filled.read(NAMES[0]) == b"again"


def test_files_are_listed_by_name_with_their_size_and_time(filled: Store) -> None:
    files = filled.list()
    assert [file.name for file in files] == NAMES
    assert [file.bytes for file in files] == [1, 2, 3, 4]
    assert [file.uri for file in files] == [f"{filled.text}/{name}" for name in NAMES]
    assert filled.stat([*NAMES, "none", "c"]) == [
        *[(file.bytes, file.mtime_ns) for file in files],
        None,
        None,
    ]
    assert all(file.mtime_ns > 10**18 for file in files)
    assert [file.name for file in filled.list("c")] == NAMES[1:3]
    assert [file.name for file in filled.list(recursive=False)] == [NAMES[0], NAMES[3]]
    assert [file.name for file in filled.list("c", recursive=False)] == [NAMES[1]]
    assert list(filled.list("none")) == []


def test_folders_are_told_from_files(filled: Store) -> None:
    assert list(filled.folders()) == ["c"]
    assert list(filled.folders("c")) == ["c/e"]
    assert list(filled.folders("none")) == []
    assert filled.is_folder("c")
    assert filled.is_folder("")
    assert not filled.is_folder(NAMES[0])
    assert not filled.is_folder("none")


@pytest.mark.slow
@pytest.mark.parametrize("server_base", ["gs", "abfs"], indirect=True)
def test_folders_in_folders_on_a_server(server_base: str) -> None:
    store = open_store("out", under(server_base, "in"))
    for name in ("a/b/0.tar", "a/c/1.tar", "2.tar"):
        store.write(name, b"content")
    assert [file.name for file in store.list()] == ["2.tar", "a/b/0.tar", "a/c/1.tar"]
    assert [file.name for file in store.list(recursive=False)] == ["2.tar"]
    assert (store.folders(), store.folders("a"), store.folders("a/b")) == (
        ["a"],
        ["a/b", "a/c"],
        [],
    )
    assert [store.is_folder(name) for name in ("a/b", "2.tar", "none")] == [True, False, False]
    units, _ = units_of(under(server_base, "in/*/*/*.tar"))
    assert [unit.name for unit in units] == ["a/b/0", "a/c/1"]


def test_removed_files_are_gone_and_missing_ones_are_ignored(filled: Store) -> None:
    filled.remove([NAMES[1], "none", NAMES[2]])
    assert [file.name for file in filled.list()] == [NAMES[0], NAMES[3]]
    if isinstance(filled, LocalStore):  # on an object store, the empty folder stays
        assert not filled.is_folder("c")
        assert filled.is_folder("")


@pytest.mark.parametrize("size", [0, 1, 11 << 20])  # the last takes several requests
def test_a_file_is_uploaded(store: Store, tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    (tmp_path / "local").write_bytes(content)
    store.upload("a/copy.tar", tmp_path / "local")
    assert store.read("a/copy.tar") == content
    assert [file.name for file in store.list()] == ["a/copy.tar"]


def test_a_store_is_sent_to_other_processes(filled: Store) -> None:
    assert pickle.loads(pickle.dumps(filled)).read(NAMES[1]) == b"\1\1"


def test_a_missing_file_is_named(store: Store) -> None:
    for read in (store.read, store.open):
        with pytest.raises(FileNotFoundError) as caught:
            read("a/none.tar")
        assert caught.value.filename == f"{store.text}/a/none.tar"


def test_a_missing_bucket_is_named_when_it_is_written_to(bucket: str) -> None:
    missing = open_store("out", f"{bucket}-none")
    with pytest.raises(OSError, match="bucket does not exist") as caught:
        missing.write("a.tar", b"content")
    assert caught.value.filename == f"{bucket}-none/a.tar"


def test_a_server_that_stores_something_else_is_noticed(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As moto does with the chunks of a request without a signature."""
    store = open_store("out", bucket)
    store.check_writable("out")
    assert list(store.list()) == []
    monkeypatch.setattr(store, "read", lambda name: b"20\r\n" + name.encode())
    with pytest.raises(ValueError, match="`out` must be on a server that stores what is written"):
        store.check_writable("out")


def test_a_server_that_does_not_answer_is_named(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store("out", bucket)
    assert isinstance(store, ArrowStore)

    def silent(path: str) -> bool:
        raise OSError("Timeout was reached")

    monkeypatch.setattr(store, "_exists", silent)
    sentence = rf"`out` must be on a server that answers: got '{bucket}' at AWS_ENDPOINT_URL=http"
    with pytest.raises(ValueError, match=sentence):
        store.check_writable("out")


def test_the_server_may_be_named_in_the_query(
    bucket: str, object_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    base = bucket.replace("s3://", "s3://AKIAIOSFODNN7:sec%2Fret@")
    named = open_store("out", f"{base}/a?endpoint_override={object_server}&scheme=http")
    named.write("b.txt", b"content")
    assert named.text == f"{bucket}/a"
    assert named.list()[0].uri == f"{bucket}/a/b.txt"
    assert pickle.loads(pickle.dumps(named)).read("b.txt") == b"content"
    assert "sec" not in repr(named)


def test_an_object_changes_when_all_of_it_is_there(bucket: str) -> None:
    """A process that is killed after some of the requests has not changed it."""
    store = open_store("out", bucket)
    store.write("a.tar", b"old")
    assert isinstance(store, ArrowStore)
    stream = store._system.open_output_stream(store._path("a.tar"))
    stream.write(os.urandom(6 << 20))
    assert store.read("a.tar") == b"old"
    stream.close()


def test_a_file_that_would_appear_while_it_is_written_is_moved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("fsspec")
    monkeypatch.setattr(store_module, "WHOLE", ())
    store = open_store("out", f"memory://{uuid.uuid4().hex}")
    assert isinstance(store, FsspecStore)
    store.write("a/b.tar", b"content")
    monkeypatch.setattr(store._system, "mv", None)
    with pytest.raises(OSError, match="not callable") as caught:
        store.write("a/c.tar", b"content")
    assert caught.value.filename == f"{store.text}/a/c.tar"
    assert [file.name for file in store.list()] == ["a/b.tar"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "`out` must be a path or a URL: got ''"),
        ("nosuch://x/y", r"`out` must be a URL that can be opened: got 'nosuch://x/y' \(.*known"),
        ("memory://a?b=c", r"`out` must be a URL that can be opened: .*\(a query is for s3, gs"),
        ("abfs://me:SECRET@host/box/a", r"got 'abfs://me@host/box/a' \(an account key is for az"),
        ("s3://KEY:SECRET/a@bucket/b", "`out` must be a URL whose credentials, if any, are perc"),
        (
            "s3://KEY:SECRET@bucket/b?other=SECRET",
            r"got 's3://bucket/b' \(Unexpected query parameter",
        ),
        ("s3://KEY:SECRET @bucket/b", r"got 's3://bucket/b' \(Cannot parse URI: 's3://bucket/b'"),
    ],
)
def test_a_bad_url_is_one_sentence_without_credentials(text: str, sentence: str) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(ValueError, match=sentence) as caught:
        open_store("out", text)
    assert "SECRET" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    ("text", "public", "root"),
    [
        ("s3://b/a/c?x=1", "s3://b/a/c", ("s3://b?x=1", "a/c")),
        ("s3://k:s@b/a?.tar", "s3://b/a?.tar", ("s3://k:s@b", "a?.tar")),
        ("S3://b", "s3://b", ("s3://b", "")),
        ("abfs://box:pass@acc.net/a", "abfs://box@acc.net/a", ("abfs://box:pass@acc.net", "a")),
        ("hdfs://me@h:8020/a", "hdfs://h:8020/a", ("hdfs://me@h:8020", "a")),
        ("memory://a/b/", "memory://a/b/", ("memory://a", "b/")),
        ("memory:///b", "memory:///b", ("memory://", "b")),
    ],
)
def test_urls_are_shown_without_credentials(text: str, public: str, root: tuple[str, str]) -> None:
    url = Url.parse("inputs", text)
    assert url is not None
    assert url.public == public
    assert split_root("inputs", text) == root


def test_messages_have_no_part_of_the_credentials() -> None:
    url = Url.parse("inputs", "s3://KEY:SECRET@bucket/a?endpoint_override=HOST")
    assert url is not None
    message = f"cannot reach {url.uri}, user KEY:SECRET, word SECRET, ?endpoint_override=HOST"
    assert url.without_secrets(message) == ("cannot reach s3://bucket/a, user ..., word ..., ...")


def test_paths_have_the_root_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    inside = f"{tmp_path}/a b?x=1".lstrip("/")
    assert split_root("inputs", "a b?x=1") == ("/", inside)
    assert split_root("inputs", f"file://{tmp_path}/a b") == ("/", f"{tmp_path}/a b".lstrip("/"))
    assert open_store("out", f"file://{tmp_path}/a").text == f"{tmp_path}/a"
    assert open_store("out", "a").text == f"{tmp_path}/a"


def test_sources_open_the_files_that_were_listed(filled: Store) -> None:
    sources = Sources()
    root, name = sources.add("inputs", filled.uri)
    files = root.list(name)
    assert [file.uri for file in files] == [file.uri for file in filled.list()]
    for file in files:
        there, path = pickle.loads(pickle.dumps(sources)).locate(file)
        assert len(there.read(path)) == file.bytes


def test_sources_reach_a_root_in_one_way(bucket: str) -> None:
    sources = Sources()
    sources.add("inputs", bucket)
    sources.add("inputs", f"{bucket}/a")
    with pytest.raises(ValueError, match=r"must reach s3:.* by one query and"):
        sources.add("inputs", f"{bucket}?region=eu-west-1")


def test_a_file_on_a_web_server_is_one_stream_until_it_is_sought(tmp_path: Path) -> None:
    """Against a file system of fsspec that counts how often a file is opened."""
    memory, opened = pytest.importorskip("fsspec").filesystem("memory"), []

    class System:
        info = staticmethod(memory.info)

        def open(self, path: str, block_size: int) -> Any:
            opened.append(block_size)
            return memory.open(path)

    content = bytes(range(256)) * 8
    memory.pipe_file("/web/file", content)
    stream = random.Random(0)
    with _HttpFile(System(), "/web/file", 512) as file:
        assert file.read(100) == content[:100]
        assert file.seek(0, os.SEEK_CUR) == 100
        assert opened == [0]
        position = 100
        for _ in range(50):
            length, target = stream.randrange(200), stream.randrange(len(content))
            whence = stream.choice([os.SEEK_SET, os.SEEK_CUR, os.SEEK_END])
            start = {os.SEEK_SET: 0, os.SEEK_CUR: position, os.SEEK_END: len(content)}[whence]
            assert file.seek(target - start, whence) == target
            assert file.read(length) == content[target : target + length]
            position = min(target + length, len(content))
    assert opened == [0, 512]
    memory.rm("/web", recursive=True)


@pytest.mark.parametrize(
    ("info", "stamp"),
    [
        ({"size": 3, "mtime": 1.5}, (3, 1_500_000_000)),
        ({"size": 3, "LastModified": "1970-01-01T00:00:02Z"}, (3, 2_000_000_000)),
        ({"size": 3, "Last-Modified": "Thu, 01 Jan 1970 00:00:04 GMT"}, (3, 4_000_000_000)),
        ({"size": 3, "created": datetime(1970, 1, 1, 0, 0, 1)}, (3, 1_000_000_000)),
        ({"size": None}, (0, 0)),
    ],
)
def test_times_of_files_in_all_forms(info: dict[str, Any], stamp: tuple[int, int]) -> None:
    assert _stamp(info) == stamp


@pytest.mark.parametrize("tag", ["ETag", "blob_id"])
def test_where_there_is_no_time_a_tag_tells_contents_apart(tag: str) -> None:
    one, same, other = (_stamp({"size": 3, tag: text}) for text in ("a", "a", "b"))
    assert one == same != other
    assert one[0] == other[0] == 3


@pytest.mark.parametrize("status", [404, 410, 500])
def test_a_server_that_fails_has_not_said_that_a_file_is_missing(
    monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """fsspec raises the same error for each status of an HTTP server."""
    store = open_store("inputs", "memory://web")
    assert isinstance(store, FsspecStore)

    def info(path: str) -> None:
        cause = Exception("the server has said so")
        cause.status = status  # type: ignore[attr-defined]
        raise FileNotFoundError(path) from cause

    monkeypatch.setattr(store._system, "info", info)
    if status == 500:
        with pytest.raises(OSError, match=r"the server has said so: 'memory://web/a\.tar'"):
            store.stat(["a.tar"])
    else:
        assert store.stat(["a.tar"]) == [None]


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    store = open_store("out", tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="a pipe, a socket or a device") as caught:
        store.open("pipe")
    assert caught.value.errno == errno.EINVAL
    assert caught.value.filename == str(tmp_path / "pipe")
    assert [file.name for file in store.list()] == ["pipe"]  # whoever reads it gets the error


def test_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/file").touch()
    (tmp_path / "a/circle").symlink_to(tmp_path)
    (tmp_path / "a/broken").symlink_to(tmp_path / "none")
    (tmp_path / "a/link").symlink_to(tmp_path / "a/file")
    names = ["a/broken", "a/file", "a/link"]
    assert [file.name for file in open_store("out", tmp_path).list()] == names
