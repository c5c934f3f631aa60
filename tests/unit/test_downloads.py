"""Downloads, against a server on this machine: resumed, checked, unpacked; and the errors that say what to do."""

from __future__ import annotations

import hashlib
import http.server
import io
import re
import tarfile
import threading
from pathlib import Path

import pytest

from tinytrain_lite.errors import DatasetError
from tinytrain_lite.train.downloads import obtain
from tinytrain_lite.train.sources import SOURCES, RemoteFile, Source


class Server(http.server.ThreadingHTTPServer):
    """Serves ``files`` by name; ``cuts`` says after how many bytes each of the next answers breaks off."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cuts: list[int] = []
        self.ranges = True
        self.asked: list[str | None] = []

    def source(self, *files: RemoteFile) -> Source:
        return Source("Toy", "https://example.org/toy", "free", files)

    def file(self, name: str, content: bytes, **more: str) -> RemoteFile:
        self.files[name] = content
        return RemoteFile(
            f"http://127.0.0.1:{self.server_port}/{name}", f"md5:{hashlib.md5(content).hexdigest()}", **more
        )


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        content = self.server.files.get(self.path[1:])
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        if content is None:
            return self.send_error(404)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.server.ranges else 0
        if start >= len(content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        rest = content[start:]
        self.wfile.write(rest[: self.server.cuts.pop(0)] if self.server.cuts else rest)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def archive(**members: bytes) -> bytes:
    """A .tar.gz; a name's double underscores are slashes, single ones dots."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as bundle:
        for name, content in members.items():
            entry = tarfile.TarInfo(name.replace("__", "/").replace("_", "."))
            entry.size = len(content)
            bundle.addfile(entry, io.BytesIO(content))
    return out.getvalue()


CONTENT = bytes(range(256)) * 1000


def test_a_file_and_an_archive(server, tmp_path):
    plain, packed = server.file("labels.mat", CONTENT), server.file("toy.tgz", archive(toy__a=b"1"), holds="toy")
    obtain(server.source(plain, packed), "train", tmp_path / "new" / "toy")
    assert names(tmp_path / "new" / "toy") == ["labels.mat", "toy", "toy.tgz"]
    assert (tmp_path / "new" / "toy" / "labels.mat").read_bytes() == CONTENT
    assert (tmp_path / "new" / "toy" / "toy" / "a").read_bytes() == b"1"
    server.asked.clear()
    (tmp_path / "new" / "toy" / "toy.tgz").unlink()
    obtain(server.source(plain, packed), "train", tmp_path / "new" / "toy")
    assert server.asked == []


def test_a_cut_is_taken_up_where_it_was(server, tmp_path):
    file = server.file("big", CONTENT)
    server.cuts = [100_000, 50_000]
    obtain(server.source(file), "train", tmp_path)
    assert server.asked == [None, "bytes=100000-", "bytes=150000-"]
    assert (tmp_path / "big").read_bytes() == CONTENT and names(tmp_path) == ["big"]


def test_the_next_run_resumes_what_the_last_one_kept(server, tmp_path):
    file = server.file("big", CONTENT)
    server.cuts = [70_000, 0]
    with pytest.raises(DatasetError, match=r"cut after 70,000 of 256,000.* 70,000 bytes are kept in .*big\.part"):
        obtain(server.source(file), "train", tmp_path)
    assert names(tmp_path) == ["big.part"]
    server.asked.clear()
    obtain(server.source(file), "train", tmp_path)
    assert server.asked == ["bytes=70000-"]
    assert (tmp_path / "big").read_bytes() == CONTENT and names(tmp_path) == ["big"]


def test_a_server_without_ranges_starts_over_and_does_not_loop(server, tmp_path):
    file = server.file("big", CONTENT)
    server.ranges, server.cuts = False, [100_000, 100_000]
    with pytest.raises(DatasetError, match="cut after 100,000"):
        obtain(server.source(file), "train", tmp_path)
    obtain(server.source(file), "train", tmp_path)
    assert (tmp_path / "big").read_bytes() == CONTENT


@pytest.mark.parametrize("kept", [CONTENT, CONTENT + b"more"], ids=["whole", "too long"])
def test_a_part_that_lacks_nothing_is_judged_by_its_checksum(server, tmp_path, kept):
    file = server.file("big", CONTENT)
    (tmp_path / "big.part").write_bytes(kept)
    if kept == CONTENT:
        obtain(server.source(file), "train", tmp_path)
        assert names(tmp_path) == ["big"]
    else:
        with pytest.raises(DatasetError, match="not the published file"):
            obtain(server.source(file), "train", tmp_path)
        assert names(tmp_path) == []


@pytest.mark.parametrize("holds", [None, "toy"])
def test_a_wrong_checksum_leaves_nothing_behind(server, tmp_path, holds):
    file = server.file("toy.tgz", archive(toy__a=b"1"), holds=holds)
    server.files["toy.tgz"] = archive(toy__a=b"2")
    with pytest.raises(DatasetError, match=rf"toy\.tgz is not the published file.*expected {file.checksum}"):
        obtain(server.source(file), "train", tmp_path)
    assert names(tmp_path) == []


def test_a_file_put_there_by_hand_is_checked_and_kept(server, tmp_path):
    good = server.file("toy.tgz", archive(toy__a=b"1"), holds="toy")
    (tmp_path / "toy.tgz").write_bytes(b"an error page")
    with pytest.raises(DatasetError, match=r"toy\.tgz is not the published file.*delete it"):
        obtain(server.source(good), "train", tmp_path)
    assert names(tmp_path) == ["toy.tgz"]
    (tmp_path / "toy.tgz").write_bytes(server.files["toy.tgz"])
    obtain(server.source(good), "train", tmp_path)
    assert names(tmp_path) == ["toy", "toy.tgz"] and server.asked == []


def test_without_network_the_error_lists_every_file_its_place_and_checksum(server, tmp_path):
    files = [server.file(name, name.encode()) for name in ("a.mat", "b.mat", "c.mat")]
    (tmp_path / "b.mat").write_bytes(b"b.mat")
    server.shutdown()
    server.server_close()
    with pytest.raises(DatasetError) as error:
        obtain(server.source(*files), "train", tmp_path)
    for file in (files[0], files[2]):
        assert f"  {file.url}\n    as {tmp_path / file.name} ({file.checksum})" in str(error.value)
    assert "b.mat" not in str(error.value)
    assert "https://example.org/toy (terms: free)" in str(error.value)
    assert names(tmp_path) == ["b.mat"]


def test_a_missing_page_is_no_reason_to_insist(server, tmp_path):
    file = server.file("gone", b"")
    del server.files["gone"]
    with pytest.raises(DatasetError, match="404"):
        obtain(server.source(file), "train", tmp_path)
    assert server.asked == [None] and names(tmp_path) == []


def test_only_the_files_of_the_part_are_fetched(server, tmp_path):
    files = [server.file("both", b"0"), server.file("one", b"1", part="train"), server.file("two", b"2", part="test")]
    obtain(server.source(*files), "train", tmp_path)
    assert names(tmp_path) == ["both", "one"]
    obtain(server.source(*files), "test", tmp_path)
    assert names(tmp_path) == ["both", "one", "two"]


def hostile(kind: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as bundle:
        entry = tarfile.TarInfo("../escaped" if kind == "up" else "toy/escaped")
        if kind == "link":
            entry.type, entry.linkname = tarfile.SYMTYPE, "../../../elsewhere"
        if kind == "device":
            entry.type = tarfile.CHRTYPE
        bundle.addfile(entry)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["up", "link", "device"])
def test_an_archive_that_would_leave_its_folder_is_refused(server, tmp_path, kind):
    file = server.file("toy.tgz", hostile(kind), holds="toy")
    folder = tmp_path / "inner"
    with pytest.raises(DatasetError, match="not to be trusted"):
        obtain(server.source(file), "train", folder)
    assert names(folder) == ["toy.tgz"] and names(tmp_path) == ["inner"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (archive(other__a=b"1"), "holds no folder toy"),
        (archive(toy__a=CONTENT)[:-300], "damaged"),
        (b"no archive", "damaged"),
    ],
    ids=["other folder", "truncated", "no archive"],
)
def test_an_archive_that_cannot_be_unpacked_leaves_no_folder(server, tmp_path, content, message):
    file = server.file("toy.tgz", content, holds="toy")
    with pytest.raises(DatasetError, match=message):
        obtain(server.source(file), "train", tmp_path)
    assert names(tmp_path) == ["toy.tgz"]


def test_a_place_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="cannot write to .*file"):
        obtain(server.source(server.file("a", b"1")), "train", tmp_path / "file" / "toy")


@pytest.mark.parametrize("name", SOURCES)
def test_the_table_is_well_formed(name):
    source = SOURCES[name]
    for file in source.files:
        algorithm, digest = file.checksum.split(":")
        assert re.fullmatch(r"[0-9a-f]+", digest) and len(digest) == 2 * hashlib.new(algorithm).digest_size
        assert file.url.startswith("http") and file.part in (None, "train", "test")
        assert (file.holds is None) == file.name.endswith(".mat")
    assert source.page.startswith("https://") and source.terms


def test_the_course_lists_every_file():
    chapter = (Path(__file__).parents[2] / "course" / "data.md").read_text("utf-8")
    for name, source in SOURCES.items():
        (row,) = re.findall(rf"^\| `{name}` \|.*$", chapter, re.MULTILINE)
        assert re.findall(r"`([^`]+)`", row) == [name, *(file.name for file in source.files)]
