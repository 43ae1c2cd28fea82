"""A real PostgreSQL server for the tests: its own cluster, on a UNIX socket alone, ended by its process id."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psycopg

USER = "postgres"
START_TIMEOUT_S = 30.0
_SETTINGS = {
    "listen_addresses": "",
    "fsync": "on",
    "shared_buffers": "32MB",
    "max_connections": "60",
    "max_wal_size": "128MB",
    "log_min_messages": "warning",
}


def program(name: str) -> str:
    """Find a program of the newest PostgreSQL installed. Not a skip: without it the contract is not tested."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: float(path.parts[-3]))
    path = str(found[-1]) if found else shutil.which(name)
    assert path is not None, f"{name} is not installed (tools/parts.sh postgresql installs it)"
    return path


def _as_server_user(*command: str) -> list[str]:
    """PostgreSQL refuses to run as root; setpriv becomes the command itself, so that the process id is its own."""
    if os.geteuid() != 0:
        return list(command)
    return ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups", *command]


class PostgresServer:
    """One cluster in `folder`; the role `locked` needs its password, everyone else is let in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None
        self._data = folder / "data"
        self._databases = 0
        # Every parent is traversable: tempfile makes the folder itself for its owner alone.
        folder.chmod(0o755)
        self._sockets = folder / "s"
        self._sockets.mkdir()
        if os.geteuid() == 0:
            user = pwd.getpwnam(USER)
            for path in (folder, self._sockets):
                os.chown(path, user.pw_uid, user.pw_gid)
        subprocess.run(
            _as_server_user(
                program("initdb"), "-D", str(self._data), "-U", USER, "-A", "trust", "-E", "UTF8", "--no-locale", "-N"
            ),
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=folder,
        )
        (self._data / "pg_hba.conf").write_text("local all locked scram-sha-256\nlocal all all trust\n")

    def start(self, *more_settings: str) -> None:
        settings = [f"-c{name}={value}" for name, value in _SETTINGS.items()]
        settings += [f"-c{setting}" for setting in more_settings]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                _as_server_user(program("postgres"), "-D", str(self._data), f"-k{self._sockets}", *settings),
                stdout=log,
                stderr=log,
                cwd=self.folder,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                psycopg.connect(self.url("postgres")).close()
            except psycopg.OperationalError:
                assert self.process.poll() is None, (self.folder / "log").read_text()[-2000:]
                assert time.monotonic() < deadline, "PostgreSQL does not answer"
                time.sleep(0.02)
            else:
                return

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End the server: SIGINT breaks off what runs, SIGQUIT leaves as after a crash."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(START_TIMEOUT_S)
            self.process = None

    def url(self, database: str, user: str = USER, password: str | None = None) -> str:
        secret = "" if password is None else f":{password}"
        return f"postgresql://{user}{secret}@/{database}?host={self._sockets}"

    def new_database(self) -> str:
        """Make an empty database and return its URL."""
        self._databases += 1
        name = f"receipts_{self._databases}"
        self.run("postgres", f"CREATE DATABASE {name}")
        return self.url(name)

    def run(self, database: str, *statements: str) -> None:
        """Run statements as the superuser."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())
