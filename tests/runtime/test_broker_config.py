"""Settings of the broker: where its password lies, and that it is never shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tvau_edge.runtime.broker_config import BrokerConfig, TlsConfig, parse_broker
from tvau_edge.runtime.config import load_config
from tvau_edge.runtime.errors import ConfigError

SECRET = "sesame-open-7"


def test_password_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("TVAU_TEST_PASSWORD", SECRET)
    password = BrokerConfig(username="door", password_env="TVAU_TEST_PASSWORD").password()
    assert password is not None
    assert password.get_secret_value() == SECRET


def test_a_variable_that_is_not_set_is_named(monkeypatch):
    monkeypatch.delenv("TVAU_TEST_PASSWORD", raising=False)
    with pytest.raises(ConfigError, match=r"broker\.password_env: .*TVAU_TEST_PASSWORD"):
        BrokerConfig(username="door", password_env="TVAU_TEST_PASSWORD").password()


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_password_comes_from_a_private_file(tmp_path, end):
    file = tmp_path / "password"
    file.write_bytes(f"{SECRET}{end}".encode())
    file.chmod(0o600)
    password = BrokerConfig(username="door", password_file=file).password()
    assert password is not None
    assert password.get_secret_value() == SECRET


@pytest.mark.parametrize("space", [" ", "\t"])
def test_space_belongs_to_a_password(tmp_path, space):
    file = tmp_path / "password"
    file.write_text(f"{space}{SECRET}{space}\n")
    file.chmod(0o400)
    password = BrokerConfig(username="door", password_file=file).password()
    assert password is not None
    assert password.get_secret_value() == f"{space}{SECRET}{space}"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620])
def test_a_file_that_others_can_read_is_refused(tmp_path, mode):
    file = tmp_path / "password"
    file.write_text(SECRET)
    file.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600") as caught:
        BrokerConfig(username="door", password_file=file).password()
    assert str(file) in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\xff"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, content):
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content)
        file.chmod(0o600)
    with pytest.raises(ConfigError, match=r"broker\.password_file: .*password cannot be read"):
        BrokerConfig(username="door", password_file=file).password()


def test_no_password_is_none():
    assert BrokerConfig(username="door").password() is None


@pytest.mark.parametrize("show", [repr, str, lambda c: c.model_dump_json(), lambda c: repr(c.password())])
def test_a_password_is_never_shown(monkeypatch, tmp_path, show):
    file = tmp_path / "password"
    file.write_text(SECRET)
    file.chmod(0o600)
    monkeypatch.setenv("TVAU_TEST_PASSWORD", SECRET)
    for config in (
        BrokerConfig(username="door", password_env="TVAU_TEST_PASSWORD"),
        BrokerConfig(username="door", password_file=file),
    ):
        config.password()
        assert SECRET not in show(config)


def test_a_password_in_the_configuration_is_an_unknown_key():
    with pytest.raises(ValidationError, match="password"):
        BrokerConfig.model_validate({"password": SECRET})


def test_two_places_for_a_password_exclude_each_other(tmp_path):
    with pytest.raises(ValidationError, match="exclude each other"):
        BrokerConfig(password_env="A", password_file=tmp_path)


def test_a_password_needs_a_username():
    with pytest.raises(ValidationError, match="needs a username"):
        BrokerConfig(password_env="A")


@pytest.mark.parametrize("topic", ["a/+/b", "a/#", "a\0b", "$SYS/x", "a\nb"])
def test_a_topic_holds_no_wildcards(topic):
    with pytest.raises(ValidationError, match="topic"):
        BrokerConfig(topic=topic)


@pytest.mark.parametrize("key", ["certificate", "key"])
def test_certificate_and_key_come_together(tmp_path, key):
    with pytest.raises(ValidationError, match="set both or neither"):
        TlsConfig.model_validate({key: tmp_path / "x.pem"})
    both = TlsConfig(certificate=tmp_path / "x.pem", key=tmp_path / "x.key")
    assert both.key == tmp_path / "x.key"


@pytest.mark.parametrize("port", [0, 65536, "http"])
def test_ports_are_ports(port):
    with pytest.raises(ValidationError, match="port"):
        BrokerConfig(port=port)


@pytest.mark.parametrize(
    ("config", "address"),
    [
        (BrokerConfig(), "localhost:1883"),
        (BrokerConfig(tls=TlsConfig()), "localhost:8883"),
        (BrokerConfig(host="h", port=443, tls=TlsConfig()), "h:443"),
    ],
)
def test_the_port_is_that_of_the_transport(config, address):
    assert config.address == address


@pytest.mark.parametrize(
    ("address", "table"),
    [
        ("hub", {"host": "hub"}),
        ("hub:1884", {"host": "hub", "port": 1884}),
        ("10.0.0.7:1884", {"host": "10.0.0.7", "port": 1884}),
        ("[::1]:1884", {"host": "::1", "port": 1884}),
        ("mqtt://hub/", {"host": "hub"}),
        ("mqtt://door@hub:1", {"host": "hub", "port": 1, "username": "door"}),
        ("mqtt://a%40b@hub", {"host": "hub", "username": "a@b"}),
        ("mqtts://hub", {"host": "hub", "tls": {}}),
        ("mqtts://hub:443", {"host": "hub", "port": 443, "tls": {}}),
    ],
)
def test_addresses_of_the_command_line(address, table):
    assert parse_broker(address) == table
    assert BrokerConfig.model_validate(table).host == table["host"]


@pytest.mark.parametrize(
    "address",
    ["", ":1883", "http://hub", "hub:70000", "hub:x", "mqtt://hub/topic", "mqtt://", "[::1", "hub?a=b"],
)
def test_what_is_no_address_is_refused(address):
    with pytest.raises(ConfigError, match="--broker"):
        parse_broker(address)


def test_a_password_on_the_command_line_is_refused_and_not_repeated():
    for user in (f"door:{SECRET}", f"door:{SECRET}/7", f"door:{SECRET}@7"):
        for address in (f"mqtt://{user}@hub", f"mqtt://{user}@hub:x", f"{user}@hub/topic"):
            with pytest.raises(ConfigError) as caught:
                parse_broker(address)
            assert SECRET not in str(caught.value)


@given(st.text(max_size=30))
def test_any_text_is_an_address_or_an_error(text):
    try:
        table = parse_broker(text)
    except ConfigError:
        return
    assert table["host"]


def test_files_of_the_broker_are_relative_to_the_configuration(tmp_path):
    site = tmp_path / "site.toml"
    site.write_text(
        'bundle = "bundle"\n[broker]\nusername = "door"\npassword_file = "password"\n'
        '[broker.tls]\nca = "ca.pem"\ncertificate = "/etc/me.pem"\nkey = "me.key"\n'
        '[[camera]]\nname = "door"\nsource = "door.mp4"\n'
    )
    broker = load_config(site).broker
    assert broker.password_file == tmp_path / "password"
    assert broker.tls is not None
    assert broker.tls.ca == tmp_path / "ca.pem"
    assert str(broker.tls.certificate) == "/etc/me.pem"
    assert broker.tls.key == tmp_path / "me.key"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("connect_seconds", float("inf")),
        ("connect_seconds", 0),
        ("in_flight", 0),
        ("in_flight", 65536),
        ("max_packet_bytes", 0),
        ("message_expiry_seconds", 2**32),
        ("websocket_path", "mqtt"),
        ("keepalive", 65536),
    ],
)
def test_values_out_of_range_are_refused(key, value):
    with pytest.raises(ValidationError, match=key):
        BrokerConfig.model_validate({key: value})
