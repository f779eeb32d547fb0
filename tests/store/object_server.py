"""An S3-compatible server on this machine, and a file system in memory that counts and fails."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

from fsspec.implementations.memory import MemoryFileSystem

from probe.storage import object_path

_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@contextlib.contextmanager
def s3_server() -> Iterator[Any]:
    """Serve S3 at 127.0.0.1 for the length of a block, with a bucket `bucket`; yield fsspec's file system of it."""
    from moto.server import ThreadedMotoServer

    before = dict(os.environ)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        os.environ.update(_ENVIRONMENT, AWS_ENDPOINT_URL=f"http://{host}:{port}")
        object_path.file_system.cache_clear()
        files = object_path.file_system("s3")
        files.mkdir("bucket")
        yield files
    finally:
        object_path.file_system.cache_clear()
        os.environ.clear()
        os.environ.update(before)
        server.stop()


class Watched(MemoryFileSystem):  # type: ignore[misc]
    """Memory in which each put and each removal is counted, and the n-th fails as a lost connection does."""

    cachable = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.store: dict[str, Any] = {}
        self.pseudo_dirs = [""]
        self.count = 0
        self.fails_at = -1
        self.arrives = False
        """Whether what fails is put all the same, and only the answer is lost."""
        self.down = False
        self.bytes_read = 0
        self.reads: list[str] = []

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        """Put, or fail."""
        self._count(lambda: super(Watched, self).pipe_file(path, value, mode=mode, **options))

    def rm(self, path: Any, *rest: Any, **options: Any) -> None:
        """Remove, or fail."""
        self._count(lambda: super(Watched, self).rm(path, *rest, **options))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> Any:
        """Read, and note how much."""
        self._reachable()
        data = super().cat_file(path, start=start, end=end, **options)
        self.bytes_read += len(data)
        self.reads.append(path)
        return data

    def info(self, path: str, **options: Any) -> Any:
        """Look up, where anything can be reached."""
        self._reachable()
        return super().info(path, **options)

    def _count(self, put: Callable[[], None]) -> None:
        self._reachable()
        self.count += 1
        if self.count == self.fails_at:
            self.down = True
            if self.arrives:
                put()
        self._reachable()
        put()

    def _reachable(self) -> None:
        if self.down:
            raise ConnectionError("the connection is lost")
