"""Members of shards and remote files: the same frames as of single files, and damage that is named."""

import gc
import http.server
import io
import multiprocessing
import os
import threading

import numpy as np
import pytest
from iopath.common.file_io import PathHandler, PathManager

from lookupvit_video.benchmarks.videos import Geometry, make_video
from lookupvit_video.data.file_check import missing_files
from lookupvit_video.data.manifest import Video, read_manifest
from lookupvit_video.decoding.backends import DecodeError, open_video
from lookupvit_video.decoding.sources import remote_files, shards
from lookupvit_video.decoding.sources.held_bytes import read_held
from lookupvit_video.decoding.sources.shards import read_member, split_member
from lookupvit_video.errors import UserError
from lookupvit_video.preparation.shards import (
    index_shards,
    labelled_members,
    make_shards,
    verify_shards,
    write_list,
)

CLASSES = ["run", "jump"]
SMALL = Geometry("", ".mp4", "libx264", (64, 48), 10, 10, 5, 4.0)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three videos, one of them in two rows, in two shards."""
    folder = tmp_path_factory.mktemp("shards")
    for seed in range(3):
        make_video(folder / f"{seed}.mp4", SMALL, seed)
    text = "path,label,start,end\n0.mp4,0,,\n1.mp4,1,0,0.5\n1.mp4,0,0.5,1\n2.mp4,1,,\n"
    (folder / "train.csv").write_text(text)
    (folder / "classes.txt").write_text("run\njump\n")
    size = os.stat(folder / "0.mp4").st_size + os.stat(folder / "1.mp4").st_size
    videos = read_manifest(folder / "train.csv", CLASSES)
    assert make_shards(videos, CLASSES, folder / "out", "train", size) == ["train-000000.tar", "train-000001.tar"]
    return folder


def packed(made):
    return read_manifest(made / "out" / "train.csv", CLASSES)


def test_the_rows_are_those_of_the_list_and_the_frames_those_of_the_files(made):
    rows = packed(made)
    assert [(row.label, row.start, row.end) for row in rows] == [
        (0, None, None), (1, 0.0, 0.5), (0, 0.5, 1.0), (1, None, None)
    ]  # fmt: skip
    assert rows[1].path == rows[2].path == str(made / "out" / "train-000000.tar" / "00000001.mp4")
    for row, name in zip(rows, ("0.mp4", "1.mp4", "1.mp4", "2.mp4"), strict=True):
        assert read_member(row.path) == (made / name).read_bytes()
        for backend in ("pyav", "decord"):
            with open_video(row.path, backend) as one, open_video(made / name, backend) as other:
                assert np.array_equal(one.times, other.times)
                assert np.array_equal(one.frames_at([0.2, 0.9]), other.frames_at([0.2, 0.9]))
                assert one.info == other.info


def test_no_file_stays_open_and_none_is_written(made, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    open_video(packed(made)[0].path).close()
    before = len(os.listdir("/proc/self/fd"))
    with open_video(packed(made)[0].path) as reader:
        reader.frames_at([0.0])
    assert len(os.listdir("/proc/self/fd")) == before
    assert not list(tmp_path.iterdir())


def test_rows_whose_member_is_missing_are_noticed(made):
    rows = packed(made)
    assert missing_files(rows, 0.0) == []
    odd = Video(rows[0].path.replace("00000000", "00000009"), 0)
    assert missing_files([*rows, odd], 0.5) == [odd]
    with pytest.raises(DecodeError, match=r"train-000000\.tar/00000009.mp4: no such member"):
        open_video(odd.path)
    with pytest.raises(DecodeError, match="no such shard"):
        open_video(str(made / "no.tar" / "a.mp4"))


def test_a_folder_may_be_called_tar(tmp_path):
    (tmp_path / "x.tar").mkdir()
    assert split_member(str(tmp_path / "x.tar" / "a.mp4")) is None
    assert split_member("s3://bucket/x.tar/a/b.mp4") == ("s3://bucket/x.tar", "a/b.mp4")


def test_webdataset_s_tars_are_indexed(made, tmp_path):
    tars = sorted(str(path) for path in (made / "out").glob("*.tar"))
    for tar in tars:
        os.remove(tar + shards.SUFFIX)
    shards._index.cache_clear()
    with pytest.raises(DecodeError, match="no index: run lookupvit prepare shards --index"):
        read_member(tars[0] + "/00000000.mp4")
    rows = list(labelled_members(index_shards(tars), 2, tmp_path))
    write_list(tmp_path / "again.csv", rows, CLASSES)
    again = read_manifest(tmp_path / "again.csv", CLASSES)
    assert [os.path.realpath(os.path.dirname(row.path)) for row in again] == [tars[0], tars[0], tars[1]]
    assert read_member(again[0].path) == (made / "0.mp4").read_bytes()
    with pytest.raises(UserError, match="is no class from 0 to 0"):
        list(labelled_members(index_shards(tars), 1, tmp_path))


@pytest.fixture
def copied(made, tmp_path):
    for file in (made / "out").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    shards._index.cache_clear()
    return tmp_path


def test_a_damaged_member_is_named(copied):
    shard = copied / "train-000000.tar"
    offset, size, _ = shards.find_member(f"{shard}/00000001.mp4")
    data = bytearray(shard.read_bytes())
    data[offset + size // 2] ^= 1
    shard.write_bytes(data)
    read_member(f"{shard}/00000000.mp4")
    with pytest.raises(DecodeError, match=r"train-000000\.tar/00000001.mp4: its bytes in the shard are not those"):
        open_video(f"{shard}/00000001.mp4")
    assert verify_shards([str(shard), str(copied / "train-000001.tar")]) == [
        f"{shard}/00000001.mp4: its bytes are not those of the index"
    ]
    shard.write_bytes(data[: offset + 9])
    with pytest.raises(DecodeError, match=rf"00000001.mp4: the shard ends {size - 9} bytes before this member does"):
        open_video(f"{shard}/00000001.mp4")
    assert any("00000001.mp4: the shard ends" in line for line in verify_shards([str(shard)]))


def test_complete_shards_are_kept(made, copied, monkeypatch):
    videos = read_manifest(made / "train.csv", CLASSES)
    size = os.stat(made / "0.mp4").st_size + os.stat(made / "1.mp4").st_size
    written = []
    real = make_shards.__globals__["_write"]
    monkeypatch.setitem(make_shards.__globals__, "_write", lambda *a: written.append(a[0].name) or real(*a))
    (copied / "train-000001.tar.index").unlink()
    make_shards(videos, CLASSES, copied, "train", size)
    assert written == ["train-000001.tar"]
    assert (copied / "classes.txt").read_text() == "run\njump\n"
    with pytest.raises(UserError, match=r"classes\.txt: these are other classes"):
        make_shards(videos, ["run", "sit"], copied, "train", size)
    with pytest.raises(UserError, match="is a folder of pictures"):
        make_shards([Video(str(made), 0)], CLASSES, copied, "x", 1)


# Remote ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def served(made, tmp_path, monkeypatch):
    """The address of the folder, on an HTTP server with ranges; the requests that it got."""
    monkeypatch.setenv("LOOKUPVIT_CACHE", str(tmp_path / "cache"))
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            file = made / self.path.lstrip("/")
            if not file.is_file():
                self.send_error(404)
                return
            data, span = file.read_bytes(), self.headers.get("Range")
            requests.append((file.name, span))
            if span:
                first, last = span.removeprefix("bytes=").split("-")
                data = data[int(first) : int(last) + 1 if last else None]
            self.send_response(206 if span else 200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    shards._index.cache_clear()
    yield f"http://127.0.0.1:{server.server_port}", requests
    server.shutdown()


def test_remote_files_and_shards(made, served, monkeypatch):
    pytest.importorskip("aiohttp")
    address, requests = served
    monkeypatch.setattr(remote_files, "BLOCK", 1000)
    with open_video(made / "1.mp4") as local:
        expected = local.frames_at([0.3])
    for path in (f"{address}/1.mp4", f"{address}/out/train-000000.tar/00000001.mp4"):
        for _ in range(2):
            with open_video(path, remote=True) as reader:
                assert np.array_equal(reader.frames_at([0.3]), expected)
    assert [name for name, _ in requests][:2] == ["1.mp4", "train-000000.tar.index"]
    spans = [span for name, span in requests if name.endswith(".tar")]
    assert len(set(spans)) == len(spans)  # the second reading is of the cache
    with pytest.raises(DecodeError, match="cannot be fetched"):
        open_video(f"{address}/no.mp4", remote=True)
    with pytest.raises(DecodeError, match=r"no such shard|no index"):
        open_video(f"{address}/no.tar/a.mp4", remote=True)


def test_a_damaged_cache_is_fetched_again(made, served):
    pytest.importorskip("aiohttp")
    address, _ = served
    path = f"{address}/out/train-000000.tar/00000000.mp4"
    data = read_member(path)
    for block in remote_files._folder(f"{address}/out/train-000000.tar").iterdir():
        block.write_bytes(b"?" * block.stat().st_size)
    assert read_member(path) == data


def test_the_cache_is_bounded(monkeypatch, tmp_path):
    monkeypatch.setenv("LOOKUPVIT_CACHE", str(tmp_path))
    monkeypatch.setenv("LOOKUPVIT_REMOTE_CACHE", "0.000003")
    monkeypatch.setattr(remote_files, "BLOCK", 1000)
    monkeypatch.setattr(remote_files, "_LOOK_EVERY", 1)
    monkeypatch.setattr(remote_files, "_written", 1)
    monkeypatch.setattr(remote_files, "_fetched", lambda url, start, end: bytes([start // 1000]) * (end - start))
    for block in range(8):
        assert set(remote_files.read_remote("s3://b/x", block * 1000, 900)) == {block}
    kept = sorted(int(file.name) for file in (tmp_path / "remote").glob("*/*"))
    assert kept[-1] == 7
    assert len(kept) <= 3
    monkeypatch.setenv("LOOKUPVIT_REMOTE_CACHE", "0")
    assert len(remote_files.read_remote("s3://b/y", 5, 2000)) == 2000
    assert len(list((tmp_path / "remote").iterdir())) == 1


class Store(PathHandler):
    def _get_supported_prefixes(self):
        return ["store://"]

    def _open(self, path, mode="r", buffering=-1, **kwargs):
        return io.BytesIO(bytes(range(100)))


def test_handlers_of_iopath_are_asked_first(monkeypatch, tmp_path):
    monkeypatch.setenv("LOOKUPVIT_CACHE", str(tmp_path))
    monkeypatch.setattr(remote_files, "path_manager", PathManager())
    remote_files.path_manager.register_handler(Store())
    assert remote_files.read_remote("store://x", 7, 3) == bytes([7, 8, 9])
    assert len(remote_files.read_remote("store://x")) == 100


def test_unknown_prefixes_are_errors():
    with pytest.raises(DecodeError, match=r"cannot be fetched \(Protocol not known: nowhere"):
        open_video("nowhere://a.mp4", remote=True)


def test_lists_name_remote_files(tmp_path):
    path = tmp_path / "l.csv"
    for text in ("path,label\nhttps://h/a//b.mp4,0\nc.mp4,1\n", 'path,label\n"https://h/a//b.mp4",0\nc.mp4,1\n'):
        path.write_text(text)
        assert [row.path for row in read_manifest(path, CLASSES)] == ["https://h/a//b.mp4", str(tmp_path / "c.mp4")]
        assert [row.path for row in read_manifest(path, CLASSES, "s3://b/x/")] == [
            "https://h/a//b.mp4", "s3://b/x/c.mp4"
        ]  # fmt: skip


def _fetch_in_child(path, done):
    gc.collect()
    done.put(len(read_held(path)))


@pytest.mark.timeout(100)
def test_a_worker_does_not_cut_the_connections_of_its_parent(made, served):
    pytest.importorskip("aiohttp")
    address, _ = served
    context = multiprocessing.get_context("fork")
    read_held(f"{address}/0.mp4")  # the connection stays open
    done = context.Queue()
    child = context.Process(target=_fetch_in_child, args=(f"{address}/1.mp4", done))
    child.start()
    assert done.get(timeout=60) == (made / "1.mp4").stat().st_size
    child.join(60)
    assert read_held(f"{address}/2.mp4") == (made / "2.mp4").read_bytes()


def test_a_place_that_does_not_answer_is_reported(monkeypatch, tmp_path):
    class Silent:
        def cat_file(self, *_, **__):
            raise TimeoutError

    monkeypatch.setenv("LOOKUPVIT_CACHE", str(tmp_path))
    monkeypatch.setattr(remote_files, "_file_system", lambda url: (Silent(), url))
    with pytest.raises(DecodeError, match=r"https://h/a.mp4: cannot be fetched \(no answer in time\)"):
        open_video("https://h/a.mp4", remote=True)
