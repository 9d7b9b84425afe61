"""How to reach the MQTT broker, and where its secrets lie: never in the configuration itself."""

import os
import stat
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, SecretStr, model_validator

from tvau_edge.runtime.errors import ConfigError

PORT, TLS_PORT = 1883, 8883


class TlsConfig(BaseModel):
    """TLS towards the broker."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ca: Annotated[Path | None, Field(description="PEM file of the authority; none: the system's")] = None
    certificate: Annotated[Path | None, Field(description="PEM file of this device, for mutual TLS")] = None
    key: Annotated[Path | None, Field(description="PEM file of this device's private key")] = None
    alpn: Annotated[list[str], Field(description="protocols to offer, for brokers on port 443")] = []

    @model_validator(mode="after")
    def _pair(self) -> "TlsConfig":
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key come together; set both or neither")
        return self


class BrokerConfig(BaseModel):
    """The MQTT broker."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    host: Annotated[str, Field(min_length=1, description="name or address")] = "localhost"
    port: Annotated[int | None, Field(ge=1, le=65535, description="none: 1883, or 8883 with TLS")] = None
    protocol: Annotated[Literal["5", "3.1.1"], Field(description="version of MQTT")] = "5"
    username: Annotated[str | None, Field(description="user at the broker")] = None
    password_env: Annotated[str | None, Field(description="environment variable with the password")] = None
    password_file: Annotated[
        Path | None, Field(description="file with the password, readable by its owner alone")
    ] = None
    tls: Annotated[TlsConfig | None, Field(description="TLS; none: plain TCP")] = None
    client_id: Annotated[
        str | None, Field(max_length=64, description="MQTT client id; none: tvau-<device>")
    ] = None
    topic: Annotated[
        str | None, Field(min_length=1, max_length=200, description="root of all topics; none: tvau/<device>")
    ] = None
    websocket_path: Annotated[
        str | None,
        Field(pattern="^/", description="such as /mqtt: speak MQTT over WebSockets; none: over TCP"),
    ] = None
    in_flight: Annotated[
        PositiveInt, Field(le=65535, description="messages on their way at once; the broker may allow fewer")
    ] = 100
    max_packet_bytes: Annotated[
        PositiveInt | None, Field(description="largest packet of this broker; none: what it says with MQTT 5")
    ] = None
    message_expiry_seconds: Annotated[
        PositiveInt | None,
        Field(le=2**32 - 1, description="age at which brokers may forget a verdict (MQTT 5); none: never"),
    ] = None
    keepalive: Annotated[PositiveInt, Field(le=65535, description="seconds between signs of life")] = 30
    connect_seconds: Annotated[
        PositiveFloat, Field(le=3600, description="how long to wait for the broker at start")
    ] = 10.0
    wait: Annotated[
        bool, Field(description="start without the broker and store verdicts until it comes; false: give up")
    ] = False

    @model_validator(mode="after")
    def _sound(self) -> "BrokerConfig":
        if self.password_env and self.password_file:
            raise ValueError("password_env and password_file exclude each other")
        if (self.password_env or self.password_file) and self.username is None:
            raise ValueError("a password needs a username")
        if self.topic and any(character in self.topic for character in "+#\0"):
            raise ValueError(f"topic {self.topic!r} holds '+' or '#', which only subscriptions may")
        if self.topic and (self.topic.startswith("$") or not self.topic.isprintable()):
            raise ValueError(
                f"topic {self.topic!r} begins with '$', which is the broker's own, or holds control characters"
            )
        return self

    def beside(self, folder: Path) -> "BrokerConfig":
        """The same with relative paths of its files resolved against `folder`."""
        tls = self.tls and self.tls.model_copy(
            update=_resolved(folder, self.tls, ("ca", "certificate", "key"))
        )
        return self.model_copy(update={"tls": tls, **_resolved(folder, self, ("password_file",))})

    @property
    def address(self) -> str:
        """Host and port, for messages."""
        return f"{self.host}:{self.effective_port}"

    @property
    def effective_port(self) -> int:
        """The port, by default that of the transport."""
        return self.port or (TLS_PORT if self.tls else PORT)

    def password(self) -> SecretStr | None:
        """Read the password from where it lies.

        Raises:
            ConfigError: the variable is not set, or the file is missing or readable by others.
        """
        if self.password_env:
            value = os.environ.get(self.password_env)
            if value is None:
                raise ConfigError(f"broker.password_env: the environment has no variable {self.password_env}")
            return SecretStr(value)
        if self.password_file:
            try:
                mode = self.password_file.stat().st_mode
                value = self.password_file.read_text(encoding="utf-8").rstrip("\r\n")
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(
                    f"broker.password_file: {self.password_file} cannot be read: {error}"
                ) from error
            if mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise ConfigError(
                    f"broker.password_file: {self.password_file} can be read by others; chmod 600 it"
                )
            return SecretStr(value)
        return None


def _resolved(folder: Path, table: BaseModel, keys: tuple[str, ...]) -> dict[str, Path]:
    paths = {key: getattr(table, key) for key in keys}
    return {key: folder / path for key, path in paths.items() if path is not None}


def parse_broker(address: str) -> dict[str, object]:
    """Turn an address of the command line into keys of `BrokerConfig`.

    Args:
        address: host, host:port, mqtt://[user@]host[:port] or mqtts://….

    Raises:
        ConfigError: it is none of these, or it holds a password, which every process could read.
    """
    shown = address.rpartition("@")[2]  # without what may be a password
    expected = "expected host:port, mqtt://… or mqtts://…"
    try:
        parts = urlsplit(address if "://" in address else f"mqtt://{address}")
        port = parts.port
    except ValueError:  # whose text may hold a piece of a password
        raise ConfigError(f"--broker {shown}: {expected}") from None
    more = parts.path.strip("/") or parts.query or parts.fragment
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or more:
        raise ConfigError(f"--broker {shown}: {expected}")
    if parts.password is not None:
        raise ConfigError(
            "--broker: a password on the command line can be seen by every process; put it into "
            "the environment and name the variable in broker.password_env of a configuration file"
        )
    table: dict[str, object] = {"host": parts.hostname}
    if port is not None:
        table["port"] = port
    if parts.username:
        table["username"] = unquote(parts.username)
    if parts.scheme == "mqtts":
        table["tls"] = {}
    return table
