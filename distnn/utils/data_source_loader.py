"""Files from the network, kept in a folder of the user."""

from __future__ import annotations

import os
import shutil
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from ..errors import DistnnError
from ..logger import logger


def get_data_home() -> str:
    """The folder where downloads are kept: $DISTNN_DATA, or distnn/data in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return os.environ.get("DISTNN_DATA") or os.path.join(cache, "distnn", "data")


def download(
    url: str,
    output_file: str | None = None,
    open_file: bool = True,
    allow_overwrite: bool = False,
) -> Any:
    """Fetch a file once; later calls find it on disk.

    A file appears under its name when it is complete. Ranks of one machine may ask at once.

    Args:
        url: of the file.
        output_file: where to keep it; default the url's last part in `get_data_home()`.
        open_file: return the file, opened for reading in binary mode; False returns None.
        allow_overwrite: fetch it again though it is there.
    Raises: DistnnError that says why it could not be fetched.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     source = pathlib.Path(folder, "a.txt")
    ...     _ = source.write_text("content")
    ...     with download(source.as_uri(), folder + "/b.txt") as file:
    ...         file.read()
    b'content'
    """
    if output_file is None:
        output_file = os.path.join(get_data_home(), unquote(urlparse(url).path).rsplit("/", 1)[-1])
    target = Path(output_file)
    if allow_overwrite or not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        logger.info("downloading %s to %s", url, target)
        handle, part = tempfile.mkstemp(dir=target.parent, prefix=target.name + ".")
        try:
            with os.fdopen(handle, "wb") as file, urllib.request.urlopen(url) as response:
                expected = response.headers.get("Content-Length")
                shutil.copyfileobj(response, file)
                found = file.tell()
            if expected is not None and found != int(expected):
                raise DistnnError(
                    f"[download] {url} ended after {found} of {expected} bytes; try again"
                )
            os.replace(part, target)
        except (urllib.error.URLError, OSError, ValueError) as error:
            raise DistnnError(
                f"[download] {url} could not be fetched ({error}); put the file at {target} by "
                "hand, or check the address and the network"
            ) from error
        finally:
            Path(part).unlink(missing_ok=True)
    return open(target, "rb") if open_file else None
