"""A SoftHSM2 of the test's own: its folder, its token, and ways to lose it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

MODULE = Path("/usr/lib/softhsm/libsofthsm2.so")
LABEL = "RON-KMS"
PIN = "12345678"
PIN_ENV = "SIGNET_TEST_PKCS11_PIN"
CONF_ENV = "SOFTHSM2_CONF"
TIMEOUT_S = 20


def is_there() -> bool:
    """Tell whether SoftHSM2 is installed."""
    return MODULE.exists() and shutil.which("softhsm2-util") is not None


class SoftHsm:
    """One token in one folder. The module reads its configuration's place from the environment of this process."""

    def __init__(self, folder: Path) -> None:
        self.tokens = folder / "tokens"
        self.away = folder / "tokens-away"
        self.tokens.mkdir(parents=True)
        self.conf = folder / "softhsm2.conf"
        self.conf.write_text(f"directories.tokendir = {self.tokens}\nobjectstore.backend = file\nlog.level = ERROR\n")
        self._before = os.environ.get(CONF_ENV)
        os.environ[CONF_ENV] = str(self.conf)
        self.init_token("--free")

    @property
    def environ(self) -> dict[str, str]:
        """The environment that the provider gets its PIN from."""
        return {PIN_ENV: PIN}

    def init_token(self, *slot: str) -> None:
        """Initialise the token: a new one (--free), or the present one anew (--token, its label), which empties it."""
        subprocess.run(
            ["softhsm2-util", "--init-token", *slot, "--label", LABEL, "--pin", PIN, "--so-pin", PIN],
            check=True,
            capture_output=True,
            timeout=TIMEOUT_S,
        )

    def lose(self) -> None:
        """Take the token away under whoever uses it."""
        self.tokens.rename(self.away)

    def bring_back(self) -> None:
        """Put it back as it was."""
        self.away.rename(self.tokens)

    def stop(self) -> None:
        """Give the environment back as it was."""
        if self._before is None:
            os.environ.pop(CONF_ENV, None)
        else:
            os.environ[CONF_ENV] = self._before
