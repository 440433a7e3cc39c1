"""``magent sla`` beside a real nginx and a real Apache, on loopback, in a directory of its own."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

NGINX = """\
daemon off; pid {dir}/nginx.pid; error_log {dir}/error.log; worker_processes 1; {user}
events {{ worker_connections 64; }}
http {{
    log_format timed '{format}';
    access_log {dir}/access.log timed;
    client_body_temp_path {dir}/a; proxy_temp_path {dir}/b; fastcgi_temp_path {dir}/c;
    uwsgi_temp_path {dir}/d; scgi_temp_path {dir}/e;
    server {{ listen 127.0.0.1:{port}; root {dir}/www; location = /slow {{ limit_rate 20k; }} }}
}}
"""

APACHE = """\
ServerRoot {dir}
ServerName localhost
PidFile {dir}/apache.pid
ErrorLog {dir}/error.log
DefaultRuntimeDir {dir}
Mutex file:{dir} default
Listen 127.0.0.1:{port}
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule env_module {modules}/mod_env.so
LoadModule ratelimit_module {modules}/mod_ratelimit.so
{user}
DocumentRoot {dir}/www
LogFormat "{format}" timed
CustomLog {dir}/access.log timed
<Location /slow>
    SetOutputFilter RATE_LIMIT
    SetEnv rate-limit 20
</Location>
"""

MODULES = Path("/usr/lib/apache2/modules")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def serving(command: list[str], port: int) -> Generator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.02)
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        yield
    finally:
        process.terminate()
        process.communicate(timeout=30)


def get(port: int, path: str, agent: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path, headers={"User-Agent": agent})
    response = connection.getresponse()
    response.read()
    assert response.status == 200
    connection.close()


@pytest.fixture
def directory() -> Generator[Path]:
    """Give a directory that servers can read when they have dropped root, as pytest's own cannot be."""
    with tempfile.TemporaryDirectory(prefix="sla-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        www = directory / "www"
        www.mkdir()
        (www / "fast").write_bytes(b"x")
        (www / "slow").write_bytes(b"x" * 32768)
        yield directory


def nginx(directory: Path, port: int, log_format: str) -> list[str]:
    user = "user root;" if os.geteuid() == 0 else ""
    text = NGINX.format(dir=directory, port=port, format=log_format, user=user)
    (directory / "nginx.conf").write_text(text)
    return ["nginx", "-p", str(directory), "-c", str(directory / "nginx.conf")]


def apache(directory: Path, port: int, log_format: str) -> list[str]:
    user = "User www-data\nGroup www-data" if os.geteuid() == 0 else ""
    quoted = log_format.replace('"', '\\"')
    text = APACHE.format(dir=directory, port=port, format=quoted, user=user, modules=MODULES)
    (directory / "apache.conf").write_text(text)
    return ["apache2", "-d", str(directory), "-f", str(directory / "apache.conf"), "-DFOREGROUND"]


NGINX_FORMAT = '$msec $remote_user "$request" $status "$http_user_agent" $upstream_response_time $request_time'
APACHE_FORMAT = '%{end:usec}t %u "%r" %>s "%{User-Agent}i" %D'


@pytest.mark.parametrize(
    ("program", "start", "log_format"),
    [("nginx", nginx, NGINX_FORMAT), ("apache2", apache, APACHE_FORMAT)],
    ids=["nginx", "apache"],
)
def test_the_log_of_a_real_server_is_read(
    directory: Path,
    program: str,
    start: Callable[[Path, int, str], list[str]],
    log_format: str,
) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed (apt-get install nginx-light apache2-bin)")
    port = free_port()
    with serving(start(directory, port, log_format), port):
        for _ in range(5):
            get(port, "/fast", 'curl "0.000" \\ 9.9')  # a client that tries to spoil the log
        get(port, "/slow", "curl")
    log = str(directory / "access.log")
    options = ["--log", log, "--format", log_format, "--once", "--dry-run", "--output", "json", "--hard-ms", "100"]
    made = subprocess.run(
        [sys.executable, "-c", "from mchannel.agents.main import main; main()", "sla", *options],
        capture_output=True,
        text=True,
        check=True,
    )
    details = [json.loads(line)["detail"] for line in made.stdout.splitlines()]
    assert sum(detail["requests"] for detail in details) == 6
    assert sum(detail["hard"] for detail in details) == 1
    assert not any("unparsed" in detail for detail in details)
