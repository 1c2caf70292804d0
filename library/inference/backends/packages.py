"""The packages of the extra [export], which are imported where they are needed and missed in words."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType

from library.errors import ConfigError


def need(*names: str) -> None:
    """Raises ConfigError for the first that is not installed, before any work is done."""
    for name in names:
        package(name)


def package(name: str) -> ModuleType:
    """An imported package of the extra [export].

    raises  ConfigError, saying how to get it, when it is not installed
    """
    if name == "openvino" and name not in sys.modules:
        # Importing OpenVINO tells Google Analytics about it. Without this package it uses a stub of its own.
        with _hidden("openvino_telemetry"):
            return _imported(name)
    return _imported(name)


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # What an installed package misses is its own affair, and its traceback says more.
        if error.name != name:
            raise
        raise ConfigError(
            f"export: needs the package {name}, which is not installed: `pip install 'stillgrain[export]'`"
        ) from None


@contextlib.contextmanager
def _hidden(name: str) -> Iterator[None]:
    """A block in which a package cannot be imported."""
    before = sys.modules.get(name)
    sys.modules[name] = None  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before
