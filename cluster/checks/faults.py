"""A fault: where it is, what is wrong, what to do. And the faults that any file may have."""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import yaml

MOST_BYTES = 1_000_000
"""Of a file; launcher files and manifests are some kilobytes."""
_MOST_VALUES = 100_000
# A token as Ray makes it has 64 hexadecimal digits. An image's digest has as many behind a colon, a git commit has 40:
# neither is a secret.
_TOKEN = re.compile(r"(?<![0-9a-fA-F:])[0-9a-fA-F]{48,}(?![0-9a-fA-F])")
# Given as a value, not as the name of a variable or the output of a command.
_ASSIGNED = re.compile(r"RAY_AUTH_TOKEN=[\"']?[^\"'$\s`]")
_CLOUD_KEY = re.compile(r"\b(AKIA|ASIA)[0-9A-Z]{16}\b")


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a file."""

    file: str
    key: str
    """Dotted, as it stands in the file; empty for the file as a whole."""
    message: str
    """What is wrong, and what to do."""

    def to_json(self) -> dict[str, str]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.file}: {self.key}: {self.message}" if self.key else f"{self.file}: {self.message}"


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?`, or what is known."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known) or 'none'}"


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """All plain values of YAML, each with its dotted key."""
    if isinstance(value, Mapping):
        for name, below in value.items():
            yield from leaves(below, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for index, below in enumerate(value):
            yield from leaves(below, f"{key}[{index}]")
    else:
        yield key, value


def secrets_in(value: Any, file: str) -> Iterator[Fault]:
    """Tokens and keys of a cloud that are written into a file; what they are is not repeated."""
    for key, text in leaves(value):
        if isinstance(text, str) and (_ASSIGNED.search(text) or _TOKEN.search(text) or _CLOUD_KEY.search(text)):
            yield Fault(
                file,
                key,
                "holds a token or a key in clear, and such a file is copied, committed and shown: keep it in a file of "
                "mode 0600 that is copied beside this one, or in a secret of Kubernetes, and make a new one now",
            )


def read_yaml(text: str, file: str) -> tuple[list[Any], list[Fault]]:
    """All documents of a YAML file, and keys that stand there twice: of those YAML takes the last without a word."""
    faults: list[Fault] = []

    class Loader(yaml.SafeLoader):
        pass

    def mapping(loader: Loader, node: yaml.MappingNode) -> dict[Any, Any]:
        own = [loader.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for name in {str(key) for key in own if isinstance(key, Hashable) and own.count(key) > 1}:
            faults.append(
                Fault(file, name, f"stands twice in line {node.start_mark.line + 1} and below; leave one out")
            )
        loader.flatten_mapping(node)
        return loader.construct_mapping(node, deep=True)

    Loader.add_constructor("tag:yaml.org,2002:map", mapping)
    try:
        # A subclass of SafeLoader: tags that name Python objects are refused.
        loader = Loader(text)
        documents, num_values = [], 0
        while loader.check_node():
            node = loader.get_node()
            assert node is not None
            num_values += _num_values(node, {})
            if num_values > _MOST_VALUES:
                much = f"holds more than {_MOST_VALUES} values, once its anchors are followed"
                return [], [*faults, Fault(file, "", f"{much}: this is no file for a cluster")]
            documents.append(loader.construct_document(node))
    except yaml.YAMLError as error:
        return [], [*faults, Fault(file, "", f"is not YAML: {' '.join(str(error).split())}")]
    except RecursionError:
        return [], [*faults, Fault(file, "", "is nested too deep, or holds itself by an anchor")]
    return [document for document in documents if document is not None], faults


def _num_values(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a YAML node stands for: anchors may be named many times, and hold others. RecursionError for one
    that holds itself."""
    if id(node) not in known:
        below = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for entry in below for part in (entry if isinstance(entry, tuple) else (entry,))]
        known[id(node)] = 1 + sum(_num_values(part, known) for part in parts)
    return known[id(node)]
