"""datasets/download.py against an HTTPS server on this machine, so that no test needs the network."""

import hashlib
import io
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import ROOT

from datasets import download

NAME = "train_signs.h5"
# Several chunks, which begin like an HDF5 file.
GOOD = b"\x89HDF\r\n\x1a\n" + bytes(range(256)) * 1100
SHA256 = hashlib.sha256(GOOD).hexdigest()
DAMAGED = "the file must have 281,608 bytes (got a damaged or truncated HDF5 file, wrong size"
WRONG = GOOD[:-1] + b"?"
PAGE = b"<!DOCTYPE html>\n<html><body>Please log in.</body></html>"
FILES = ["train_happy.h5", "test_happy.h5", "train_signs.h5", "test_signs.h5"]
COMMIT = "0123456789abcdef" * 2 + "01234567"
PATHS = [f"/{owner}/name/{COMMIT}/{name}" for name in FILES for owner in ("first", "second")]
HEADER = "file\tbytes\tsha256\tgithub_repository\tcommit\tpath"
ROW = dict(zip(HEADER.split("\t"), (NAME, str(len(GOOD)), SHA256, "first/name", COMMIT, NAME)))
# Seconds: long enough for a local connection on a busy machine, and more than any step takes unless something hangs.
SHORT, HANGS = 0.5, 10


class Handler(BaseHTTPRequestHandler):
    """Answers a path with the function that the test put into `server.answers`, or with the good file."""

    def do_GET(self):
        self.server.asked.append(self.path)
        self.server.answers.get(self.path, send(GOOD))(self)

    def log_message(self, *arguments):
        pass


class Server(ThreadingHTTPServer):
    """A server that does not mind a client that closes its connection early."""

    def handle_error(self, request, address):
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, address)


def send(body, status=200, length=..., **headers):
    """Return an answer: `body` under a Content-Length that is by default the true one, or without any (None)."""

    def answer(handler):
        handler.send_response(status)
        if length is not None:
            headers["Content-Length"] = str(len(body) if length is ... else length)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def redirect(address):
    return send(b"", status=302, Location=address)


def send_endless(handler):
    try:
        while not handler.server.done.is_set():
            send(GOOD, length=None)(handler)
    except OSError:
        handler.server.done.set()


def send_half_then_stall(handler):
    send(GOOD[: len(GOOD) // 2], length=len(GOOD))(handler)
    handler.server.done.wait(HANGS)


def hang_up(handler):
    handler.close_connection = True


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for localhost; its key is beside it."""
    if not shutil.which("openssl"):
        pytest.skip("openssl makes the certificate")
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", path.with_suffix(".key")]
    subprocess.run(
        ["openssl", "req", "-x509", "-days", "1", *name, *key, "-out", path], check=True, capture_output=True
    )
    return path


@pytest.fixture
def server(certificate, monkeypatch):
    """A running server, which the test trusts and reaches without a proxy."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    monkeypatch.setenv("NO_PROXY", "*")
    server = Server(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.url = f"https://localhost:{server.server_port}"
    server.answers, server.asked = {}, []
    server.done = threading.Event()  # ends stalled and endless answers
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.done.set()
    server.shutdown()
    server.server_close()
    thread.join(HANGS)


@pytest.fixture
def folder(tmp_path):
    """A folder with a file in it, which every test must leave as it is."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    yield folder
    assert (folder / "notes.txt").read_text() == "mine"


@pytest.fixture
def table(tmp_path):
    """A table of two mirrors for each file, all of them with the bytes GOOD."""
    owners = ("first/name", "second/name")
    rows = [ROW | {"file": name, "github_repository": owner, "path": name} for name in FILES for owner in owners]
    path = tmp_path / "table.tsv"
    path.write_text("\n".join([HEADER, *("\t".join(row.values()) for row in rows)]) + "\n")
    return path


@pytest.fixture
def command(monkeypatch, table, folder):
    """Return a function that runs the command on the test's table and folder, with another host for GitHub."""

    def run(url, *arguments):
        monkeypatch.setattr(download, "GITHUB", url)
        monkeypatch.setattr(download, "SOURCES", table)
        return download.main([*arguments, "--data-dir", str(folder)])

    return run


def fetch(folder, server, *answers, timeout=HANGS):
    """Download NAME from mirrors that give these answers; return whether any mirror answered."""
    server.answers.update({f"/{number}": answer for number, answer in enumerate(answers)})
    addresses = [f"{server.url}/{number}" for number in range(len(answers))]
    return download.download_file(folder / NAME, {"size": len(GOOD), "sha256": SHA256, "addresses": addresses}, timeout)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("answer", [
    send(GOOD), send(GOOD, length=None), send(GOOD, Content_Disposition='attachment; filename="../evil.h5"'),
    redirect("/good"),
])  # fmt: skip
def test_good_file(server, folder, capsys, answer):
    assert fetch(folder / "new", server, answer)
    path = folder / "new" / NAME
    assert path.read_bytes() == GOOD and names(folder) == ["new", "notes.txt"] and names(folder / "new") == [NAME]
    assert path.stat().st_mode == (folder / "notes.txt").stat().st_mode  # the usual permissions
    assert capsys.readouterr().err == ""  # no progress bar in a log


def test_progress_bar_on_a_terminal(server, folder, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    fetch(folder, server, send(GOOD))
    assert "%|" in terminal.getvalue() and "282k" in terminal.getvalue()


def test_mirrors_are_tried_in_order(server, folder, capsys):
    assert fetch(folder, server, send(WRONG), hang_up, send(GOOD), send(GOOD))
    assert server.asked == ["/0", "/1", "/2"] and (folder / NAME).read_bytes() == GOOD
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[0] for line in lines] == [f"  {server.url}/0", f"  {server.url}/1"]


@pytest.mark.parametrize("answer, why", [
    (send(WRONG), f"hash of downloaded file ({NAME}) does not match the known hash: expected {SHA256}"),
    (send(GOOD[:140_000], length=len(GOOD)), "IncompleteRead(140000 bytes read, 141608 more expected)"),
    (send(GOOD[:140_000], length=None), f"{DAMAGED}, 140,000 bytes)"),
    (send_half_then_stall, "timed out"),
    (send_endless, "the file must have 281,608 bytes (got "),
    (send(GOOD + b"?"), f"{DAMAGED}, 281,609 bytes)"),
    (send(PAGE), "(got a web page, 56 bytes)"),
    (send(b"\n\n  <html>"), "(got a web page, 10 bytes)"),
    (send(b"version https://git-lfs.github.com/spec/v1\n"), "(got a Git LFS pointer, not the file itself, 43 "),
    (send(b"CNN/data.h5"), "(got not an HDF5 file: it begins with b'CNN/data.h5', 11 bytes)"),
    (send(b""), "(got an empty file, 0 bytes)"),
    (send(PAGE, status=404), "404 Client Error: Not Found\n"),
    (send(PAGE, status=599), "599 Server Error: "),
    (redirect("http://localhost/0"), "refused a redirect that does not lead to HTTPS: http://localhost/0\n"),
    (redirect("HTTP://localhost/0"), "refused a redirect"),
    (redirect(" http://localhost/0"), "refused a redirect"),
    (redirect("ftp://localhost/0"), "refused a redirect"),
    (redirect("file:///etc/hostname"), "refused a redirect"),
    (redirect("https://[broken/0"), "Invalid IPv6 URL\n"),
    (redirect("/0"), "Exceeded 30 redirects"),
])  # fmt: skip
def test_wrong_answer(server, folder, capsys, answer, why):
    assert fetch(folder, server, answer, timeout=SHORT)
    error = capsys.readouterr().err
    assert error.startswith(f"  {server.url}/0: ") and why in error and error.count("\n") == 1
    assert set(server.asked) == {"/0"} and names(folder) == ["notes.txt"]
    assert answer != send_endless or server.done.wait(HANGS)  # the connection was closed


@pytest.mark.parametrize("answer, why", [
    (lambda handler: handler.server.done.wait(HANGS), "timed out"), (hang_up, "closed connection without response")
])  # fmt: skip
def test_no_answer(server, folder, capsys, answer, why):
    assert not fetch(folder, server, answer, timeout=SHORT)
    assert why in capsys.readouterr().err and names(folder) == ["notes.txt"]
    assert fetch(folder, server, hang_up, send(PAGE))  # one answer is enough


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 500 ", b"HTTP/1.1 302 Found\r\nLocation: ftp:"])
def test_answer_cannot_steer_the_terminal(server, folder, capsys, start):
    fetch(folder, server, lambda handler: handler.wfile.write(start + b"\x1b[2Jhello" * 100 + b"\r\n\r\n"))
    (line,) = capsys.readouterr().err.splitlines()
    assert "hello" in line and line.isprintable() and len(line) < 300


def test_certificates_are_verified(server, folder, monkeypatch, capsys):
    localhost, server.url = server.url, server.url.replace("localhost", "127.0.0.1")
    assert not fetch(folder, server, send(GOOD))
    assert "certificate is not valid for '127.0.0.1'" in capsys.readouterr().err
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    server.url = localhost
    assert not fetch(folder, server, send(GOOD))
    assert "certificate verify failed: self" in capsys.readouterr().err
    assert server.asked == [] and names(folder) == ["notes.txt"]


def test_certificates_that_are_not_there_are_not_blamed_on_the_folder(server, command, monkeypatch, capsys):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere")
    assert command(server.url) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: The photographs cannot be downloaded: ") and "invalid path: /nowhere. " in error
    assert error.endswith("Unset REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE, or let them name a file of certificates\n")


# The command in a process of its own. A shell that starts the tests in the background lets its children ignore Ctrl-C.
COMMAND = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from basics.errors import run_main
from datasets import download
download.SOURCES, download.GITHUB, folder = sys.argv[1:]
run_main(download.main, ["signs", "--data-dir", folder])
"""


@pytest.mark.skipif(os.name == "nt", reason="SIGINT cannot be sent to one process there")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c(server, folder, table, number):
    server.answers = dict.fromkeys(PATHS, send_half_then_stall)
    arguments = [sys.executable, "-c", COMMAND, table, server.url, folder]
    with subprocess.Popen(arguments, cwd=ROOT, text=True, stderr=subprocess.PIPE) as process:
        try:
            end = time.monotonic() + HANGS
            while not any(path.stat().st_size for path in folder.glob("tmp*")) and time.monotonic() < end:
                time.sleep(0.01)
            assert len(names(folder)) == 2 and NAME not in names(folder)
            process.send_signal(number)
            _, errors = process.communicate(timeout=HANGS)
        finally:
            process.kill()
    assert process.returncode == 128 + number and names(folder) == ["notes.txt"]
    assert errors == f"Interrupted. No unfinished file is left in {folder}\n"


def test_full_disk_is_not_blamed_on_the_mirror(server, folder, command, monkeypatch, capsys):
    def update(bar, count):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tqdm.tqdm.update", update)
    assert command(server.url) == 1
    error = capsys.readouterr().err
    assert re.fullmatch("error: The photographs cannot be saved: .*No space left on device. Choose .*\n", error)
    assert server.asked == PATHS[:1] and names(folder) == ["notes.txt"]


def test_file_instead_of_a_folder(folder, capsys):
    assert download.main(["--data-dir", str(folder / "notes.txt")]) == 1
    error = capsys.readouterr().err
    assert re.fullmatch(r"error: The photographs cannot be saved: .*notes\.txt.*--data-dir\n", error)


@pytest.mark.parametrize("chosen, count", [([], 4), (["happy"], 2), (["signs"], 2)])
def test_sets(server, folder, command, capsys, chosen, count):
    files = FILES[2:] if chosen == ["signs"] else FILES[:count]
    assert command(server.url, *chosen) == 0
    assert names(folder) == sorted(["notes.txt", *files])
    assert server.asked == [path for path in PATHS[::2] if path.endswith(tuple(files))]  # the first mirror of each
    output, errors = capsys.readouterr()
    assert errors == "" and output.count("downloading") == output.count("there, with the right SHA-256") == count
    times = [path.stat().st_mtime_ns for path in folder.iterdir()]
    assert command(server.url, *chosen) == 0
    assert capsys.readouterr().out.splitlines() == [f"{name}: there, with the right SHA-256" for name in files]
    assert len(server.asked) == count and times == [path.stat().st_mtime_ns for path in folder.iterdir()]


@pytest.mark.parametrize("error", [
    socket.gaierror(-2, "Name or service not known"), OSError(101, "Network is unreachable"),
    ConnectionRefusedError(111, "Connection refused"),
])  # fmt: skip
def test_offline(folder, command, table, monkeypatch, capsys, error):
    def lookup(*arguments):
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    monkeypatch.setenv("NO_PROXY", "*")
    (folder / "test_happy.h5").write_bytes(GOOD)
    url = "https://mirror.example"
    assert command(url) == 1
    output, errors = capsys.readouterr()
    lines = errors.splitlines()
    # Only the mirrors of the first file were tried.
    assert lines[:2] == [f"  {url}{path}: {error}" for path in PATHS[:2]]
    assert errors.count(str(error)) == 2 and "test_happy.h5: there" in output
    assert "seems to be offline" in errors and "SYNTHETIC" in errors
    assert f"put them into {folder}:" in errors and str(table) in errors
    for name, path in zip(FILES, PATHS[::2]):
        assert (f"  {name:14}  {url}{path}" in lines) == (name != "test_happy.h5")
    assert lines[-1] == "1 of 4 files are there." and names(folder) == ["notes.txt", "test_happy.h5"]


def test_failed_file_does_not_stop_the_others(server, folder, command, capsys):
    server.answers = dict.fromkeys(PATHS[:2], send(PAGE, status=404))
    assert command(server.url, "happy") == 1
    assert names(folder) == ["notes.txt", "test_happy.h5"]
    errors = capsys.readouterr().err
    assert errors.count("404 Client Error") == 2 and f"  train_happy.h5  {server.url}{PATHS[0]}\n" in errors
    assert "offline" not in errors and errors.endswith("1 of 2 files are there.\n")


@pytest.mark.parametrize("body, kind", [(WRONG, "HDF5 file"), (PAGE, "a web page"), (b"", "an empty file")])
def test_another_file_is_not_overwritten(server, folder, command, capsys, body, kind):
    path = folder / "train_happy.h5"
    path.write_bytes(body)
    assert command(server.url, "happy") == 1
    assert path.read_bytes() == body and (folder / "test_happy.h5").read_bytes() == GOOD
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f"error: {path} is not the file of photographs, and is not overwritten (got ")
    assert kind in error and f"{len(body):,} bytes, SHA-256 {hashlib.sha256(body).hexdigest()})" in error
    assert error.endswith("Move it or delete it, then run this command again")


@pytest.mark.parametrize("arguments", [
    ["faces"], ["--no-check"], ["--timeout", "0"], ["--timeout", "nan"], ["--timeout", "1e9"], ["--timeout", "soon"]
])  # fmt: skip
def test_wrong_options(arguments, capsys):
    with pytest.raises(SystemExit, match="^2$"):
        download.main(arguments)
    assert arguments[0].strip("-") in capsys.readouterr().err


def test_help_and_table_import_no_other_package(tmp_path):
    code = """if True:
        import atexit, sys
        from datasets import download
        atexit.register(lambda: print({"pooch", "requests", "tqdm"} & set(sys.modules)))
        download.read_sources()
        download.main(["--help"])
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "300"}
    output = subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, env=environment, text=True)
    assert output.endswith("set()\n")
    assert f"(default: {ROOT / 'datasets'})" in output  # whatever the working directory is


def test_the_table():
    sources = download.read_sources()
    assert list(sources) == FILES and len({source["sha256"] for source in sources.values()}) == 4
    for name, source in sources.items():
        assert re.fullmatch(r"[0-9a-f]{64}", source["sha256"])
        assert source["size"] > 1_000_000  # the photographs themselves, not a pointer to them
        assert len(set(source["addresses"])) == len(source["addresses"]) >= 2
        for address in source["addresses"]:
            pattern = r"https://raw\.githubusercontent\.com/[\w.-]+/[\w.-]+/[0-9a-f]{40}/[\w./-]+"
            assert re.fullmatch(pattern, address, re.ASCII) and address.endswith("/" + name)


@pytest.mark.parametrize("column, value", [
    ("file", "../train_signs.h5"), ("file", "/tmp/a.h5"), ("file", "a/b.h5"), ("file", "a\\b.h5"), ("file", ".."),
    ("file", ".h5"), ("file", "C:a.h5"), ("file", "train_signs.exe"), ("file", ""), ("bytes", "-1"), ("bytes", "0"),
    ("bytes", "1e6"), ("sha256", "0" * 63), ("sha256", "G" * 64), ("github_repository", "owner"),
    ("github_repository", "../.."), ("commit", "main"), ("path", "a/../../b.h5"), ("path", "/b.h5"),
    ("path", "b.h5?token=1"), ("path", ""), ("path", "b.h5\textra"), ("bytes", "٣")
])  # fmt: skip
def test_malformed_row_is_refused(table, column, value):
    row = "\t".join((ROW | {column: value}).values())
    table.write_text(f"{HEADER}\n{row}\n")
    with pytest.raises(ValueError, match=f"{re.escape(str(table))}, line 2 must hold .*{column}") as caught:
        download.read_sources(table)
    assert str(caught.value).endswith(f"(got {row!r})")


@pytest.mark.parametrize("column, value", [("bytes", "2"), ("sha256", "1" * 64)])
def test_mirrors_that_disagree_are_refused(table, column, value):
    table.write_text("\n".join([HEADER, "\t".join(ROW.values()), "\t".join((ROW | {column: value}).values())]))
    with pytest.raises(ValueError, match=f"line 3: {NAME} has another size or SHA-256 above .got .*{value}"):
        download.read_sources(table)
