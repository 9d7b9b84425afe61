"""Commands that arrive over MQTT: each has a name, a model of its payload and a handler; all are off by default.

A part of the runtime that wants to be commanded registers itself:

    class Snapshot(Payload):
        camera: str

    commands.register("snapshot", Snapshot, lambda payload: take_snapshot(payload.camera))

The handler gets a payload that is valid, runs on a thread of its command alone, so that a slow command holds no other
one up, and returns what is answered, or raises a `TvauError` that says why not. What a message holds is data: it is
bounded, parsed and validated before anyone acts on it.
"""

import contextlib
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tvau_edge.runtime.errors import CommandError, ConfigError, TvauError
from tvau_edge.runtime.problems import explain
from tvau_edge.runtime.verdict import Message

log = logging.getLogger(__name__)

_WAITING = 8  # commands of one name that may wait for its handler
_ERROR_LENGTH = 1000  # characters of an error that we answer
_MINUTE = 60.0


class Payload(BaseModel):
    """Base of the payloads of commands: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Nothing(Payload):
    """The payload of a command that takes none: `{}`, or no bytes at all."""


class Answer(Message):
    """What is published on the response topic of a command."""

    schema_: Annotated[Literal["tvau.answer/1"], Field(alias="schema")] = "tvau.answer/1"
    command: str
    ok: bool
    result: dict[str, Any] | None = None
    error: str | None = None

    def to_json(self) -> bytes:
        """The message as it is published."""
        return self.model_dump_json(exclude_none=True).encode()


P = TypeVar("P", bound=BaseModel)
Respond = Callable[[bytes], None]


@dataclass(slots=True)
class _Command(Generic[P]):
    """One registered command, the thread that serves it, and when it was last used."""

    name: str
    payload: type[P]
    handler: Callable[[P], BaseModel | None]
    waiting: "queue.Queue[tuple[P, Respond] | None]" = field(default_factory=lambda: queue.Queue(_WAITING))
    used: deque[float] = field(default_factory=deque)
    thread: threading.Thread | None = None


class Commands:
    """The commands of this device.

    Args:
        enabled: names of those that may be used; the others are refused.
        per_minute: how often each may be used; what is more is refused.
        max_bytes: of a payload.
    """

    def __init__(self, enabled: Sequence[str] = (), per_minute: int = 30, max_bytes: int = 16384) -> None:
        self.enabled = tuple(enabled)
        self._per_minute, self._max_bytes = per_minute, max_bytes
        self._commands: dict[str, _Command[Any]] = {}
        self._told = 0.0  # when a refusal for haste was last answered
        self.refused = 0

    def register(self, name: str, payload: type[P], handler: Callable[[P], BaseModel | None]) -> None:
        """Make a command known.

        Args:
            name: last level of its topic, `<root>/command/<name>`.
            payload: what its JSON must fulfil; derive it from `Payload`.
            handler: acts on a valid payload and returns what is answered as `result`; a `TvauError` that it raises
                is answered as `error`. Called on the thread of this command, one payload after another.
        """
        if name in self._commands:
            raise ValueError(f"command {name!r} is registered already")
        self._commands[name] = _Command(name, payload, handler)

    def start(self) -> None:
        """Start the threads of the enabled commands.

        Raises:
            ConfigError: one is enabled that nobody registered.
        """
        for name in self.enabled:
            if name not in self._commands:
                known = ", ".join(sorted(self._commands)) or "none"
                raise ConfigError(f"commands.enabled = {name!r}: there is no such command; known: {known}")
        for name in self.enabled:
            command = self._commands[name]
            command.thread = threading.Thread(
                target=self._serve, args=(command,), name=f"command {name}", daemon=True
            )
            command.thread.start()

    def receive(self, name: str, payload: bytes, respond: Respond) -> None:
        """Take a command as it came from the broker; returns at once and raises nothing.

        Args:
            name: last level of the topic; anything.
            payload: anything.
            respond: takes the answer as JSON, later and from another thread, or at once.
        """
        try:
            command = self._admit(name)
            if command is None:
                return
            value = self._parse(command, payload)
            command.waiting.put_nowait((value, respond))
        except queue.Full:
            _refuse(respond, name, f"{_WAITING} commands of this name wait already; try again later")
        except CommandError as error:
            self.refused += 1
            _refuse(respond, name, str(error))

    def _admit(self, name: str) -> _Command[Any] | None:
        """The command of that name, unless it is unknown, off, or used too often; None to say nothing about that.

        Raises:
            CommandError: says why it is refused.
        """
        if name not in self.enabled or name not in self._commands:
            enabled = ", ".join(self.enabled) or "none"
            raise CommandError(f"no command of this name is enabled (commands.enabled: {enabled})")
        command, now = self._commands[name], time.monotonic()
        while command.used and now - command.used[0] >= _MINUTE:
            command.used.popleft()
        if len(command.used) < self._per_minute:
            command.used.append(now)
            return command
        # Someone in haste is told once a second; to answer each would double the flood.
        if now - self._told < 1:
            self.refused += 1
            return None
        self._told = now
        raise CommandError(
            f"more than {self._per_minute} of these in a minute (commands.per_minute); try again later"
        )

    def _parse(self, command: _Command[P], payload: bytes) -> P:
        if len(payload) > self._max_bytes:
            raise CommandError(
                f"its payload of {len(payload)} bytes is larger than {self._max_bytes} (commands.max_bytes)"
            )
        try:
            return command.payload.model_validate_json(payload or b"{}")
        except ValidationError as error:
            raise CommandError("; ".join(explain(error, command.payload))) from error

    def _serve(self, command: _Command[P]) -> None:
        while (work := command.waiting.get()) is not None:
            payload, respond = work
            if not self.enabled:  # we are closing
                return
            try:
                result = command.handler(payload)
            except TvauError as error:
                _refuse(respond, command.name, str(error))
            except Exception:
                log.exception("command %s failed", command.name)
                _refuse(respond, command.name, "it failed; the device's log says how")
            else:
                table = result.model_dump(mode="json") if result is not None else None
                respond(Answer(command=command.name, ok=True, result=table).to_json())

    def close(self) -> None:
        """Let the command that runs end, for a moment, and take no others; what waits is given up."""
        self.enabled = ()
        for command in self._commands.values():
            if command.thread is not None:
                with contextlib.suppress(queue.Full):  # then there is something to wake it anyway
                    command.waiting.put_nowait(None)
        for command in self._commands.values():
            if command.thread is not None:
                command.thread.join(2)


def _refuse(respond: Respond, name: str, reason: str) -> None:
    log.warning("command %.64r refused: %.300s", name, reason)
    respond(Answer(command=name[:64], ok=False, error=reason[:_ERROR_LENGTH]).to_json())
