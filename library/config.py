"""One configuration, passed by argument: YAML and `key=value` words -> a frozen pydantic model -> JSON -> the same
model on a worker.

A component's kind is its file's name: `one_of("library.models")` turns `{kind: unet, funit: 48}` into
`library/models/unet.py`'s `Config`. There is no registry filled by imports, because it would be empty in a fresh worker
process.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import os
import re
from collections.abc import Collection, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    PlainValidator,
    SerializeAsAny,
    ValidationError,
    create_model,
    model_validator,
)
from pydantic_core import PydanticCustomError
from upath import UPath

from library.errors import ConfigError


class Frozen(BaseModel):
    """Base of every piece of configuration: immutable, and unknown keys are errors that suggest the right one."""

    # Defaults are validated too, or a relative path among them would not become absolute.
    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True, protected_namespaces=()
    )

    @model_validator(mode="before")
    @classmethod
    def _no_unknown_keys(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            for key in value:
                if key not in cls.model_fields:
                    close = difflib.get_close_matches(str(key), cls.model_fields, n=1)
                    hint = f"did you mean '{close[0]}'? " if close else ""
                    known = ", ".join(cls.model_fields)
                    raise PydanticCustomError(
                        "unknown_key",
                        "unknown key; {hint}known here: {known}",
                        {"key": str(key), "hint": hint, "known": known},
                    )
        return value


class Component(Frozen):
    """Configuration of one model, loss or data set. Its file's name is its `kind`; `build()` makes the thing."""

    kind: str


def kinds(package: str) -> list[str]:
    """The kinds a package offers: names of its modules that define a `Config`, sorted. Imports none of them."""
    spec = importlib.util.find_spec(package)
    assert spec is not None, f"there is no {package}"
    assert spec.submodule_search_locations, f"{package} is not a package"
    files = sorted(Path(spec.submodule_search_locations[0]).glob("*.py"))
    return [
        file.stem for file in files if re.search(r"^class Config\(", file.read_text(encoding="utf-8"), re.MULTILINE)
    ]


def config_class(package: str, kind: str) -> type[Component]:
    """The `Config` of `package/kind.py`.

    Raises `ConfigError` listing the known kinds when there is no such file. Errors inside the file are not caught: they
    are bugs, and their traceback is the message.
    """
    known = kinds(package)
    if kind not in known:
        raise ConfigError(f"unknown kind '{kind}'; known: {', '.join(known)}")
    return importlib.import_module(f"{package}.{kind}").Config


def one_of(package: str) -> Any:
    """A field that holds any component of `package`, chosen by its `kind`."""

    def validate(value: Any) -> Component:
        if isinstance(value, Component):
            return value
        if not isinstance(value, Mapping) or "kind" not in value:
            known = ", ".join(kinds(package))
            raise PydanticCustomError("no_kind", "needs a mapping with a 'kind'; known: {known}", {"known": known})
        return _config_class_in_validation(package, value["kind"], "kind").model_validate(value)

    return Annotated[SerializeAsAny[Component], PlainValidator(validate)]


def mapping_of(package: str) -> Any:
    """A field that maps kinds of `package` to their settings: `{ms_ssim: {weight: 0.2}}`. A null value leaves that kind
    out.

    A mapping, not a list, so that a command-line word or a sweep can name one entry.
    """

    def validate(value: Any) -> dict[str, Component]:
        if not isinstance(value, Mapping):
            known = ", ".join(kinds(package))
            raise PydanticCustomError("no_mapping", "needs a mapping by kind; known: {known}", {"known": known})
        used = {kind: settings for kind, settings in value.items() if settings is not None}
        classes = {kind: _config_class_in_validation(package, kind, None) for kind in used}
        # A model with one field per kind, so that pydantic itself puts the kind in front of each error's location.
        fields: dict[str, Any] = {kind: (cls, ...) for kind, cls in classes.items()}
        holder = create_model("holder", **fields).model_validate(
            {kind: {"kind": kind, **s} if isinstance(s, Mapping) else s for kind, s in used.items()}
        )
        return {kind: getattr(holder, kind) for kind in used}

    return Annotated[dict[str, SerializeAsAny[Component]], PlainValidator(validate)]


def _config_class_in_validation(package: str, kind: str, key: str | None) -> type[Component]:
    known = kinds(package)
    if kind not in known:
        close = difflib.get_close_matches(str(kind), known, n=1)
        context = {
            "value": str(kind),
            "hint": f"did you mean '{close[0]}'? " if close else "",
            "known": ", ".join(known),
        }
        raise PydanticCustomError(
            "unknown_kind", "unknown kind '{value}'; {hint}known: {known}", context | ({"key": key} if key else {})
        )
    return config_class(package, kind)


def _named_key(line: Mapping[str, Any]) -> dict[str, str]:
    context = line.get("ctx") or {}
    return {"key": context["key"]} if "key" in context else {}


def _absolute(value: str | Path) -> str:
    text = str(value)
    return text if "://" in text else os.path.abspath(os.path.expanduser(text))


Location = Annotated[str, AfterValidator(_absolute)]
"""A path or URI. Absolute once validated, since workers run in another directory; relative paths count from where the
command runs."""


# --- YAML and words ---------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 1e-4 as a number (YAML 1.2) and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be a word or a number", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Puts quotes around text that `_Loader` would read as a number, such as a run named 1e5."""


for _yaml in (_Loader, _Dumper):
    _yaml.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
    _yaml.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
    )


_MOST_VALUES = 1_000_000


def load(path: str | Path | UPath, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A YAML file with `key=value` words laid over it: plain data, not yet validated.

    path       of YAML holding one mapping; a UPath may be a URI, a text is a path on this machine
    overrides  words such as `optim.lr=1e-4` or `losses.ms_ssim.weight=0.2`; the value is read as YAML
    raises     ConfigError for a missing file, bad YAML, or a word that cannot be applied
    """
    try:
        text = (Path(path) if isinstance(path, str) else path).read_text(encoding="utf-8")
    except OSError as error:
        # Stores of other machines raise the same errors, without the operating system's words for them.
        reason = error.strerror or type(error).__name__
        raise ConfigError(f"{path}: cannot be read ({reason}); give the path of a YAML file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not a text file; give the path of a YAML file") from None
    data = _parse(text, str(path))
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must hold a mapping of keys to values, but holds {_named(data)}")
    return functools.reduce(override, overrides, data)


def override(data: Mapping[str, Any], word: str) -> dict[str, Any]:
    """`data` with one dotted `key=value` word applied; the original is left as it was."""
    dotted, separator, text = word.partition("=")
    if not separator or not all(dotted.split(".")):
        raise ConfigError(f"'{word}': an override reads key=value, for example optim.lr=1e-4")
    return replaced(data, dotted, _parse(text, f"'{word}'"))


def replaced(data: Mapping[str, Any], dotted: str, value: Any) -> dict[str, Any]:
    """`data` with the value of one dotted key exchanged; the original is left as it was.

    raises  ConfigError when the key leads through something that has no keys
    """
    keys = dotted.split(".")

    def level_with(level: Any, position: int) -> Any:
        if position == len(keys):
            return value
        if level is not None and not isinstance(level, Mapping):
            raise ConfigError(
                f"'{dotted}': '{'.'.join(keys[:position])}' is {_named(level)}, which has no key '{keys[position]}'"
            )
        below = dict(level or {})
        below[keys[position]] = level_with(below.get(keys[position]), position + 1)
        return below

    return level_with(data, 0)


def dotted(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config's values by their dotted keys, as command-line words name them: {"optim.lr": 1e-4}. `replaced` of each
    gives the config back.

    Lists and empty mappings are values.
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= {f"{key}.{below}": leaf for below, leaf in dotted(value).items()}
        else:
            flat[str(key)] = value
    return flat


def to_yaml(config: BaseModel) -> str:
    """The resolved configuration as YAML, in the order of its fields. `load` and `validate` give the same configuration
    back."""
    data = config.model_dump(mode="json")
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def config_difference(there: Mapping[str, Any], asked_for: Mapping[str, Any], *, may_change: Collection[str]) -> str:
    """The lines in which two resolved configurations differ, as a diff to be read; nothing where they do not.

    may_change  keys of the top level that do not count
    """
    before, after = (
        yaml.safe_dump({k: v for k, v in data.items() if k not in may_change}, sort_keys=False).splitlines()
        for data in (there, asked_for)
    )
    diff = difflib.unified_diff(before, after, "there", "asked for", n=0, lineterm="")
    return "\n".join(line for line in diff if line[:2] != "@@")


def _parse(text: str, where: str) -> Any:
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if _num_values(node, {}) > _MOST_VALUES:
                raise ConfigError(f"{where}: holds more than {_MOST_VALUES} values, once its anchors are followed")
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError:
        raise ConfigError(f"{where}: is nested too deep, or holds itself by an anchor") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise ConfigError(f"{where}{line}: not valid YAML: {problem}") from None


def _num_values(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a YAML node stands for. An anchor may be named many times, and hold other anchors: a few lines
    then stand for more than a machine holds. RecursionError for one that holds itself."""
    if id(node) not in known:
        below = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for entry in below for part in (entry if isinstance(entry, tuple) else (entry,))]
        known[id(node)] = 1 + sum(_num_values(part, known) for part in parts)
    return known[id(node)]


def _named(value: Any) -> str:
    return "empty" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"


# --- validation -------------------------------------------------------------------------------------------------------

C = TypeVar("C", bound=BaseModel)


def validate(cls: type[C], data: Mapping[str, Any], source: str) -> C:
    """`data` as a `cls`, or one `ConfigError` that names every bad key by its dotted path and says what is known there.

    source  what to blame in the message: a file's name
    """
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{source}: {_line(e)}" for e in error.errors(include_url=False))) from None


def _line(error: Any) -> str:
    key = ".".join(str(part) for part in (*error["loc"], *_named_key(error).values()))
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "missing":
        message = "is required"
    elif error["type"] not in ("unknown_key", "unknown_kind", "no_kind", "no_mapping", "value_error"):
        message = f"{message[0].lower()}{message[1:]}, but it is {_named(error['input'])}"
    return f"{key}: {message}" if key else message
