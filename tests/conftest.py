"""One thread for torch: the models of these tests are so small that more only wait for one another. No network."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> None:
    """Nothing is fetched unless a user names it, so no test may connect to another machine."""
    connect = socket.socket.connect

    def only_here(self: socket.socket, address: Any) -> None:
        host = address[0] if isinstance(address, tuple) else ""
        assert host in ("", "localhost", "::1") or str(host).startswith("127."), f"a connection to {host}"
        connect(self, address)

    socket.socket.connect = only_here  # type: ignore[method-assign]
