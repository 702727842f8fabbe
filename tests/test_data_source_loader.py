"""Downloads: fetched once, complete or not there, with errors that say what to do."""

from __future__ import annotations

import http.server
import threading

import pytest

from distnn.errors import DistnnError
from distnn.utils.data_source_loader import download, get_data_home


@pytest.fixture
def server():
    class Handler(http.server.BaseHTTPRequestHandler):
        requests = 0

        def do_GET(self):
            Handler.requests += 1
            if self.path == "/missing":
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", "10" if self.path == "/short" else "4")
            self.end_headers()
            self.wfile.write(b"data")

        def log_message(self, *_):
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    running.url = f"http://127.0.0.1:{running.server_address[1]}"
    running.handler = Handler
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


def test_a_file_is_fetched_once(server, tmp_path, monkeypatch):
    monkeypatch.setenv("DISTNN_DATA", str(tmp_path / "home"))
    assert get_data_home() == str(tmp_path / "home")
    for _ in range(2):
        with download(f"{server.url}/some%20file.bin?version=2") as file:
            assert file.name == str(tmp_path / "home" / "some file.bin")
            assert file.read() == b"data"
    assert server.handler.requests == 1
    assert download(f"{server.url}/some%20file.bin", allow_overwrite=True, open_file=False) is None
    assert server.handler.requests == 2


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/missing", r"\[download\] http.*missing could not be fetched \(HTTP Error 404.*by hand"),
        ("/short", r"\[download\] http.*short.*10"),
    ],
)
def test_what_cannot_be_fetched_is_not_there(server, tmp_path, path, message):
    with pytest.raises(DistnnError, match=message):
        download(server.url + path, str(tmp_path / "file"))
    assert list(tmp_path.iterdir()) == []


def test_bad_addresses_are_refused(tmp_path):
    with pytest.raises(DistnnError, match=r"no-address could not be fetched .*check the address"):
        download("no-address", str(tmp_path / "file"))
