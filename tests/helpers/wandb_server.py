"""A stand-in for Weights & Biases' server: what the real client asks of it to keep a run.

It answers the client's GraphQL calls (who am I, does the run exist, open it, where do files
go) and takes the file stream: history, summary, exit code. `WandbServer` runs in a thread on
the loopback; `record` holds every call, `runs` what was kept.
"""

import gzip
import json
import re
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "a" * 40


@dataclass
class StoredRun:
    """A run as the server keeps it."""

    name: str
    project: str
    values: dict[str, Any] = field(default_factory=dict)
    history: list[dict] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    exit_codes: list[int] = field(default_factory=list)
    # lines of each file of the stream, as their offsets count
    lines: dict[str, int] = field(default_factory=dict)
    preempting: bool = False


class WandbServer:
    """`with WandbServer() as server:` serves at `server.url`; `stop()` and `start()` between."""

    def __init__(self) -> None:
        self.record: list[tuple[str, str]] = []
        self.runs: dict[str, StoredRun] = {}
        self.unknown: list[str] = []
        # a sweep's configuration, and the runs that an agent is still to be given
        self.sweep = ""
        self.drawn: list[tuple[str, dict[str, Any]]] = []
        # workspaces and reports
        self.views: list[dict[str, Any]] = []
        # what each artifact is: tables are artifacts, too
        self.artifacts: list[dict[str, Any]] = []
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY}

    def __enter__(self) -> "WandbServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        handler = type("Handler", (_Handler,), {"kept": self})
        self._http = _Server(("127.0.0.1", self.port), handler)
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def graphql(self, asked: dict[str, Any]) -> dict[str, Any]:
        named = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
        name = asked.get("operationName") or (named[1] if named else asked["query"])
        self.record.append(("graphql", name))
        answer = getattr(self, f"_answer_{name}", None)
        if answer is None:
            self.unknown.append(name)
            return {}
        return answer(asked.get("variables") or {})

    def _answer_Viewer(self, _: dict) -> dict:
        viewer = {"id": "VXNlcjox", "entity": "me", "username": "me", "email": "me@here"}
        viewer |= {"flags": "{}", "teams": {"edges": []}, "admin": False, "name": "me"}
        return {"viewer": viewer}

    def _answer_GetDefaultEntity(self, _: dict) -> dict:
        return {"viewer": {"id": "VXNlcjox", "entity": "me"}}

    def _answer_GetProjects(self, _: dict) -> dict:
        info = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
        return {"models": {"pageInfo": info, "edges": []}}

    def _answer_CreateProject(self, variables: dict) -> dict:
        project = {"id": "UHJvamVjdDox", "name": variables.get("name"), "entityName": "me"}
        return {"upsertModel": {"model": project, "project": project, "inserted": True}}

    def _answer_ServerFeaturesQuery(self, _: dict) -> dict:
        return {"serverInfo": {"features": []}}

    def _answer_RunResumeStatus(self, variables: dict) -> dict:
        run = self.runs.get(variables["name"])
        model = {"id": "UHJvamVjdDox", "name": variables["project"], "entity": {"name": "me"}}
        if run is None:
            return {"model": model | {"bucket": None}}
        bucket = {
            "id": _id_of(run),
            "name": run.name,
            "summaryMetrics": json.dumps(run.summary),
            "displayName": run.values.get("displayName"),
            "logLineCount": run.lines.get("output.log", 0),
            "historyLineCount": run.lines.get("wandb-history.jsonl", 0),
            "eventsLineCount": run.lines.get("wandb-events.jsonl", 0),
            "historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]),
            "eventsTail": "[]",
            "config": json.dumps(run.config),
            "tags": run.values.get("tags") or [],
            "wandbConfig": json.dumps({"t": {}}),
        }
        return {"model": model | {"bucket": bucket}}

    def _answer_UpsertBucket(self, variables: dict) -> dict:
        name = variables.get("name") or variables.get("id")
        is_new = name not in self.runs
        run = self.runs.setdefault(name, StoredRun(name, variables.get("project") or ""))
        run.values |= {key: value for key, value in variables.items() if value is not None}
        if variables.get("config"):
            run.config |= json.loads(variables["config"])
        entity = {"name": run.values.get("entity", "me"), "id": "x"}
        project = {"id": "UHJvamVjdDox", "name": run.project, "entity": entity}
        bucket = {"id": _id_of(run), "name": run.name, "project": project, "sweepName": None,
                  "displayName": run.values.get("displayName") or run.name, "config": "{}",
                  "historyLineCount": 0}  # fmt: skip
        return {"upsertBucket": {"bucket": bucket, "inserted": is_new}}

    def _answer_CreateRunFiles(self, variables: dict) -> dict:
        run = variables["run"]
        files = [
            {"name": name, "uploadUrl": f"{self.url}/upload/{run}/{name}"}
            for name in variables["files"]
        ]
        return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": files}}

    def _answer_CreateArtifact(self, variables: dict) -> dict:
        """Keep what an artifact is, and say that its content is known already."""
        asked = variables["input"]
        self.artifacts.append(asked)
        sequence = {"latestArtifact": None}
        artifact = {"id": "QXJ0aWZhY3Q6MQ==", "state": "COMMITTED", "artifactSequence": sequence}
        return {"createArtifact": {"artifact": artifact}}

    def _answer_UpsertView2(self, variables: dict) -> dict:
        """Keep a workspace or a report."""
        self.views.append(variables)
        view = {key: variables.get(key) for key in ("name", "displayName", "description", "type")}
        view |= {"id": f"Vmlldzo{len(self.views)}", "spec": variables["spec"]}
        view |= {"project": {"id": "UHJvamVjdDox", "name": variables["projectName"],
                             "entityName": variables["entityName"]}}  # fmt: skip
        return {
            "upsertView": {"view": view | {"updatedAt": "2026-01-01T00:00:00"}, "inserted": True}
        }

    _answer_upsertView = _answer_UpsertView2

    def _answer_UpsertSweep(self, variables: dict) -> dict:
        self.sweep = variables["config"]
        project = {"id": "UHJvamVjdDox", "name": variables["projectName"], "entity": {"name": "me"}}
        sweep = {"id": "U3dlZXA6MQ==", "name": "abcd1234", "project": project}
        return {"upsertSweep": {"sweep": sweep, "configValidationWarnings": []}}

    def _answer_SweepWithRuns(self, _: dict) -> dict:
        sweep = {"id": "U3dlZXA6MQ==", "name": "abcd1234", "method": "bayes", "state": "RUNNING",
                 "config": self.sweep, "createdAt": "2026-01-01T00:00:00", "runs": {"edges": []},
                 "description": "", "heartbeatAt": None, "updatedAt": None, "earlyStopJobRunning":
                 False, "controller": None, "scheduler": None}  # fmt: skip
        return {"project": {"sweep": sweep}}

    def _answer_CreateAgent(self, _: dict) -> dict:
        return {"createAgent": {"agent": {"id": "QWdlbnQ6MQ=="}}}

    def _answer_Heartbeat(self, _: dict) -> dict:
        """Hand out the runs that were drawn, one by one; stop the agent when all have ended."""
        commands: list[dict[str, Any]] = []
        if self.drawn:
            name, words = self.drawn.pop(0)
            args = {key: {"value": value} for key, value in words.items()}
            commands = [{"type": "run", "run_id": name, "args": args, "program": "train.py"}]
        elif self.runs and all(run.exit_codes for run in self.runs.values()):
            commands = [{"type": "exit"}]
        agent = {"id": "QWdlbnQ6MQ=="}
        return {"agentHeartbeat": {"agent": agent, "commands": json.dumps(commands)}}

    def _answer_ArtifactType(self, _: dict) -> dict:
        return {"project": None}

    def _answer_UseArtifact(self, variables: dict) -> dict:
        return {"useArtifact": {"artifact": {"id": variables["input"]["artifactID"]}}}

    def _answer_XXHashDigestsEnabled(self, _: dict) -> dict:
        return {"entity": {"xxhashDigestsEnabled": False}}

    def stream(self, name: str, asked: dict[str, Any]) -> dict[str, Any]:
        """Take a piece of the file stream of a run."""
        self.record.append(("file_stream", ",".join(asked.get("files") or asked)))
        run = self.runs[name]
        for file, piece in (asked.get("files") or {}).items():
            content = piece["content"]
            if file == "wandb-history.jsonl":
                # a piece that is sent again replaces itself
                del run.history[piece["offset"] :]
                run.history += [json.loads(line) for line in content]
            if file == "wandb-summary.json":
                run.summary = json.loads(content[-1])
            run.lines[file] = max(run.lines.get(file, 0), piece["offset"] + len(content))
        run.preempting = run.preempting or bool(asked.get("preempting"))
        if asked.get("complete"):
            run.exit_codes.append(asked["exitcode"])
        return {"exitcode": None, "limits": {}}


def _id_of(run: StoredRun) -> str:
    return f"UnVuOg{run.name}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that has gone is nothing to tell."""


class _Handler(BaseHTTPRequestHandler):
    """HTTP around a WandbServer."""

    protocol_version = "HTTP/1.1"
    kept: WandbServer

    def do_POST(self) -> None:
        body, path = self._body(), self.path
        if path == "/graphql":
            self._reply({"data": self.kept.graphql(json.loads(body))})
        elif path.endswith("/file_stream"):
            self._reply(self.kept.stream(path.split("/")[-2], json.loads(body)))
        else:
            # the client's own telemetry
            self._reply({})

    def do_PUT(self) -> None:
        body = self._body()
        _, _, run, name = self.path.split("/", 3)
        self.kept.record.append(("upload", name))
        self.kept.runs[run].files[name] = body
        self._reply({})

    def do_GET(self) -> None:
        self._reply({})

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _reply(self, answer: dict[str, Any]) -> None:
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Print nothing."""
