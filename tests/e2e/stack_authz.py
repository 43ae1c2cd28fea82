"""A stand-in for the filter: an Authorization server that answers as a file tells it and writes down every Check.

    python tests/e2e/stack_authz.py VAR

VAR/authz-behaviour holds one word: `allow`, `deny`, `empty`, `no_status`, `error`, `hang`, `bad_mutation`, `undecided`,
`wrongly_decided`, or one of those that order the body to be seen through: `order`, and `order_close_header` and
`order_close_body`, after which the stand-in for ext_proc ends its stream too early, without an error. It is read at
each Check, so a test changes it without a restart. What the edge must do does not depend on how the real filter
decides, and `allow` shows that the edge's own refusals stand under a filter that lets everything through.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import grpc
from envoy.config.core.v3.base_pb2 import HeaderValue, HeaderValueOption
from envoy.service.auth.v3 import external_auth_pb2 as auth
from envoy.service.auth.v3 import external_auth_pb2_grpc as auth_grpc
from envoy.service.ext_proc.v3 import external_processor_pb2 as proc
from envoy.service.ext_proc.v3 import external_processor_pb2_grpc as proc_grpc
from envoy.type.v3.http_status_pb2 import HttpStatus
from google.protobuf.struct_pb2 import Struct
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

SUBJECT = "from-the-filter"
HANG_S = 30.0


def option(name: str, value: str) -> HeaderValueOption:
    return HeaderValueOption(
        header=HeaderValue(key=name, value=value), append_action=HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
    )


def allow() -> auth.CheckResponse:
    return auth.CheckResponse(
        status=Status(code=0),
        ok_response=auth.OkHttpResponse(
            headers=[option("x-signet-subject", SUBJECT)],
            headers_to_remove=["pch-channel-binding"],
            response_headers_to_add=[option("pch-challenge", '"from-the-filter"')],
        ),
        dynamic_metadata=decided("allow"),
    )


def order() -> auth.CheckResponse:
    response = allow()
    response.ok_response.headers.append(option("x-signet-body", "ordered"))
    response.dynamic_metadata.update({"body": "ordered"})
    return response


def decided(decision: str) -> Struct:
    metadata = Struct()
    metadata.update({"decision": decision})
    return metadata


def undecided() -> auth.CheckResponse:
    return auth.CheckResponse(status=Status(code=0), ok_response=auth.OkHttpResponse())


def wrongly_decided() -> auth.CheckResponse:
    return auth.CheckResponse(
        status=Status(code=0), ok_response=auth.OkHttpResponse(), dynamic_metadata=decided("deny")
    )


def deny() -> auth.CheckResponse:
    body = json.dumps({"title": "Unauthorized", "status": 401, "reason": "missing_signature"})
    headers = [
        option("www-authenticate", 'PCH realm="signet"'),
        option("pch-reason", "missing_signature"),
        option("content-type", "application/problem+json"),
    ]
    return auth.CheckResponse(
        status=Status(code=7),
        denied_response=auth.DeniedHttpResponse(status=HttpStatus(code=401), headers=headers, body=body),
    )


def no_status() -> auth.CheckResponse:
    return auth.CheckResponse(status=Status(code=0), denied_response=auth.DeniedHttpResponse(body="no status"))


def bad_mutation() -> auth.CheckResponse:
    return auth.CheckResponse(
        status=Status(code=0), ok_response=auth.OkHttpResponse(headers=[option("x-signet-subject", "a\r\nx-evil: b")])
    )


class Authorization(auth_grpc.AuthorizationServicer):  # type: ignore[misc]  # generated code has no types
    def __init__(self, var: Path) -> None:
        self._behaviour = var / "authz-behaviour"
        self._log = (var / "log" / "checks.jsonl").open("ab", buffering=0)
        self._worker = os.getpid()

    async def Check(self, request: auth.CheckRequest, context: grpc.aio.ServicerContext) -> auth.CheckResponse:  # noqa: N802
        http = request.attributes.request.http
        metadata = request.attributes.metadata_context.filter_metadata
        record = {
            "id": http.id,
            "worker": self._worker,
            "method": http.method,
            "path": http.path,
            "host": http.host,
            "scheme": http.scheme,
            "protocol": http.protocol,
            "headers": [(each.key, each.raw_value.decode("latin-1")) for each in http.header_map.headers],
            "plain_headers": dict(http.headers),
            "body_base64": base64.b64encode(http.raw_body).decode(),
            "binding": {name: dict(value.items()) for name, value in metadata.items()},
            "call": {key: value for key, value in context.invocation_metadata() if isinstance(value, str)},
        }
        self._log.write(json.dumps(record).encode() + b"\n")
        behaviour = self._behaviour.read_text().strip() if self._behaviour.exists() else "allow"
        if behaviour == "hang":
            await asyncio.sleep(HANG_S)
        if behaviour == "error":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "as told")
        made = {"deny": deny, "empty": auth.CheckResponse, "no_status": no_status, "bad_mutation": bad_mutation}
        made |= {"undecided": undecided, "wrongly_decided": wrongly_decided}
        if behaviour.startswith("order"):
            return order()
        return made.get(behaviour, allow)()


class ExternalProcessor(proc_grpc.ExternalProcessorServicer):  # type: ignore[misc]  # generated code has no types
    """Lets everything on, and ends too early when it is told to."""

    def __init__(self, var: Path) -> None:
        self._behaviour = var / "authz-behaviour"

    async def Process(self, _: object, context: grpc.aio.ServicerContext) -> None:  # noqa: N802
        behaviour = self._behaviour.read_text().strip()
        while (request := await context.read()) is not grpc.aio.EOF:
            answer = proc.ProcessingResponse()
            if request.HasField("request_headers"):
                if behaviour == "order_close_header":
                    return
                answer.request_headers.SetInParent()
                answer.dynamic_metadata.update({"signet.body": {"receipt": "r"}})
            elif request.HasField("request_body"):
                if behaviour == "order_close_body":
                    return
                sent = answer.request_body.response.body_mutation.streamed_response
                sent.body, sent.end_of_stream = request.request_body.body, request.request_body.end_of_stream
            else:
                answer.request_trailers.SetInParent()
            await context.write(answer)


async def serve(var: Path, worker: int) -> None:
    server = grpc.aio.server()
    auth_grpc.add_AuthorizationServicer_to_server(Authorization(var), server)
    proc_grpc.add_ExternalProcessorServicer_to_server(ExternalProcessor(var), server)
    checker = health.aio.HealthServicer()
    await checker.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checker, server)
    path = var / "run" / f"signet-{worker}.sock"
    path.unlink(missing_ok=True)
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await server.stop(0)


def supervise(var: Path) -> None:
    """Two workers, as the real filter has; a dead one stays dead, and VAR/authz-pids names them."""
    workers = [subprocess.Popen([sys.executable, __file__, str(var), str(worker)]) for worker in range(2)]
    (var / "authz-pids").write_text(" ".join(str(worker.pid) for worker in workers))

    def end(*_: object) -> None:
        for worker in workers:
            worker.kill()

    signal.signal(signal.SIGTERM, end)
    for worker in workers:
        worker.wait()


if __name__ == "__main__":
    if len(sys.argv) == 2:
        supervise(Path(sys.argv[1]))
    else:
        asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2])))
