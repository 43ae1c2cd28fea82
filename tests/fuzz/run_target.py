"""Run one fuzz target under atheris: `python tests/fuzz/run_target.py TARGET SECONDS CORPUS_DIR`.

The corpus begins with the target's seeds and grows in CORPUS_DIR. A crash leaves its input there as `crash-…`, and the
exit status is not 0. Coverage is of the key service's own modules.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import atheris

with atheris.instrument_imports(include=["kms", "receipts"]):
    from tests.support.kms_fuzz import SEEDS, TARGETS

MAX_INPUT_BYTES = 16_384
MAX_RSS_MIB = 768
TIMEOUT_S = 10


def main() -> None:
    """Write the seeds, then fuzz."""
    name, seconds, corpus = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(SEEDS[name]):
        (corpus / f"seed-{number}").write_bytes(seed)
    options = [f"-max_total_time={seconds}", f"-max_len={MAX_INPUT_BYTES}", f"-rss_limit_mb={MAX_RSS_MIB}"]
    options += [f"-timeout={TIMEOUT_S}", f"-artifact_prefix={corpus}/", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
