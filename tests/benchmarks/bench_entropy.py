"""Our entropy coder, its other one (constriction's range coder in our streams) and constriction's range and ANS coders
by themselves, with the same integer tables, in one run.

python -m tests.benchmarks.bench_entropy   (from the project's root; two minutes, 1.5 GB)

64 Gaussian scales from 0.11 to 64, evenly in log, most values at the small ones: 0.93 bit a value. All go from values
and indices to bytes and back; of an escape constriction by itself keeps only that it is one. Its prebuilt models ask
for the symbols of one table after those of another: its times are given with that sorting and without. The range coder
in our streams makes its models in every call, and adds escapes and check sums. Last in a line stands our speed in units
of the other's, to encode and to decode. Seconds are those of the processor, on one thread: they leave out the time that
a busy machine gives to others, though not what those do to its caches.
"""

from __future__ import annotations

import importlib.metadata
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import constriction
import numpy as np

from library.entropy import range_coder
from library.entropy.rans import decode, encode
from library.entropy.tables import FrequencyTables, gaussian_tables, ideal_bits

SCALES = np.geomspace(0.11, 64, 64)
SPREAD = 1.15
"""Mean of log(scale / 0.11). Gives 0.93 bit a value."""


def latents(num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Values and the index of their scales, the nearest in log."""
    generator = np.random.default_rng(seed)
    log_scale = generator.exponential(SPREAD, num)
    indices = np.clip(np.rint(log_scale / np.log(SCALES[-1] / SCALES[0]) * 63), 0, 63).astype(np.uint8)
    return np.rint(generator.normal(size=num) * SCALES[indices]).astype(np.int32), indices


def by_turns(steps: dict[str, Callable[[], object]], runs: int) -> dict[str, list[float]]:
    """Processor seconds of each step. All take turns, so that a neighbour slows them alike; one turn to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(runs + 1):
        for name, step in steps.items():
            start = time.process_time()
            step()
            seconds[name].append(time.process_time() - start)
    return {name: times[1:] for name, times in seconds.items()}


class Constriction:
    """One stream: the symbols of one table after those of another."""

    def __init__(self, ans: bool, values: np.ndarray, indices: np.ndarray, tables: FrequencyTables) -> None:
        self.ans, self.values, self.indices, self.tables = ans, values, indices, tables
        self.models = [
            constriction.stream.model.Categorical(f[:size].astype(np.float64) / 2**14, perfect=False)
            for f, size in zip(tables.frequencies, tables.sizes, strict=True)
        ]
        self.groups = self.sort()
        self.compressed = self.encode_sorted()
        within = (tables.smallest[indices] <= values) & (values < tables.smallest[indices] + tables.sizes[indices] - 1)
        assert np.array_equal(self.decode()[within], values[within])  # of an escape it keeps only that it is one

    def sort(self) -> list[np.ndarray]:
        symbols = self.values - self.tables.smallest[self.indices]
        last = self.tables.sizes[self.indices] - 1
        symbols = np.where(symbols.view(np.uint32) < last, symbols, last)
        counts = np.bincount(self.indices, minlength=len(self.models))
        return np.split(symbols[self.indices.argsort(kind="stable")], np.cumsum(counts)[:-1])

    def encode_sorted(self) -> np.ndarray:
        coder: Any = constriction.stream.stack.AnsCoder() if self.ans else constriction.stream.queue.RangeEncoder()
        pairs = list(zip(self.groups, self.models, strict=True))
        for group, model in reversed(pairs) if self.ans else pairs:
            (coder.encode_reverse if self.ans else coder.encode)(group, model)
        return coder.get_compressed()

    def encode(self) -> np.ndarray:
        self.groups = self.sort()
        return self.encode_sorted()

    def decode_sorted(self) -> np.ndarray:
        stream = constriction.stream
        coder: Any = (stream.stack.AnsCoder if self.ans else stream.queue.RangeDecoder)(self.compressed)
        counts = np.bincount(self.indices, minlength=len(self.models)).tolist()
        return np.concatenate([coder.decode(model, num) for num, model in zip(counts, self.models, strict=True)])

    def decode(self) -> np.ndarray:
        symbols = np.empty(len(self.indices), np.int32)
        symbols[self.indices.argsort(kind="stable")] = self.decode_sorted()
        return symbols + self.tables.smallest[self.indices]


def one_stream(num: int, runs: int, tables: FrequencyTables) -> None:
    values, indices = latents(num, seed=0)
    ideal = ideal_bits(values, indices, tables) / 8
    data = encode([(values, indices)], tables)[0]
    assert np.array_equal(decode([(data, indices)], tables)[0], values)
    sizes = {"ours": len(data)}
    encoders: dict[str, Callable[[], object]] = {"ours": lambda: encode([(values, indices)], tables)}
    decoders: dict[str, Callable[[], object]] = {"ours": lambda: decode([(data, indices)], tables)}
    by_range = range_coder.encode([(values, indices)], tables)[0]
    assert np.array_equal(range_coder.decode([(by_range, indices)], tables)[0], values)
    sizes["our range streams"] = len(by_range)
    encoders["our range streams"] = lambda: range_coder.encode([(values, indices)], tables)
    decoders["our range streams"] = lambda: range_coder.decode([(by_range, indices)], tables)
    for name, ans in (("constriction range", False), ("constriction ANS", True)):
        theirs = Constriction(ans, values, indices, tables)
        encoders |= {name: theirs.encode, f"{name}, sorted": theirs.encode_sorted}
        decoders |= {name: theirs.decode, f"{name}, sorted": theirs.decode_sorted}
        sizes |= dict.fromkeys((name, f"{name}, sorted"), theirs.compressed.nbytes)
    print(f"\none stream of {num / 1e6:g} M values, {8 * ideal / num:.3f} bit a value")
    encoding, decoding = by_turns(encoders, runs), by_turns(decoders, runs)
    for name in encoders:
        ratios = [
            statistics.median(b / a for a, b in zip(seconds["ours"], seconds[name], strict=True))
            for seconds in (encoding, decoding)
        ]
        print(
            f"{name:>26}: encode {speed(num, encoding[name])}, decode {speed(num, decoding[name])} Mvalues/s, "
            f"{100 * (sizes[name] / ideal - 1):+.3f} % over the ideal; ours / this {ratios[0]:.2f}, {ratios[1]:.2f}"
        )


def many_streams(count: int, num: int, runs: int, tables: FrequencyTables) -> None:
    streams = [latents(num, seed) for seed in range(count)]
    ideal = sum(ideal_bits(*stream, tables) for stream in streams) / 8
    coded = encode(streams, tables)
    jobs = [(data, indices) for data, (_, indices) in zip(coded, streams, strict=True)]
    print(
        f"\n{count} streams of {num} values, {ideal / count:.0f} bytes each, "
        f"{100 * (sum(map(len, coded)) / ideal - 1):+.3f} % over the ideal"
    )
    by_range = range_coder.encode(streams, tables)
    range_jobs = [(data, indices) for data, (_, indices) in zip(by_range, streams, strict=True)]
    print(f"by the range coder {100 * (sum(map(len, by_range)) / ideal - 1):+.3f} %")
    encoding = by_turns(
        {
            "together": lambda: encode(streams, tables),
            "one by one": lambda: [encode([s], tables) for s in streams],
            "our range streams": lambda: range_coder.encode(streams, tables),
        },
        runs,
    )
    decoding = by_turns(
        {
            "together": lambda: decode(jobs, tables),
            "one by one": lambda: [decode([job], tables) for job in jobs],
            "our range streams": lambda: range_coder.decode(range_jobs, tables),
        },
        runs,
    )
    for name in encoding:
        total = count * num
        print(f"{name:>26}: encode {speed(total, encoding[name])}, decode {speed(total, decoding[name])} Mvalues/s")


def many_tables(num: int, runs: int) -> None:
    """The same 64 Gaussians 320 times over: too many to look slots up, so that they are searched."""
    few = gaussian_tables(SCALES)
    tables = FrequencyTables(np.tile(few.frequencies, (320, 1)), np.tile(few.smallest, 320), np.tile(few.sizes, 320))
    values, indices = latents(num, seed=0)
    indices = indices + 64 * np.random.default_rng(0).integers(0, 320, num)
    data = encode([(values, indices)], tables)[0]
    by_range = range_coder.encode([(values, indices)], tables)[0]
    seconds = by_turns(
        {
            "ours encode": lambda: encode([(values, indices)], tables),
            "ours decode": lambda: decode([(data, indices)], tables),
            "our range streams encode": lambda: range_coder.encode([(values, indices)], tables),
            "our range streams decode": lambda: range_coder.decode([(by_range, indices)], tables),
        },
        runs,
    )
    print(f"\n{tables.num_tables} tables, one stream of {num / 1e6:g} M values")
    for name in ("ours", "our range streams"):
        encoding, decoding = (speed(num, seconds[f"{name} {step}"]) for step in ("encode", "decode"))
        print(f"{name:>26}: encode {encoding}, decode {decoding} Mvalues/s")


def speed(num: int, seconds: list[float]) -> str:
    """Median and range, in millions of values a second."""
    fast, slow = num / min(seconds) / 1e6, num / max(seconds) / 1e6
    return f"{num / statistics.median(seconds) / 1e6:5.1f} ({slow:.1f} to {fast:.1f})"


def main() -> None:
    print(
        f"numpy {np.__version__}, constriction {importlib.metadata.version('constriction')}, "
        f"python {platform.python_version()}, {platform.machine()}"
    )
    tables = gaussian_tables(SCALES)
    one_stream(1_000_000, 11, tables)
    one_stream(8_000_000, 5, tables)
    many_streams(96, 20_000, 1, tables)
    many_tables(1_000_000, 3)


if __name__ == "__main__":
    main()
