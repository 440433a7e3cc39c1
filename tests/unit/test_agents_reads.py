"""Reading what watches already: real plug-ins and daemons where they are installed, and peers that misbehave."""

from __future__ import annotations

import asyncio
import http.server
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mchannel.agents.publisher import Reading
from mchannel.agents.reads import reader
from mchannel.agents.settings import ReadSettings, parse
from tests.unit.processes import is_running

PLUGINS = Path("/usr/lib/nagios/plugins")


def look(**settings: Any) -> list[Reading]:
    return asyncio.run(reader(ReadSettings(name="x", **settings))())


def values(readings: list[Reading]) -> dict[str, float]:
    return {reading.series.metric: reading.value for reading in readings}


def port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        found: int = listener.getsockname()[1]
        return found


@contextmanager
def running(*command: str | Path) -> Generator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def eventually(ask: Callable[[], list[Reading]]) -> list[Reading]:
    """Return what *ask* does, once the daemon listens and knows something."""
    late = time.monotonic() + 60
    while True:
        try:
            if found := ask():
                return found
        except OSError:
            if time.monotonic() > late:
                raise
        assert time.monotonic() < late
        time.sleep(0.1)


# -- plug-ins


def shell(script: str, timeout: float = 20.0) -> list[Reading]:
    return look(kind="nagios", command=["/bin/sh", "-c", script], timeout=timeout)


def test_a_plugin_says_its_state_by_how_it_ends_and_its_values_behind_a_bar() -> None:
    assert values(shell("echo 'WARNING|load=5'; exit 1")) == {"nagios.state": 1, "nagios.value": 5}


def test_a_plugin_that_takes_too_long_is_ended_with_its_children_and_unknown(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    assert values(shell(f"sleep 99 & echo $! $$ > {pids}; wait", timeout=3.0)) == {"nagios.state": 3}
    for pid in pids.read_text().split():
        deadline = time.monotonic() + 20
        while is_running(pid):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_plugin_that_never_stops_talking_is_read_to_a_bound() -> None:
    (state,) = shell("head -c 3000000 /dev/zero; exit 2")
    assert state.value == 2


def test_a_plugin_has_nothing_to_read_and_no_shell_sees_its_arguments() -> None:
    assert values(look(kind="nagios", command=["/bin/echo", "|$HOME=1 a=2"])) == {
        "nagios.state": 0,
        "nagios.value": 2,
    }
    assert values(shell("read line && exit 2; exit 1")) == {"nagios.state": 1}


def test_what_a_plugin_says_is_read_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []

    def told(*_: object) -> list[Reading]:
        threads.append(threading.current_thread())
        return []

    monkeypatch.setattr("mchannel.agents.reads.from_output", told)
    shell("true")
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()


def test_a_plugin_that_takes_too_long_is_unknown_before_nobody_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []
    timeout = asyncio.timeout

    def note(seconds: float) -> asyncio.Timeout:
        given.append(seconds)
        return timeout(seconds)

    monkeypatch.setattr(asyncio, "timeout", note)
    assert values(look(kind="nagios", command=["/bin/sleep", "99"], timeout=0.5)) == {"nagios.state": 3}
    (patience,) = given
    assert patience < 0.5


def test_a_plugin_that_is_not_there_raises() -> None:
    with pytest.raises(FileNotFoundError):
        look(kind="nagios", command=["/nowhere/check"])


@pytest.mark.skipif(not (PLUGINS / "check_load").exists(), reason="needs the Debian package monitoring-plugins-basic")
@pytest.mark.parametrize(
    ("plugin", "label"),
    [
        (["check_load", "-w", "99,99,99", "-c", "99,99,99"], "load1"),
        (["check_disk", "-w", "1%", "-c", "1%", "-p", "/"], "/"),
        (["check_procs"], "procs"),
        (["check_users", "-w", "99", "-c", "99"], "users"),
    ],
)
def test_the_usual_plugins_are_understood(plugin: list[str], label: str) -> None:
    told = look(kind="nagios", command=[str(PLUGINS / plugin[0]), *plugin[1:]])
    assert told[0].series.metric == "nagios.state"
    assert told[0].value in {0, 1, 2}
    assert label in {dict(reading.series.labels).get("label") for reading in told}


# -- documents


@contextmanager
def web(answer: Callable[[http.server.BaseHTTPRequestHandler], None]) -> Generator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                answer(self)
            except OSError:
                return  # the client has had enough

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the original
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/metrics"
        finally:
            server.shutdown()
            thread.join()


def says(body: bytes, status: int = 200, **headers: str) -> Callable[[http.server.BaseHTTPRequestHandler], None]:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def test_an_exporter_is_asked_by_http_and_its_series_get_the_labels() -> None:
    with web(says(b"up 1\n")) as url:
        (reading,) = look(kind="prometheus", url=url, labels={"role": "db"})
    assert (reading.series.metric, reading.series.labels) == ("up", (("role", "db"),))


def test_a_label_that_a_series_has_itself_stays() -> None:
    with web(says(b'up{role="web"} 1\n')) as url:
        (reading,) = look(kind="prometheus", url=url, labels={"role": "db"})
    assert reading.series.labels == (("role", "web"),)


@pytest.mark.parametrize("status", [404, 500, 302])
def test_an_exporter_that_refuses_or_sends_elsewhere_is_one_line(status: int) -> None:
    with web(says(b"", status, Location="file:///etc/passwd")) as url, pytest.raises(OSError, match=f"^{url}: "):
        look(kind="prometheus", url=url)


def test_an_exporter_that_never_ends_is_cut_off() -> None:
    def flood(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(b"# nothing\n" * 10_000)

    with web(flood) as url, pytest.raises(OSError, match="longer than 16 MiB"):
        look(kind="prometheus", url=url, timeout=60.0)


def test_an_exporter_that_drips_is_cut_off() -> None:
    def drip(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(b"#")
            time.sleep(0.02)

    with web(drip) as url, pytest.raises(OSError, match="takes too long"):
        look(kind="prometheus", url=url, timeout=2.0)


@pytest.mark.parametrize(
    "settings", [{"kind": "prometheus", "url": "http://{}/"}, {"kind": "ganglia", "address": "{}"}]
)
def test_who_says_nothing_is_waited_for_no_longer_than_the_timeout(settings: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        where = f"127.0.0.1:{silent.getsockname()[1]}"
        asked: dict[str, Any] = {name: value.format(where) for name, value in settings.items()}

        async def waited() -> list[Reading]:
            return await asyncio.wait_for(reader(ReadSettings(name="x", timeout=0.2, **asked))(), 30)

        with pytest.raises(OSError, match=f"{where}/?: .*timed out"):
            asyncio.run(waited())


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"kind": "prometheus", "url": "http://127.0.0.1:1/"}, "Connection refused"),
        ({"kind": "ganglia", "address": "127.0.0.1:1"}, "Connection refused"),
        ({"kind": "ganglia", "file": "/nowhere/x.xml"}, "/nowhere/x.xml: No such file"),
    ],
)
def test_what_cannot_be_reached_is_named_in_one_line(settings: dict[str, str], why: str) -> None:
    with pytest.raises(OSError, match=why):
        look(**settings)


def test_a_look_that_has_not_ended_is_not_begun_again() -> None:
    async def twice(url: str) -> list[object]:
        read = reader(ReadSettings(name="x", kind="prometheus", url=url))
        return list(await asyncio.gather(read(), read(), return_exceptions=True))

    with web(says(b"up 1\n")) as url:
        answers = asyncio.run(twice(url))
    assert [type(answer) for answer in answers] == [list, BlockingIOError]


def test_a_file_holds_what_an_exporter_would_say(tmp_path: Path) -> None:
    (tmp_path / "x.prom").write_text("up 1\n")
    assert values(look(kind="prometheus", file=str(tmp_path / "x.prom"))) == {"up": 1}


def test_a_gmond_that_is_asked_twice_tells_a_measurement_once(tmp_path: Path) -> None:
    (tmp_path / "x.xml").write_text('<GANGLIA_XML><METRIC NAME="load_one" VAL="1" TN="0"/></GANGLIA_XML>')

    async def twice() -> list[list[Reading]]:
        read = reader(ReadSettings(name="x", kind="ganglia", file=str(tmp_path / "x.xml")))
        return [await read(), await read()]

    first, second = asyncio.run(twice())
    assert (values(first), second) == ({"load_one": 1}, [])


@pytest.mark.skipif(
    not shutil.which("prometheus-node-exporter"), reason="needs the Debian package prometheus-node-exporter"
)
def test_node_exporter_is_understood() -> None:
    address = f"127.0.0.1:{port()}"
    with running("prometheus-node-exporter", f"--web.listen-address={address}"):
        told = values(eventually(lambda: look(kind="prometheus", url=f"http://{address}/metrics")))
    assert told["node_load1"] >= 0
    assert told["node_memory_MemTotal_bytes"] > 0


@pytest.fixture
def gmond(tmp_path: Path) -> Generator[str]:
    where = port()
    config = tmp_path / "gmond.conf"
    (module,) = Path("/usr/lib").glob("*/ganglia/modload.so")
    config.write_text(
        f"""globals {{ daemonize = no  setuid = no  deaf = no  mute = no  send_metadata_interval = 1 }}
cluster {{ name = "lab" }}
udp_send_channel {{ host = 127.0.0.1  port = {where} }}
udp_recv_channel {{ port = {where}  bind = 127.0.0.1 }}
tcp_accept_channel {{ port = {where}  bind = 127.0.0.1 }}
collection_group {{ collect_every = 1  time_threshold = 1
  metric {{ name = "load_one"  value_threshold = 0.0 }} }}
modules {{ module {{ name = "core_metrics" }} module {{ name = "load_module"  path = "{module}" }} }}
"""
    )
    with running("gmond", "-f", "-c", config):
        yield f"127.0.0.1:{where}"


@pytest.mark.skipif(not shutil.which("gmond"), reason="needs the Debian package ganglia-monitor")
def test_gmond_is_understood(gmond: str) -> None:
    (load,) = [r for r in eventually(lambda: look(kind="ganglia", address=gmond)) if r.series.metric == "load_one"]
    assert load.value >= 0
    assert load.at is not None
    assert abs(load.at - time.time() * 1000) < 120_000
    assert dict(load.series.labels)["cluster"] == "lab"


# -- configuration


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('kind = "nagios"', r"read\.0\.name: is missing"),
        ('kind = "munin"\nname = "x"', r"read\.0\.kind: must be one of nagios, ganglia, prometheus"),
        ('kind = "nagios"\nname = ""\ncommand = ["x"]', "name: must be a text of 1 to 256"),
        ('kind = "nagios"\nname = "x"', "needs command, and nothing else"),
        ('kind = "nagios"\nname = "x"\nurl = "http://x"', "needs command, and nothing else"),
        ('kind = "nagios"\nname = "x"\ncommand = "ls"', "command: must be a list of a program and its arguments"),
        ('kind = "ganglia"\nname = "x"\naddress = "x:1"\nfile = "/x"', "needs address or file, and nothing else"),
        ('kind = "ganglia"\nname = "x"\naddress = "x"', "a host and a port"),
        ('kind = "prometheus"\nname = "x"\nurl = "file:///etc/passwd"', "url: must be something that begins with http"),
        ('kind = "prometheus"\nname = "x"\nfile = "x"', "the whole path"),
        ('kind = "prometheus"\nname = "x"\nfile = "/x"\ntimeout = 0', "timeout: must be 0.05 to 600"),
        ('kind = "prometheus"\nname = "x"\nfile = "/x"\nlabels = {for = "x"}', "labels: must be up to 8 names"),
        ('kind = "prometheus"\nname = "x"\nfile = "/x"\nlabels = ["x"]', "labels: must be up to 8 names"),
    ],
)
def test_a_reader_that_is_configured_wrongly_is_one_line_with_its_key(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse("[[read]]\n" + text)


def test_readers_have_names_of_their_own() -> None:
    section = '[[read]]\nkind = "prometheus"\nname = "x"\nfile = "/x"\n'
    with pytest.raises(ValueError, match="two sections have the same name"):
        parse(section * 2)


def test_this_test_leaves_no_process_behind() -> None:
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    assert not [pid for pid in children if b"sleep" in Path(f"/proc/{pid}/cmdline").read_bytes()]
