from __future__ import annotations

import functools
import json
import os
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from upath import UPath

from library.config import (
    Frozen,
    Location,
    dotted,
    kinds,
    load,
    mapping_of,
    one_of,
    override,
    replaced,
    to_yaml,
    validate,
)
from library.errors import ConfigError


class Optim(Frozen):
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)


class Run(Frozen):
    """A config with every kind of field that the real ones have."""

    name: str = "run"
    steps: int = 10
    storage: Location = "runs"
    optim: Optim = Optim()
    model: one_of("library.models")  # pyright: ignore[reportInvalidTypeForm]
    losses: mapping_of("library.losses")  # pyright: ignore[reportInvalidTypeForm]


MINIMAL = {"model": {"kind": "unet"}, "losses": {"l1": {"weight": 0.5}}}


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def message_of(data: dict, *words: str) -> str:
    for word in words:
        data = override(data, word)
    with pytest.raises(ConfigError) as caught:
        validate(Run, data, "run.yaml")
    return str(caught.value)


# --- YAML and words ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"), [("1e-4", 1e-4), ("1E5", 1e5), ("-2e+3", -2000.0), ("1.5e3", 1500.0), (".5e-3", 5e-4)]
)
def test_numbers_in_scientific_notation_are_numbers_without_the_dot_that_yaml_1_1_asks_for(
    tmp_path: Path, text: str, number: float
):
    assert load(write(tmp_path, f"lr: {text}")) == {"lr": number}


@pytest.mark.parametrize("text", ["1e", "e5", "1e5x", "'1e5'"])
def test_words_that_only_resemble_a_number_stay_words(tmp_path: Path, text: str):
    assert load(write(tmp_path, f"name: {text}")) == {"name": text.strip("'")}


def test_a_key_given_twice_is_refused_with_its_line(tmp_path: Path):
    path = write(tmp_path, "optim:\n  lr: 1\n  lr: 2\n")
    with pytest.raises(ConfigError, match=r"run\.yaml, line 3: .*'lr' is given twice"):
        load(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must hold a mapping"),
        ("- a\n- b\n", "must hold a mapping"),
        ("a: [1", "line 1: not valid YAML"),
        ("[a, b]: 1", "a key must be a word or a number"),
        ("a: \0", "not valid YAML: unacceptable character"),
        ("a: !!python/object/apply:os.getcwd []", "not valid YAML"),
    ],
)
def test_what_is_no_mapping_in_plain_yaml_is_refused_in_one_line(tmp_path: Path, text: str, said: str):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert said in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_or_no_text_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "absent.yaml")
    (tmp_path / "picture.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ConfigError, match="not a text file"):
        load(tmp_path / "picture.yaml")


def test_a_file_elsewhere_is_read_as_one_here(tmp_path: Path):
    elsewhere = UPath(f"memory:/{tmp_path}/run.yaml")
    with pytest.raises(ConfigError, match=r"run\.yaml: cannot be read \(FileNotFoundError\); give the path"):
        load(elsewhere)
    elsewhere.write_bytes(b"optim: {lr: 1e-4}\n")
    assert load(elsewhere, ["steps=2"]) == load(write(tmp_path, "optim: {lr: 1e-4}"), ["steps=2"])
    elsewhere.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not a text file"):
        load(elsewhere)


def test_a_path_may_be_text(tmp_path: Path):
    assert load(str(write(tmp_path, "steps: 1"))) == {"steps": 1}


def test_a_word_makes_a_new_mapping_and_leaves_the_old_one():
    old = {"optim": {"lr": 1.0}, "losses": {"l1": {"weight": 1.0}}}
    before = json.dumps(old)
    new = override(old, "optim.lr=1e-4")
    assert new == {"optim": {"lr": 1e-4}, "losses": {"l1": {"weight": 1.0}}}
    assert json.dumps(old) == before


keys = st.text("abc", min_size=1, max_size=3)


@given(st.lists(keys, min_size=1, max_size=4), st.integers())
def test_a_word_sets_exactly_the_key_it_names(path: list[str], value: int):
    level = override({"other": 1}, f"{'.'.join(path)}={value}")
    assert level["other"] == 1
    for key in path:
        level = level[key]
    assert level == value


def test_later_words_win_over_earlier_ones_and_over_the_file(tmp_path: Path):
    path = write(tmp_path, "steps: 1\noptim: {lr: 1}\n")
    assert load(path, ["steps=2", "steps=3", "optim.betas=[0.5, 0.9]"]) == {
        "steps": 3,
        "optim": {"lr": 1, "betas": [0.5, 0.9]},
    }


def test_the_value_of_a_word_is_yaml():
    data = {}
    for word in ("a=1e-4", "b=[1, 2]", "c={d: x}", "e=null", "f=true", "g=x=y", "h="):
        data = override(data, word)
    assert data == {"a": 1e-4, "b": [1, 2], "c": {"d": "x"}, "e": None, "f": True, "g": "x=y", "h": None}


@pytest.mark.parametrize("word", ["steps", "=1", "optim..lr=1", ".lr=1", "optim.=1"])
def test_a_word_that_names_no_key_or_value_is_refused_with_an_example(word: str):
    with pytest.raises(ConfigError, match=r"reads key=value, for example optim\.lr=1e-4"):
        override({}, word)


def test_a_word_below_a_value_names_that_value():
    with pytest.raises(ConfigError, match=r"'steps' is int '10', which has no key 'lr'"):
        override({"steps": 10}, "steps.lr=1")


JSON = st.recursive(
    st.none() | st.integers() | st.text("ab", max_size=2),
    lambda below: st.lists(below, max_size=2) | st.dictionaries(keys, below, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(keys, JSON, max_size=3), st.lists(keys, min_size=1, max_size=3), JSON)
def test_an_exchanged_value_is_there_and_nothing_else_has_changed(data: dict, path: list[str], value: object):
    """Taken whole, without reading it as YAML, and the original is left as it was."""
    before = json.dumps(data)
    try:
        changed = replaced(data, ".".join(path), value)
    except ConfigError as error:
        assert "which has no key" in str(error)  # noqa: PT017  (whether it raises depends on the data)
        assert json.dumps(data) == before
        return
    assert json.dumps(data) == before
    ours, theirs = changed, data
    for key in path:
        assert {k: v for k, v in ours.items() if k != key} == {k: v for k, v in theirs.items() if k != key}
        ours, theirs = ours[key], theirs.get(key) or {}
    assert ours == value


@given(st.dictionaries(keys, JSON, max_size=3))
def test_dotted_keys_name_every_value_once_so_that_exchanging_each_gives_the_config_back(data: dict):
    flat = dotted(data)
    assert not any(isinstance(value, dict) and value for value in flat.values())
    assert functools.reduce(lambda config, key: replaced(config, key, flat[key]), flat, {}) == data


def test_a_word_is_an_exchange_of_the_value_that_it_spells():
    data = {"optim": {"lr": 1.0, "schedule": None}}
    assert override(data, "optim.lr=1e-4") == replaced(data, "optim.lr", 1e-4)
    assert replaced(data, "optim.schedule.kind", "1e-4") == {"optim": {"lr": 1.0, "schedule": {"kind": "1e-4"}}}


# --- validation -------------------------------------------------------------------------------------------------------


def test_an_unknown_key_is_named_by_its_dotted_path_and_the_right_one_suggested():
    assert message_of(MINIMAL, "optim.lrr=1") == (
        "run.yaml: optim.lrr: unknown key; did you mean 'lr'? known here: lr, betas"
    )
    assert "model.funits: unknown key; did you mean 'funit'?" in message_of(MINIMAL, "model.funits=8")
    assert "losses.l1.wieght: unknown key; did you mean 'weight'?" in message_of(MINIMAL, "losses.l1.wieght=8")
    assert "zzz: unknown key; known here: name, steps" in message_of(MINIMAL, "zzz=8")


def test_an_unknown_kind_lists_the_known_ones():
    known = ", ".join(kinds("library.models"))
    assert message_of(MINIMAL, "model.kind=unett") == (
        f"run.yaml: model.kind: unknown kind 'unett'; did you mean 'unet'? known: {known}"
    )
    assert message_of(MINIMAL, "model=5") == f"run.yaml: model: needs a mapping with a 'kind'; known: {known}"
    losses = ", ".join(kinds("library.losses"))
    assert message_of(MINIMAL, "losses.l7.weight=1").endswith(f"known: {losses}")
    assert message_of(MINIMAL, "losses=l1") == f"run.yaml: losses: needs a mapping by kind; known: {losses}"


def test_a_value_of_the_wrong_type_is_named_with_its_key():
    message = message_of(MINIMAL, "optim.lr=fast")
    assert message.startswith("run.yaml: optim.lr: ")
    assert "but it is str 'fast'" in message
    assert message_of(MINIMAL, "losses.l1.weight=-1").startswith("run.yaml: losses.l1.weight: input should be greater")
    assert message_of(MINIMAL, "model.funit=0").startswith("run.yaml: model.funit: ")


def test_a_kind_whose_settings_name_another_kind_is_refused():
    assert message_of(MINIMAL, "losses.l1.kind=mse").startswith("run.yaml: losses.l1.kind: ")


def test_what_is_required_is_said_to_be():
    assert message_of({"losses": {}}) == "run.yaml: model: is required"


def test_every_error_has_one_line_that_begins_with_the_source():
    message = message_of(MINIMAL, "optim.lr=fast", "steps=[1\n]", "model.funit=0", "losses.l1.weight=x")
    lines = message.splitlines()
    assert len(lines) == 4
    assert all(line.startswith("run.yaml: ") for line in lines)
    assert [line.split(": ")[1] for line in lines] == ["steps", "optim.lr", "model.funit", "losses.l1.weight"]


def test_null_leaves_a_loss_out():
    config = validate(Run, override(MINIMAL, "losses.mse=null"), "run.yaml")
    assert list(config.losses) == ["l1"]
    assert validate(Run, override(MINIMAL, "losses.l1=null"), "run.yaml").losses == {}


def test_a_config_is_frozen():
    config = validate(Run, MINIMAL, "run.yaml")
    for part, key in (
        (config, "steps"),
        (config.optim, "lr"),
        (config.model, "funit"),
        (config.losses["l1"], "weight"),
    ):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(part, key, 1)


def test_paths_are_absolute_once_validated_and_uris_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert validate(Run, MINIMAL | {"storage": "a/../b"}, "").storage == str(tmp_path / "b")
    assert validate(Run, MINIMAL | {"storage": "~/b"}, "").storage == os.path.expanduser("~/b")
    assert validate(Run, MINIMAL | {"storage": "s3://bucket/b"}, "").storage == "s3://bucket/b"


def test_a_default_path_is_absolute_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Workers run in another directory; a default once stayed relative and became absolute only there."""
    monkeypatch.chdir(tmp_path)
    config = validate(Run, MINIMAL, "")
    assert config.storage == str(tmp_path / "runs")
    monkeypatch.chdir("/")
    assert validate(Run, config.model_dump(mode="json"), "") == config


# --- a parameter's journey --------------------------------------------------------------------------------------------

CONFIGS = st.builds(
    lambda name, lr, funit, weights: {
        "name": name,
        "optim": {"lr": lr},
        "model": {"kind": "unet", "funit": funit},
        "losses": {kind: {"weight": weight} for kind, weight in weights.items()},
    },
    st.one_of(st.sampled_from(["1e5", "null", "yes", "1:30", "2024-01-01", "a: b", "#", ""]), st.text(max_size=9)),
    st.floats(1e-30, 1e30),
    st.integers(1, 999),
    st.dictionaries(st.sampled_from(kinds("library.losses")), st.floats(1e-30, 1e30)),
)


@given(CONFIGS)
def test_a_config_crosses_a_process_boundary_as_json_and_is_the_same(data: dict):
    config = validate(Run, data, "")
    assert validate(Run, json.loads(json.dumps(config.model_dump(mode="json"))), "") == config


@given(CONFIGS)
def test_a_config_written_as_yaml_is_read_as_the_same(data: dict):
    """A run that is named 1e5 used to come back as the number 100000."""
    config = validate(Run, data, "")
    read = override({}, f"whole={to_yaml(config)}")["whole"]  # a word's value is read as a file's content is
    assert validate(Run, read, "") == config


def test_the_resolved_config_names_every_default_in_the_order_of_the_fields():
    data = yaml.safe_load(to_yaml(validate(Run, MINIMAL, "")))
    assert list(data) == ["name", "steps", "storage", "optim", "model", "losses"]
    assert data["optim"] == {"lr": 1e-3, "betas": [0.9, 0.99]}
    assert data["model"]["funit"] == 32


def test_two_configs_in_one_process_do_not_leak_into_each_other():
    """Alternately, so that anything kept between two uses would show."""
    narrow, wide = (validate(Run, override(MINIMAL, f"model.funit={funit}"), "") for funit in (1, 2))
    sizes = {}
    for _ in range(2):
        for config in (narrow, wide):
            torch.manual_seed(0)
            model = config.model.build()
            assert model.config.funit == config.model.funit
            weights = torch.cat([p.detach().flatten() for p in model.parameters()])
            first = sizes.setdefault(config.model.funit, weights)
            assert torch.equal(weights, first)
    assert [len(weights) for weights in sizes.values()] == [7741, 30618]
    assert Run.model_fields["optim"].default == Optim(lr=1e-3)
