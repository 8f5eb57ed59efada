"""Settings: which source wins, for every setting, and what is said of a wrong one."""

from __future__ import annotations

import subprocess
import sys
from enum import Enum
from inspect import signature
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from cg_local.cli.chat import chat
from cg_local.cli.complete import complete
from cg_local.cli.fill import fill
from cg_local.errors import SettingsError
from cg_local.model_store import config_path
from cg_local.settings import COMMANDS, SETTINGS, Settings, parsed_size

FUNCTIONS = {"fill": fill, "complete": complete, "chat": chat}
EACH = [(command, name) for name, setting in SETTINGS.items() for command in setting.commands]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "config.toml"
    monkeypatch.setenv("CG_LOCAL_CONFIG", str(path))
    return path


def values_of(name: str) -> list[Any]:
    """Three different values that a setting may have."""
    setting = SETTINGS[name]
    if setting.choices:
        return [*setting.choices, setting.choices[0]][:3]
    kinds: dict[str, list[Any]] = {
        "flag": [True, False, True],
        "text": ["a", "b", "c"],
        "number": [0.25, 0.5, 0.75],
        "whole number": [101, 102, 103],
        "size": ["1 GiB", "2 GiB", "3 GiB"],
    }
    return kinds[setting.kind]


def toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')


@pytest.mark.parametrize(("command", "name"), EACH)
def test_order_of_the_sources(config: Path, monkeypatch: pytest.MonkeyPatch, command: str, name: str) -> None:
    general, of_table, of_variable = values_of(name)
    assert Settings().value(command, name) is None

    config.write_text(f"{name} = {toml(general)}\n")
    assert vars(Settings().value(command, name)) == {"value": general, "origin": f"{config}:1"}

    config.write_text(f"{name} = {toml(general)}\n\n[{command}]\n{name} = {toml(of_table)}\n")
    assert vars(Settings().value(command, name)) == {"value": of_table, "origin": f"{config}:4"}

    variable = f"CG_LOCAL_{name.upper()}"
    monkeypatch.setenv(variable, str(of_variable))
    assert vars(Settings().value(command, name)) == {"value": of_variable, "origin": variable}

    own = f"CG_LOCAL_{command.upper()}_{name.upper()}"
    monkeypatch.setenv(own, str(general))
    assert vars(Settings().value(command, name)) == {"value": general, "origin": own}

    monkeypatch.setenv(own, "")
    monkeypatch.setenv(variable, "")
    assert Settings().value(command, name).value == of_table  # type: ignore[union-attr]


@pytest.mark.parametrize(("command", "name"), EACH)
def test_every_setting_is_an_option_of_its_commands(command: str, name: str) -> None:
    assert name in signature(FUNCTIONS[command]).parameters


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", [name for name, setting in SETTINGS.items() if setting.low > float("-inf")])
def test_bounds_are_those_of_the_option(command: str, name: str) -> None:
    """What a setting allows, the option allows too; the least value is the least of both."""
    if command not in SETTINGS[name].commands:
        pytest.skip("no setting of this command")
    (option,) = get_type_hints(FUNCTIONS[command], include_extras=True)[name].__metadata__
    setting = SETTINGS[name]
    assert option.min is None or option.min <= setting.low
    assert option.max is None or option.max == setting.high


@pytest.mark.parametrize("command", COMMANDS)
def test_choices_are_those_of_the_option(command: str) -> None:
    options = {name: getattr(hint, "__origin__", None) for name, hint in _hints(command).items() if name in SETTINGS}
    enums = {name: each for name, hint in options.items() for each in (hint, *get_args(hint)) if _is_enum(each)}
    found = {name: [member.value for member in each] for name, each in enums.items()}
    assert found == {name: list(SETTINGS[name].choices) for name in found}
    assert {"scheme", "kv_dtype"} <= found.keys()


def _hints(command: str) -> dict[str, Any]:
    return get_type_hints(FUNCTIONS[command], include_extras=True)


def _is_enum(hint: object) -> bool:
    return isinstance(hint, type) and issubclass(hint, Enum)


def test_table_of_one_command_does_not_reach_the_others(config: Path) -> None:
    config.write_text("[fill]\ntemperature = 0.25\n")
    assert Settings().value("chat", "temperature") is None


def test_model_may_begin_with_a_tilde(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(config.parent))
    monkeypatch.setenv("USERPROFILE", str(config.parent))
    config.write_text('model = "~/m"\n')
    assert Settings().value("fill", "model").value == str(config.parent / "m")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("temprature = 1", ":1: unknown key 'temprature'; did you mean 'temperature'?"),
        ("\n[chat]\n# x\nsave = 1", ":4: chat.save is 1; give true or false"),
        ("[fill]\nsave = true", ":2: unknown key 'fill.save'; known are model,"),
        ("[quantize]\nthreads = 1", ":1: unknown key 'quantize'; known are model,"),
        ("[caht]\nmodel = 'x'", ":1: unknown key 'caht'; did you mean 'chat'?"),
        ("chat.top_p = 2", ":1: chat.top_p is 2; give a number above 0 and at most 1"),
        ("top_p = 0", ":1: top_p is 0; give a number above 0 and at most 1"),
        ("temperature = nan", ":1: temperature is nan; give a number of at least 0"),
        (f"temperature = 1{'0' * 400}", ":1: temperature is 1000000000"),
        ("temperature = '0.5'", ":1: temperature is '0.5'; give a number of at least 0"),
        ("temperature = true", ":1: temperature is True; give a number of at least 0"),
        ("max_tokens = 1.5", ":1: max_tokens is 1.5; give a whole number of at least 1"),
        ("max_tokens = 0", ":1: max_tokens is 0; give a whole number of at least 1"),
        ("scheme = 'q5'", ':1: scheme is \'q5\'; give one of "q4", "q4s", "q8", "bf16"'),
        ("chat.kv_cache_size = 'much'", ":1: chat.kv_cache_size is 'much'; give a size such as \"4 GiB\", or 0"),
        ("chat = 5", ":1: chat is 5; write [chat] and its keys below"),
        ("fill = 'x'", ":1: fill is 'x'; write [fill] and its keys below"),
        ("model = 3", ":1: model is 3; give a text in quotes"),
        ("model = ", ":1: not TOML (Invalid value); `cg-local config edit` opens it"),
        ("a = 1\na = 2", ":2: not TOML (Cannot overwrite a value); `cg-local config edit` opens it"),
    ],
)
def test_fault_is_told_with_file_line_and_key(config: Path, text: str, message: str) -> None:
    config.write_text(text)
    with pytest.raises(SettingsError) as caught:
        Settings()
    assert str(caught.value).startswith(f"{config}{message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"\xff\xfe", "byte 0 is no UTF-8"), (b"#" * (1 << 20) + b"#", "more than 1,048,576 bytes")],
)
def test_file_that_is_no_text_is_refused(config: Path, data: bytes, message: str) -> None:
    config.write_bytes(data)
    with pytest.raises(SettingsError, match=message):
        Settings()


def test_folder_in_the_place_of_the_file_is_an_error(config: Path) -> None:
    config.mkdir()
    with pytest.raises(SettingsError, match="set CG_LOCAL_CONFIG"):
        Settings()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("temperature", "hot", "CG_LOCAL_TEMPERATURE is 'hot'; give a number of at least 0"),
        ("threads", "0", "CG_LOCAL_THREADS is '0'; give a whole number of at least 1"),
        ("speculation", "maybe", "CG_LOCAL_SPECULATION is 'maybe'; give true or false"),
    ],
)
def test_fault_of_a_variable_names_it(
    config: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, message: str
) -> None:
    monkeypatch.setenv(f"CG_LOCAL_{name.upper()}", text)
    with pytest.raises(SettingsError) as caught:
        Settings().of_command("fill")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "size"),
    [("4 GiB", 4 << 30), ("500MB", 500_000_000), ("1.5 kib", 1536), ("0", 0), ("12", 12), ("7 B", 7), (42, 42)],
)
def test_sizes(text: object, size: int) -> None:
    assert parsed_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", "4 Gi", "1e3", -1, True, 1.5, None])
def test_no_sizes(text: object) -> None:
    with pytest.raises(ValueError, match=r"^$|could not convert"):
        parsed_size(text)


def test_file_lies_in_the_platforms_folder_without_the_variable() -> None:
    import platformdirs

    assert config_path() == Path(platformdirs.user_config_path("cg-local", appauthor=False)) / "config.toml"


def test_help_and_a_fill_without_settings_parse_no_toml() -> None:
    code = (
        "import sys; sys.argv[1:] = sys.argv[1:]\n"
        "from cg_local.cli.defaults import configured_defaults\n"
        "assert configured_defaults('fill').get('model') is None\n"
        "print(sorted({'tomllib', 'tomli', 'tomlkit', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
