"""A process that dies by SIGKILL before the n-th step that its disk sees, for every n until it lives to the end.

Argument: a folder with a passphrase file. For each n a child opens a store of its own, tells of a first key, is armed,
makes a second key and destroys the first one. One JSON line for each child: its folder, what it told, whether it died.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from kms.primitive import Primitive
from tests.support.provider_parts import kid_of, open_quick_file_provider

STEPS = ("open", "fdopen", "fsync", "link", "unlink", "replace", "close")
MAX_STEPS = 200


def arm(dies_before: int) -> None:
    """Count what reaches the disk and die before step `dies_before`; a write dies when half of it is written."""
    count = itertools.count()

    def wrapped(call: Any) -> Any:
        def step(*arguments: Any, **named: Any) -> Any:
            if next(count) >= dies_before:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **named)

        return step

    def half_writing(call: Any) -> Any:
        def step(*arguments: Any, **named: Any) -> Any:
            file = call(*arguments, **named)
            if file.writable() and next(count) >= dies_before:
                write = file.write

                def half(data: bytes) -> None:
                    write(data[: len(data) // 2])
                    file.flush()
                    os.kill(os.getpid(), signal.SIGKILL)

                file.write = half
            return file

        return step

    for name in STEPS:
        setattr(os, name, half_writing(os.fdopen) if name == "fdopen" else wrapped(getattr(os, name)))


def tell(pipe: int, **facts: str) -> None:
    os.write(pipe, json.dumps(facts).encode() + b"\n")


def child(folder: Path, pipe: int, dies_before: int) -> None:
    provider = open_quick_file_provider(folder)
    first = provider.generate(Primitive.ED25519, kid_of(Primitive.ED25519, 1))
    tell(pipe, made=first.handle, public=first.public.hex())
    arm(dies_before)
    second = provider.generate(Primitive.ML_DSA_65, kid_of(Primitive.ML_DSA_65, 2))
    tell(pipe, made=second.handle, public=second.public.hex())
    provider.destroy(first.handle)
    tell(pipe, destroyed=first.handle)


def main(base: Path) -> None:
    for dies_before in range(MAX_STEPS):
        folder = base / str(dies_before)
        folder.mkdir()
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            child(folder, writer, dies_before)
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as told:
            lines = [json.loads(line) for line in told.read().splitlines()]
        _, status = os.waitpid(pid, 0)
        died = os.WIFSIGNALED(status)
        print(json.dumps({"folder": str(folder), "told": lines, "died": died, "status": status}), flush=True)
        if not died:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]))
