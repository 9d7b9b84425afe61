import os
import socket

import pytest

from tvau_edge.runtime.service.supervision import Notifier


class Systemd:
    """Listens where systemd would."""

    def __init__(self, address):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.settimeout(10)

    def hear(self):
        return self.socket.recv(4096).decode().split("\n")


@pytest.fixture(params=["a file", "the abstract name space"])
def systemd(request, tmp_path):
    """A socket, and its address as it stands in NOTIFY_SOCKET."""
    if request.param == "a file":
        address = shown = str(tmp_path / "notify")
    else:
        address, shown = f"\0tvau-{os.getpid()}", f"@tvau-{os.getpid()}"
    listener = Systemd(address)
    yield listener, shown
    listener.socket.close()


def test_it_tells_systemd(systemd):
    listener, address = systemd
    notifier = Notifier(address, 30)
    notifier.ready("watching 2 cameras")
    assert listener.hear() == ["READY=1", "STATUS=watching 2 cameras"]
    notifier.alive()
    assert listener.hear() == ["WATCHDOG=1"]
    notifier.allow(600)
    assert listener.hear() == ["WATCHDOG_USEC=600000000", "WATCHDOG=1"]
    notifier.reloading()
    said = listener.hear()
    assert said[0] == "RELOADING=1"
    assert int(said[1].removeprefix("MONOTONIC_USEC=")) > 0
    notifier.status("two\nlines")
    assert listener.hear() == ["STATUS=two lines"]
    notifier.stopping()
    assert listener.hear() == ["STOPPING=1"]
    notifier.close()
    notifier.alive()  # nothing is said any more, and nothing fails


def test_the_environment_is_taken_and_not_passed_on(monkeypatch, tmp_path):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert Notifier.from_environment().watchdog_seconds == 30
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & os.environ.keys()


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WATCHDOG_USEC": "30000000"},
        {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"},
        {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "soon"},
        {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "0"},
    ],
)
def test_nobody_waits_for_us(monkeypatch, environment):
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Notifier.from_environment().watchdog_seconds is None


@pytest.mark.parametrize("address", [None, "", "/absent/notify"])
def test_where_nobody_listens_nothing_fails(address):
    notifier = Notifier(address, 30)
    notifier.ready()
    notifier.alive()
    notifier.allow(60)
    notifier.close()
