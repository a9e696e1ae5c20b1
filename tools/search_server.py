"""The resident process that runs trials, `mudman-mpi trials CONFIG`: JSON lines in and out.

It says {"event":"ready",...} when the model is loaded, takes {"id","overrides"}, answers with
{"event":"eval",...} lines and one {"event":"result",...}, and ends when its input ends.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from text_records import InputError

TICK_SECONDS = 0.5
STOP_SECONDS = 10.0
LAST_WORDS = 5
BAD_INPUT = 2


class ServerDied(Exception):
    """The server ended when more was expected of it; the message says how."""


class TrialServer:
    """One server process. `tick` is called at least twice a second while waiting for it; what it
    raises ends the wait."""

    def __init__(self, command: list[str], tick: Callable[[], None]):
        self._tick = tick
        self._unread = b""
        self._log = tempfile.TemporaryFile()
        try:
            # A session of its own: Ctrl-C reaches the driver alone, which then stops the server.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                start_new_session=True,
            )
        except OSError as error:
            raise InputError(f"--server: {command[0]}: {error.strerror}") from None

    def wait_ready(self) -> dict[str, Any]:
        """The ready line: the figures of the untouched model. Bad input ends the search."""
        try:
            return self._receive_event("ready")
        except ServerDied as died:
            if self._process.returncode == BAD_INPUT:
                raise InputError(f"the trial server: {died}") from None
            raise

    def run_trial(
        self, request: dict[str, Any], see: Callable[[dict[str, Any]], bool]
    ) -> dict[str, Any]:
        """Run one trial to its result line; `see` gets each evaluation, True asks to prune."""
        self._send(request)
        while True:
            event = self._receive()
            # A {"prune": true} may reach the server after the trial: an answer to it is no result.
            if event.get("id") != request["id"]:
                continue
            if event.get("event") == "result":
                return event
            if event.get("event") == "eval" and see(event):
                self._send({"prune": True})

    def close(self) -> None:
        """End of input; the server is idle and goes."""
        self._process.stdin.close()
        self._end()

    def stop(self) -> None:
        """Ask the server to stop at once."""
        self._signal(signal.SIGTERM)
        self._end()

    def _end(self) -> None:
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            try:
                stream.close()
            except BrokenPipeError:
                pass

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            pass

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._death() from None

    def _receive_event(self, name: str) -> dict[str, Any]:
        while True:
            event = self._receive()
            if event.get("event") == name:
                return event

    def _receive(self) -> dict[str, Any]:
        """The next line; a line that is no JSON object (of a launcher) is passed on to stderr."""
        out = self._process.stdout.fileno()
        while True:
            self._tick()
            line, newline, rest = self._unread.partition(b"\n")
            if newline:
                self._unread = rest
                try:
                    event = json.loads(line)
                except ValueError:
                    event = None
                if isinstance(event, dict):
                    return event
                print(f"trial server: {line.decode(errors='replace')}", file=sys.stderr)
            elif select.select([out], [], [], TICK_SECONDS)[0]:
                some = os.read(out, 1 << 16)
                if not some:
                    raise self._death()
                self._unread += some

    def _death(self) -> ServerDied:
        """How the server ended, with its last words."""
        self._end()
        status = self._process.returncode
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        self._log.seek(0)
        words = self._log.read().decode(errors="replace").splitlines()[-LAST_WORDS:]
        return ServerDied(" | ".join([how, *words]))
