"""Where one worker's rules come from: what its supervisor accepted, or the file itself where it has none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from extproc.accepted import Accepted, read_accepted, take
from extproc.config import ConfigError
from extproc.reload import needs_restart

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from extproc.config import FilterConfig
    from extproc.rules import Rules


class RulesSource:
    """`path`: the TOML file. `accepted`: where the supervisor keeps what it accepted; None without a supervisor.

    All workers of a supervisor take the same bytes, the policy's among them, whatever becomes of the files meanwhile.
    """

    def __init__(self, path: Path, environ: Mapping[str, str], accepted: Path | None) -> None:
        self._path, self._environ, self._accepted = path, environ, accepted
        self._taken: Accepted | None = None

    def first(self) -> Rules:
        """Give the rules to start with. Raises ConfigError."""
        if self._accepted is None:
            return take(self._path, self._environ)[1]
        self._taken = read_accepted(self._accepted)
        return self._taken.rules(self._path, self._environ)

    def again(self, current: FilterConfig) -> Rules:
        """Give the rules that count from now on. Raises ConfigError, which says why nothing changes."""
        if self._accepted is None:
            return _changeable(current, take(self._path, self._environ)[1])
        accepted = read_accepted(self._accepted)
        if accepted != self._taken:
            rules = _changeable(current, accepted.rules(self._path, self._environ))
            self._taken = accepted
            return rules
        # Nothing new was accepted: what the file holds is the same, or the reason why it was not.
        found, rules = take(self._path, self._environ)
        _changeable(current, rules)
        if found != accepted:
            raise ConfigError(f"{self._path}: was changed while it was loaded; load it again")
        return rules


def _changeable(current: FilterConfig, rules: Rules) -> Rules:
    if fixed := needs_restart(current, rules.config):
        raise ConfigError(f"a change of {', '.join(fixed)} needs a restart")
    return rules
