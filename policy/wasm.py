"""The embedded engine: the policy compiled by `opa build -t wasm`, run in this process on wasmtime.

The module follows OPA's ABI 1.2: `opa_eval` takes addresses of the data and of the input inside the module's memory
and returns that of a JSON text. Everything after the data is scratch and is given back before each evaluation.
"""

from __future__ import annotations

import functools
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import msgspec
import wasmtime

from policy.bundle import PolicyBundle, bundle_bytes, bundle_digest
from policy.evaluator import PolicyError, PolicyInput, PolicyVerdict
from policy.verdict import ENTRYPOINT, verdict_from

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_WASM_BYTES: Final = 4 * 1024 * 1024
MAX_INPUT_BYTES: Final = 64 * 1024
MAX_OUTPUT_BYTES: Final = 64 * 1024
MAX_MEMORY_PAGES: Final = 256
"""Of 64 KiB: 16 MiB for one instance. A policy that wants more stops, and the request is refused."""
FUEL_PER_EVALUATION: Final = 5_000_000
"""Instructions of one evaluation; shield.rego takes about a hundredth of it for a route table of a hundred."""
FUEL_PER_DATA_BYTE: Final = 100
"""More for each byte of the data: shield.rego looks through a route's subjects with some 35, and reads data with 15."""
_START_PAGES: Final = 2
_PAGE_BYTES: Final = 65_536
_JSON: Final = 0


_COMPILED_KEPT: Final = 4
_NO_SOURCES: Final[Mapping[str, str]] = MappingProxyType({})


@functools.cache
def _engine() -> wasmtime.Engine:
    config = wasmtime.Config()
    config.consume_fuel = True
    return wasmtime.Engine(config)


@functools.lru_cache(maxsize=_COMPILED_KEPT)
def _compiled(module_bytes: bytes) -> wasmtime.Module:
    """Compile for this machine, which takes a tenth of a second: once for each module, not for each set of data."""
    return wasmtime.Module(_engine(), module_bytes)


class WasmPolicy:
    """One compiled policy with its data. Owned by one event loop; evaluations do not overlap.

    `module_bytes`: the compiled policy, and `sources` the Rego that it was compiled from, for the bundle. `data`: the
    JSON document under `data`. `commit`: the git commit that it is of, if known. Raises PolicyError for a module that
    is not one of OPA's, that wants built-ins which only OPA's server has, or that lacks the entry point.
    """

    def __init__(
        self, module_bytes: bytes, data: bytes, sources: Mapping[str, str] = _NO_SOURCES, *, commit: str | None = None
    ) -> None:
        if len(module_bytes) > MAX_WASM_BYTES:
            raise PolicyError("the compiled policy is too large")
        raw_data = msgspec.Raw(data)
        bundle = PolicyBundle(engine="wasm", modules=dict(sources), data=raw_data, wasm=module_bytes, commit=commit)
        self._bundle, self._commit = bundle_bytes(bundle), commit
        self._digest = bundle_digest(self._bundle)
        self._module_bytes, self._source_data = module_bytes, data
        self._fuel = FUEL_PER_EVALUATION + FUEL_PER_DATA_BYTE * len(data)
        self._is_spoilt = False
        self._start()

    @property
    def digest(self) -> str:
        """Give the SHA-256 of `bundle`, lower-case hex."""
        return self._digest

    @property
    def bundle(self) -> bytes:
        """Give the module, its sources and its data as one document."""
        return self._bundle

    @property
    def commit(self) -> str | None:
        """Give the git commit that the module is of; None where nobody said."""
        return self._commit

    async def evaluate(self, policy_input: PolicyInput) -> PolicyVerdict:
        """Decide one request (about 50 µs, without waiting). Raises PolicyError if there is no usable answer."""
        return verdict_from(self.query(msgspec.json.encode(policy_input)))

    def query(self, policy_input: bytes) -> object:
        """Give the value of the entry point for an input in JSON. Raises PolicyError where it is undefined."""
        if len(policy_input) > MAX_INPUT_BYTES:
            raise PolicyError("the policy's input is too large")
        if self._is_spoilt:
            self._start()
        # Until it has returned: what stops midway leaves its stack pointer where it was, and the next one would write
        # a little further down, at last over the policy's own constants.
        self._is_spoilt = True
        try:
            self._store.set_fuel(self._fuel)
            results = self._evaluate(policy_input)
        except (wasmtime.WasmtimeError, wasmtime.Trap, ValueError, msgspec.DecodeError) as error:
            raise PolicyError("the policy stopped") from error
        self._is_spoilt = False
        match results:
            case [{"result": value}]:
                return value
            case _:
                raise PolicyError("the policy's answer is undefined")

    def _start(self) -> None:
        """Begin with a fresh instance. Raises PolicyError."""
        try:
            module = _compiled(self._module_bytes)
            self._store = wasmtime.Store(_engine())
            self._store.set_limits(memory_size=MAX_MEMORY_PAGES * _PAGE_BYTES)
            self._instantiate(module)
            self._load(self._source_data)
        except (wasmtime.WasmtimeError, wasmtime.Trap, ValueError, KeyError) as error:
            raise PolicyError("the compiled policy cannot be used") from error
        self._is_spoilt = False

    def _instantiate(self, module: wasmtime.Module) -> None:
        store, linker = self._store, wasmtime.Linker(self._store.engine)
        limits = wasmtime.Limits(_START_PAGES, MAX_MEMORY_PAGES)
        self._memory = wasmtime.Memory(store, wasmtime.MemoryType(limits))
        linker.define(store, "env", "memory", self._memory)
        i32 = wasmtime.ValType.i32()
        linker.define_func("env", "opa_abort", wasmtime.FuncType([i32], []), self._abort)
        linker.define_func("env", "opa_println", wasmtime.FuncType([i32], []), self._abort)
        for arguments in range(5):
            kind = wasmtime.FuncType([i32] * (2 + arguments), [i32])
            linker.define_func("env", f"opa_builtin{arguments}", kind, self._no_builtin)
        store.set_fuel(self._fuel)
        self._exports: Any = linker.instantiate(store, module).exports(store)
        entrypoints = self._call_json("entrypoints")
        builtins = self._call_json("builtins")
        if builtins:
            raise PolicyError("the compiled policy wants built-ins that only OPA's server has")
        if not isinstance(entrypoints, dict) or not isinstance(entrypoints.get(ENTRYPOINT), int):
            raise PolicyError(f"the compiled policy has no entry point {ENTRYPOINT}")
        self._entrypoint: int = entrypoints[ENTRYPOINT]

    def _load(self, data: bytes) -> None:
        address = self._exports["opa_malloc"](self._store, len(data))
        self._memory.write(self._store, data, address)
        self._data = self._exports["opa_json_parse"](self._store, address, len(data))
        if self._data == 0:
            raise PolicyError("the policy's data is not JSON")
        self._scratch: int = self._exports["opa_heap_ptr_get"](self._store)

    def _evaluate(self, policy_input: bytes) -> object:
        store, start = self._store, self._scratch
        end = start + len(policy_input)
        missing_bytes = end + MAX_OUTPUT_BYTES - self._memory.data_len(store)
        if missing_bytes > 0:
            self._memory.grow(store, -(-missing_bytes // _PAGE_BYTES))
        self._memory.write(store, policy_input, start)
        heap = (end + 7) & ~7
        address = self._exports["opa_eval"](
            store, 0, self._entrypoint, self._data, start, len(policy_input), heap, _JSON
        )
        return msgspec.json.decode(self._text(address))

    def _call_json(self, name: str) -> object:
        value = self._exports[name](self._store)
        return msgspec.json.decode(self._text(self._exports["opa_json_dump"](self._store, value)))

    def _text(self, address: int) -> bytes:
        raw = bytes(self._memory.read(self._store, address, address + MAX_OUTPUT_BYTES))
        end = raw.find(b"\x00")
        if end < 0:
            raise PolicyError("the policy's answer is too large")
        return raw[:end]

    def _abort(self, address: int) -> None:
        raise ValueError("the policy aborted")

    def _no_builtin(self, *_arguments: int) -> int:
        raise ValueError("the policy called a built-in that is not there")
