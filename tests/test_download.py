"""datasets/download.py against a real HTTP server on 127.0.0.1.

The addresses are https ones, as in production, and go through the production
opener. LoopbackHandler alone is of the tests: it carries every request, for
whatever host, to the server of the test over a plain socket, so no test can
reach the network. One test at the end uses real TLS.
"""

import hashlib
import http.client
import os
import re
import shutil
import signal
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from datasets import download

NAME = "train_signs.h5"
# Four chunks and a bit, so that the loop turns; it begins like an HDF5 file.
GOOD = b"\x89HDF\r\n\x1a\n" + bytes(range(256)) * 1100
SHA256 = hashlib.sha256(GOOD).hexdigest()
WRONG = GOOD[:-1] + b"?"
PAGE = b"<!DOCTYPE html>\n<html><body>Please log in.</body></html>"
# Long enough for a loopback connection on a busy machine, short enough to be waited for.
SHORT = 0.5
# What no step of a test takes, unless something hangs.
HANGS = 10


class LoopbackHandler(urllib.request.HTTPSHandler):
    """Carries https requests to a port of this machine, over a plain socket."""

    def __init__(self, port):
        super().__init__()
        self.port = port

    def https_open(self, request):
        return self.do_open(self.connection, request)

    def connection(self, host, timeout):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)


class Server(ThreadingHTTPServer):
    """Answers each path with a function of the test, and keeps the paths asked for."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.asked = {}, []
        self.release = threading.Event()  # set at the end: stalled answers stop
        self.noticed = threading.Event()  # an endless answer has been hung up on
        self.port = self.server_address[1]

    def server_bind(self):
        # HTTPServer would ask the name service for the name of 127.0.0.1.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address

    def serve(self, path, answer):
        """Lets `answer(handler)` answer the requests for `path`; returns the https address."""
        self.answers[path] = answer
        return f"https://mirror.example{path}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        self.server.answers[self.path](self)

    def log_message(self, *arguments):
        pass


def send(body, status=200, length=None, kind="application/octet-stream"):
    """An answer: `body` under a Content-Length of `length`, by default the true one."""
    def answer(handler):
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(body) if length is None else length))
        handler.end_headers()
        handler.wfile.write(body)
    return answer


def send_without_length(body):
    """An answer that ends where the connection does."""
    def answer(handler):
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(body)
    return answer


def send_endless(handler):
    handler.send_response(200)
    handler.end_headers()
    try:
        while not handler.server.release.is_set():
            handler.wfile.write(GOOD)
    except OSError:
        handler.server.noticed.set()


def send_half_then_stall(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(GOOD)))
    handler.end_headers()
    handler.wfile.write(GOOD[:len(GOOD) // 2])
    handler.server.release.wait(HANGS)


def stall(handler):
    handler.server.release.wait(HANGS)


def hang_up(handler):
    handler.close_connection = True


def redirect(address):
    def answer(handler):
        handler.send_response(302)
        handler.send_header("Location", address)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
    return answer


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    """The proxies of the machine that runs the tests play no part."""
    monkeypatch.setattr(urllib.request, "getproxies", dict)


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.release.set()
    server.shutdown()
    server.server_close()
    thread.join(HANGS)


@pytest.fixture
def closed_port():
    """A port that refuses: bound, so that nobody else gets it, but not listening."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.fixture
def folder(tmp_path):
    """A folder with a file in it, which every test must leave as it is."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    yield folder
    assert (folder / "notes.txt").read_text() == "mine"
    assert not list(folder.glob("*.part"))


def fetch(folder, addresses, port, timeout=HANGS, name=NAME):
    return download.download_file(name, addresses, len(GOOD), SHA256, folder, timeout,
                                  download.https_opener(LoopbackHandler(port)))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def assert_fails(folder, server, answer, why, capsys, timeout=HANGS, error=download.DownloadError):
    """One mirror gives `answer`: nothing is left, and one line says where and `why`."""
    address = server.serve("/file", answer)
    with pytest.raises(error, match=re.escape(why)) as caught:
        fetch(folder, [address], server.port, timeout)
    assert type(caught.value) is error
    assert f"Received: {why}." in str(caught.value)
    assert capsys.readouterr().err == f"  {address}: {why}\n"
    assert names(folder) == ["notes.txt"]


# ---------------------------------------------------------------- answers


@pytest.mark.parametrize("answer", [send(GOOD), send_without_length(GOOD)])
def test_good_bytes(server, folder, capsys, answer):
    address = server.serve("/good", answer)
    assert fetch(folder, [address], server.port) == folder / NAME
    assert (folder / NAME).read_bytes() == GOOD
    assert names(folder) == ["notes.txt", NAME]
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_file_has_usual_permissions(server, folder):
    fetch(folder, [server.serve("/good", send(GOOD))], server.port)
    assert (folder / NAME).stat().st_mode == (folder / "notes.txt").stat().st_mode


def test_missing_folder_is_made(server, tmp_path):
    fetch(tmp_path / "new" / "data", [server.serve("/good", send(GOOD))], server.port)
    assert names(tmp_path / "new" / "data") == [NAME]


def test_mirrors_are_tried_in_order(server, folder, capsys):
    addresses = [server.serve("/first", send(WRONG)), server.serve("/second", send(PAGE, status=503)),
                 server.serve("/third", send(GOOD)), server.serve("/fourth", send(GOOD))]
    fetch(folder, addresses, server.port)
    assert server.asked == ["/first", "/second", "/third"]
    assert (folder / NAME).read_bytes() == GOOD
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[0].strip() for line in lines] == addresses[:2]


def test_wrong_bytes_of_the_right_length(server, folder, capsys):
    received = hashlib.sha256(WRONG).hexdigest()
    why = f"SHA-256: expected {SHA256}, received {received} (an HDF5 file)"
    assert_fails(folder, server, send(WRONG), why, capsys)


@pytest.mark.parametrize("answer", [send(GOOD[:140_000], length=len(GOOD)),
                                    send_without_length(GOOD[:140_000])])
def test_half_a_file(server, folder, capsys, answer):
    why = f"expected {len(GOOD):,} bytes, received 140,000 (an HDF5 file)"
    assert_fails(folder, server, answer, why, capsys)


def test_half_a_file_then_silence(server, folder, capsys):
    why = f"time-out after 0.5 s, expected {len(GOOD):,} bytes, received {len(GOOD) // 2:,}"
    assert_fails(folder, server, send_half_then_stall, why, capsys, timeout=SHORT)


def test_endless_answer_ends(server, folder, capsys):
    assert_fails(folder, server, send_endless,
                 f"expected {len(GOOD):,} bytes, received more (an HDF5 file)", capsys)
    assert server.noticed.wait(HANGS)  # the connection was closed


def test_one_byte_more_than_expected_is_read_and_no_other(server):
    opener = download.https_opener(LoopbackHandler(server.port))
    with download.open_address(opener, server.serve("/file", send_endless), HANGS) as response:
        chunks = list(download.read_chunks(response, len(GOOD), HANGS))
    assert b"".join(chunks) == GOOD + GOOD[:1]


def test_one_byte_too_many(server, folder, capsys):
    assert_fails(folder, server, send(GOOD + b"?"),
                 f"expected {len(GOOD):,} bytes, received more (an HDF5 file)", capsys)


@pytest.mark.parametrize("body, kind", [
    (PAGE, "a web page"),
    (b"\n\n  <html>", "a web page"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer, not the file itself"),
    (b"CNN/datasets/train_signs.h5", "not an HDF5 file: it begins with b'CNN/datasets/train_signs'"),
    (b"", "an empty file")])
def test_something_else_with_status_200(server, folder, capsys, body, kind):
    assert_fails(folder, server, send(body, kind="text/html"),
                 f"expected {len(GOOD):,} bytes, received {len(body)} ({kind})", capsys)


@pytest.mark.parametrize("status, why", [(404, "HTTP 404 (Not Found)"), (599, "HTTP 599 (unknown code)")])
def test_error_page(server, folder, capsys, status, why):
    assert_fails(folder, server, send(PAGE, status=status), why, capsys)


def test_no_answer(server, folder, capsys):
    assert_fails(folder, server, stall, "time-out after 0.5 s", capsys, SHORT, download.Unreachable)


def test_connection_closed_without_an_answer(server, folder, capsys):
    assert_fails(folder, server, hang_up, "connection closed without an answer", capsys,
                 error=download.Unreachable)


def test_answer_that_is_not_http_cannot_steer_the_terminal(server, folder, capsys):
    address = server.serve("/file", lambda handler: handler.wfile.write(b"\x1b[2Jhello " * 100 + b"\r\n"))
    with pytest.raises(download.DownloadError):
        fetch(folder, [address], server.port)
    line, = capsys.readouterr().err.splitlines()
    assert "hello" in line and line.isprintable() and len(line) < 300
    assert names(folder) == ["notes.txt"]


def test_closed_port(closed_port, folder, capsys):
    with pytest.raises(download.Unreachable, match="Received: connection refused; connection refused."):
        fetch(folder, ["https://mirror.example/a", "https://mirror.example/b"], closed_port)
    assert capsys.readouterr().err == ("  https://mirror.example/a: connection refused\n"
                                       "  https://mirror.example/b: connection refused\n")
    assert names(folder) == ["notes.txt"]


def test_an_answer_of_one_mirror_means_not_offline(server, folder):
    addresses = [server.serve("/silent", hang_up), server.serve("/page", send(PAGE))]
    with pytest.raises(download.DownloadError) as caught:
        fetch(folder, addresses, server.port)
    assert not isinstance(caught.value, download.Unreachable)


@pytest.mark.parametrize("error, why, kind", [
    (socket.gaierror(-2, "Name or service not known"), "host name not found", download.Unreachable),
    (OSError(101, "Network is unreachable"), "[Errno 101] Network is unreachable", download.Unreachable),
    (ssl.SSLError(1, "handshake failure"), "no trusted connection", download.DownloadError)])
def test_errors_that_loopback_cannot_make(error, why, kind):
    failure = download.failure(urllib.error.URLError(error), 1)
    assert type(failure) is kind and str(failure).startswith(why)


def test_progress_counts_every_byte(server, folder, monkeypatch):
    bars = []

    class Bar(download.tqdm):
        def __init__(self, **options):
            super().__init__(**{**options, "disable": False, "file": open(os.devnull, "w")})
            bars.append(self)

    monkeypatch.setattr(download, "tqdm", Bar)
    fetch(folder, [server.serve("/good", send(GOOD))], server.port)
    bar, = bars
    bar.fp.close()
    assert (bar.n, bar.total, bar.unit) == (len(GOOD), len(GOOD), "B")


# ---------------------------------------------------------------- HTTPS only, and only in its folder


@pytest.mark.parametrize("address", [
    "http://127.0.0.1:{port}/good", "HTTP://127.0.0.1:{port}/good", "ftp://127.0.0.1:{port}/good",
    "//127.0.0.1:{port}/good", "file:///etc/hostname", "data:,good", "https:///good", ""])
def test_addresses_other_than_https_are_refused(server, folder, address):
    good = server.serve("/good", send(GOOD))
    with pytest.raises(ValueError, match="HTTPS only.*Received: "):
        # Behind a good one: the table is refused as a whole, before anything is fetched.
        fetch(folder, [good, address.format(port=server.port)], server.port)
    assert server.asked == [] and names(folder) == ["notes.txt"]


@pytest.mark.parametrize("address", ["http://127.0.0.1:{port}/good", "ftp://127.0.0.1:{port}/good",
                                     "file:///etc/hostname", "data:,good"])
def test_production_opener_knows_no_scheme_but_https(server, address):
    server.serve("/good", send(GOOD))
    with pytest.raises(urllib.error.URLError, match="unknown url type"):
        download.https_opener().open(address.format(port=server.port), timeout=SHORT)
    assert server.asked == []


def test_http_proxy_does_not_open_a_way_to_http(server, monkeypatch):
    # urllib takes a plain request to such a proxy, which would hand it on unprotected.
    proxy = f"https://127.0.0.1:{server.port}"
    monkeypatch.setattr(urllib.request, "getproxies", lambda: {"http": proxy, "https": proxy, "all": proxy})
    with pytest.raises(urllib.error.URLError, match="unknown url type"):
        download.https_opener().open("http://mirror.example/good", timeout=SHORT)
    assert server.asked == []


def test_redirect_to_http_is_refused(server, folder, capsys):
    server.serve("/good", send(GOOD))
    target = f"http://127.0.0.1:{server.port}/good"
    assert_fails(folder, server, redirect(target),
                 f"redirect refused, it does not lead to https: {target}", capsys)
    assert server.asked == ["/file"]


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/good", "https://[broken/good",
                                    "/file"])
def test_other_redirects_that_lead_nowhere(server, folder, target):
    with pytest.raises(download.DownloadError):
        fetch(folder, [server.serve("/file", redirect(target))], server.port)
    assert set(server.asked) == {"/file"} and names(folder) == ["notes.txt"]


def test_redirect_to_https_is_followed(server, folder):
    good = server.serve("/good", send(GOOD))
    fetch(folder, [server.serve("/moved", redirect(good))], server.port)
    assert server.asked == ["/moved", "/good"]
    assert (folder / NAME).read_bytes() == GOOD


@pytest.mark.parametrize("name", ["../train_signs.h5", "/tmp/train_signs.h5", "a/b.h5", "a\\b.h5", "..",
                                  ".h5", "C:a.h5", "train_signs.exe", "a.h5\n", ""])
def test_names_that_leave_the_folder_are_refused(server, folder, name):
    with pytest.raises(ValueError, match="plain file name.*Received: "):
        fetch(folder, [server.serve("/good", send(GOOD))], server.port, name=name)
    assert server.asked == [] and names(folder) == ["notes.txt"]


def test_name_of_the_server_is_not_used(server, folder):
    def answer(handler):
        handler.send_response(200)
        handler.send_header("Content-Disposition", 'attachment; filename="../evil.h5"')
        handler.end_headers()
        handler.wfile.write(GOOD)

    fetch(folder, [server.serve("/good", answer)], server.port)
    assert names(folder) == ["notes.txt", NAME] and names(folder.parent) == ["data"]


# ---------------------------------------------------------------- a file of that name is there


def test_right_file_is_not_fetched_again(server, folder):
    (folder / NAME).write_bytes(GOOD)
    before = (folder / NAME).stat().st_mtime_ns
    assert fetch(folder, [server.serve("/good", send(GOOD))], server.port) == folder / NAME
    assert server.asked == [] and (folder / NAME).stat().st_mtime_ns == before


@pytest.mark.parametrize("body, kind", [(WRONG, "an HDF5 file"), (PAGE, "a web page"), (b"", "an empty file")])
def test_wrong_file_is_kept_and_explained(server, folder, body, kind):
    (folder / NAME).write_bytes(body)
    with pytest.raises(download.DownloadError, match="not overwritten") as caught:
        fetch(folder, [server.serve("/good", send(GOOD))], server.port)
    text = str(caught.value)
    assert f"Expected {len(GOOD):,} bytes with SHA-256 {SHA256}" in text
    assert f"Move {folder / NAME} away" in text
    assert text.endswith(f"Received: {len(body):,} bytes with SHA-256 "
                         f"{hashlib.sha256(body).hexdigest()} ({kind}).")
    assert server.asked == [] and (folder / NAME).read_bytes() == body


# ---------------------------------------------------------------- interruptions


def test_written_aside_then_renamed(server, folder, monkeypatch):
    seen = []

    class Bar(download.tqdm):
        def update(self, number):
            part, = folder.glob("*.part")
            seen.append((part.name, part.stat().st_ino, (folder / NAME).exists()))

    monkeypatch.setattr(download, "tqdm", Bar)
    fetch(folder, [server.serve("/good", send(GOOD))], server.port)
    assert len(seen) > 1 and len(set(seen)) == 1
    # The very file that was written, not a copy of it, has the name now.
    assert seen[0][1:] == ((folder / NAME).stat().st_ino, False)


def test_interrupted_midway(server, folder, monkeypatch):
    seen = []

    class Bar(download.tqdm):
        def update(self, number):
            seen.append(names(folder))
            if len(seen) == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(download, "tqdm", Bar)
    with pytest.raises(KeyboardInterrupt):
        fetch(folder, [server.serve("/good", send(GOOD))], server.port)
    assert len(seen) == 2 and seen[1][1].endswith(".part")  # it was being written aside
    assert names(folder) == ["notes.txt"]


def test_full_disk_is_not_blamed_on_the_mirror(server, folder, monkeypatch, capsys):
    class Bar(download.tqdm):
        def update(self, number):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(download, "tqdm", Bar)
    with pytest.raises(OSError, match="No space left"):
        fetch(folder, [server.serve("/good", send(GOOD)), server.serve("/more", send(GOOD))], server.port)
    assert server.asked == ["/good"] and capsys.readouterr().err == ""
    assert names(folder) == ["notes.txt"]


# The command in a process of its own, carried to the port of the test's server.
COMMAND = """
import signal, sys, urllib.request
urllib.request.getproxies = dict
# A shell that starts the tests in the background lets its children ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
root, tests, table, port, folder = sys.argv[1:]
sys.path[:0] = [root, tests]
from datasets import download
from test_download import LoopbackHandler
opener = download.https_opener(LoopbackHandler(int(port)))
download.SOURCES, download.https_opener = table, lambda: opener
sys.exit(download.main(["signs", "--data-dir", folder, "--timeout", "10"]))
"""


@pytest.mark.skipif(os.name == "nt", reason="SIGINT cannot be sent to one process there")
def test_ctrl_c_in_a_real_process(server, folder, table):
    server.answers.update(dict.fromkeys(PATHS, send_half_then_stall))
    tests = Path(__file__).resolve().parent
    arguments = [str(argument) for argument in (tests.parent, tests, table, server.port, folder)]
    process = subprocess.Popen([sys.executable, "-c", COMMAND, *arguments], text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        end = time.monotonic() + HANGS
        while not list(folder.glob("train_signs.h5.*.part")) and time.monotonic() < end:
            time.sleep(0.01)
        assert len(list(folder.glob("train_signs.h5.*.part"))) == 1
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=HANGS)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert errors == f"Interrupted: no unfinished file is left in {folder}.\n"
    assert names(folder) == ["notes.txt"]


# ---------------------------------------------------------------- the command

COMMIT = "0123456789abcdef" * 2 + "01234567"
FILES = [name for group in download.SETS.values() for name in group]
PATHS = [f"/{owner}/{name}/{COMMIT}/{name}" for name in FILES for owner in ("first", "second")]
HEADER = "file\tbytes\tsha256\tgithub_repository\tcommit\tpath"


@pytest.fixture
def table(tmp_path):
    """A table of two mirrors for each file, all of them with the bytes GOOD."""
    rows = [f"{name}\t{len(GOOD)}\t{SHA256}\t{owner}/{name}\t{COMMIT}\t{name}"
            for name in FILES for owner in ("first", "second")]
    path = tmp_path / "table.tsv"
    path.write_text("\n".join([HEADER, *rows]) + "\n")
    return path


@pytest.fixture
def command(monkeypatch, table, folder):
    """main() on the test's table and folder, carried to a port of this machine."""
    https_opener = download.https_opener

    def run(port, *arguments):
        monkeypatch.setattr(download, "https_opener", lambda: https_opener(LoopbackHandler(port)))
        monkeypatch.setattr(download, "SOURCES", table)
        return download.main([*arguments, "--data-dir", str(folder)])
    return run


def test_main_fetches_both_sets(server, folder, command, capsys):
    server.answers.update(dict.fromkeys(PATHS, send(GOOD)))
    assert command(server.port) == 0
    assert names(folder) == sorted(["notes.txt", *FILES])
    assert server.asked == PATHS[::2]  # the first mirror of each
    output, errors = capsys.readouterr()
    assert errors == "" and output.count("there, SHA-256 as expected") == 4
    assert command(server.port) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{name}: already there, SHA-256 as expected." for name in FILES]
    assert len(server.asked) == 4


@pytest.mark.parametrize("chosen", ["happy", "signs"])
def test_main_fetches_one_set(server, folder, command, chosen):
    server.answers.update(dict.fromkeys(PATHS, send(GOOD)))
    assert command(server.port, chosen) == 0
    assert names(folder) == sorted(["notes.txt", f"test_{chosen}.h5", f"train_{chosen}.h5"])


def test_main_offline(closed_port, folder, command, table, capsys):
    (folder / "test_happy.h5").write_bytes(GOOD)
    assert command(closed_port) == 1
    output, errors = capsys.readouterr()
    assert "test_happy.h5: already there" in output
    lines = errors.splitlines()
    addresses = [download.RAW_FILES + path[1:] for path in PATHS]
    # The mirrors of the first file were tried; after them it is known.
    assert lines[:2] == [f"  {address}: connection refused" for address in addresses[:2]]
    assert errors.count("connection refused") == 2
    assert "seems to be offline" in errors and "SYNTHETIC" in errors
    assert f"  {folder}" in lines and str(table) in errors
    for name, address in zip(FILES, addresses[::2]):
        assert (f"  {name:14}  {address}" in lines) == (name != "test_happy.h5")
    assert lines[-1] == "Received: 1 of 4 files."
    assert names(folder) == ["notes.txt", "test_happy.h5"]


def test_main_goes_on_after_a_file_that_failed(server, folder, command, capsys):
    server.answers.update(dict.fromkeys(PATHS, send(GOOD)))
    server.answers.update(dict.fromkeys(PATHS[:2], send(PAGE, status=404)))
    assert command(server.port, "happy") == 1
    assert names(folder) == ["notes.txt", "test_happy.h5"]
    errors = capsys.readouterr().err
    assert "train_happy.h5: no mirror gave the expected" in errors and errors.count("HTTP 404") == 4
    assert "offline" not in errors and errors.endswith("Received: 1 of 2 files.\n")


def test_main_with_a_wrong_file(server, folder, command, capsys):
    server.answers.update(dict.fromkeys(PATHS, send(GOOD)))
    (folder / "train_happy.h5").write_bytes(PAGE)
    assert command(server.port, "happy") == 1
    assert (folder / "train_happy.h5").read_bytes() == PAGE
    assert (folder / "test_happy.h5").read_bytes() == GOOD
    errors = capsys.readouterr().err
    assert "not overwritten" in errors and errors.count("\n") == 1


def test_main_with_a_file_for_a_folder(folder, capsys):
    # With the production opener: the folder is looked at before anything is fetched.
    assert download.main(["--data-dir", str(folder / "notes.txt")]) == 1
    assert re.search(r"--data-dir.*Received: .*notes\.txt", capsys.readouterr().err)


@pytest.mark.parametrize("arguments", [["faces"], ["--no-check"], ["--timeout", "0"], ["--timeout", "nan"],
                                       ["--timeout", "1e9"], ["--timeout", "soon"]])
def test_wrong_options(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        download.main(arguments)
    assert caught.value.code == 2
    assert arguments[0].strip("-") in capsys.readouterr().err


def test_default_folder_is_that_of_the_module(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert download.parse_arguments([]).data_dir == Path(download.__file__).resolve().parent


# ---------------------------------------------------------------- the table


def test_the_table():
    sources = download.read_sources()
    assert sorted(sources) == sorted(FILES) and len(FILES) == 4
    for name, source in sources.items():
        assert re.fullmatch(r"[0-9a-f]{64}", source["sha256"])
        assert source["size"] > 1_000_000  # the photographs themselves, not a pointer to them
        assert len(set(source["addresses"])) == len(source["addresses"]) >= 2
        for address in source["addresses"]:
            download.check_https(address)
            assert re.fullmatch(r"https://raw\.githubusercontent\.com/[\w.-]+/[\w.-]+/[0-9a-f]{40}/[\w./-]+",
                                address, re.ASCII)
            assert address.endswith("/" + name)
    assert len({source["sha256"] for source in sources.values()}) == 4


ROW = dict(zip(HEADER.split("\t"), (NAME, "1", "0" * 64, "owner/name", COMMIT, "a/b.h5")))


@pytest.mark.parametrize("column, value", [
    ("file", "../train_signs.h5"), ("bytes", "-1"), ("bytes", "0"), ("bytes", "1e6"), ("sha256", "0" * 63),
    ("sha256", "G" * 64), ("github_repository", "owner"), ("github_repository", "../.."), ("commit", "main"),
    ("path", "a/../../b.h5"), ("path", "/b.h5"), ("path", "b.h5?token=1"), ("path", "")])
def test_malformed_rows_are_refused(tmp_path, column, value):
    path = tmp_path / "table.tsv"
    path.write_text(HEADER + "\n" + "\t".join({**ROW, column: value}.values()) + "\n")
    with pytest.raises(ValueError, match=f"'{column}'.*{re.escape(str(path))}") as caught:
        download.read_sources(path)
    assert str(caught.value).endswith(f"Received: {value!r}")


def test_missing_column_is_refused(tmp_path):
    path = tmp_path / "table.tsv"
    path.write_text("file\tbytes\n" + f"{NAME}\t1\n")
    with pytest.raises(ValueError, match="'sha256'.*Received: None"):
        download.read_sources(path)


@pytest.mark.parametrize("column, value", [("bytes", "2"), ("sha256", "1" * 64)])
def test_mirrors_that_disagree_are_refused(tmp_path, column, value):
    path = tmp_path / "table.tsv"
    path.write_text("\n".join([HEADER, "\t".join(ROW.values()), "\t".join({**ROW, column: value}.values())]))
    with pytest.raises(ValueError, match=f"one size and one SHA-256.*{NAME}.*Received: .*{value}"):
        download.read_sources(path)


# ---------------------------------------------------------------- real TLS


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl makes the certificate")
def test_certificates_are_verified(server, folder, tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
                    "-nodes", "-keyout", key, "-out", certificate, "-days", "1",
                    "-subj", "/CN=mirror.example", "-addext", "subjectAltName=IP:127.0.0.1"],
                   check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve("/good", send(GOOD))

    def get(host, opener):
        addresses = [f"https://{host}:{server.port}/good"]
        return download.download_file(NAME, addresses, len(GOOD), SHA256, folder, HANGS, opener)

    trusting = download.https_opener(urllib.request.HTTPSHandler(
        context=ssl.create_default_context(cafile=certificate)))
    with pytest.raises(download.DownloadError, match="no trusted connection: self.signed certificate"):
        get("127.0.0.1", None)  # the production opener: nobody vouches for this certificate
    with pytest.raises(download.DownloadError, match="no trusted connection: Hostname mismatch"):
        get("localhost", trusting)  # a trusted certificate, of another host
    assert server.asked == [] and names(folder) == ["notes.txt"]
    get("127.0.0.1", trusting)
    assert (folder / NAME).read_bytes() == GOOD
