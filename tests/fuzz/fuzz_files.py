"""Coverage-guided fuzzing of the parsers that are ours and Python's own, with atheris (`pip install -e .[fuzz]`).

python -m tests.fuzz.fuzz_files FOLDER -max_total_time=600   (from the project's root; FOLDER holds what is found)

What LibRaw, OpenEXR and libjpeg do with damage is for `tests.benchmarks.bench_fuzz_files`, which reads in a child
process. Here anything that is raised ends the run, with the bytes that did it.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["library.files", "exifread", "tifffile"]):
    from library.files import ciff, exif
    from library.files.dng_tags import opcodes_for_planes, pack_opcodes, parse_opcodes, read_dng_tags


def parse(data: bytes) -> None:
    """raises  whatever a parser should not"""
    exif.whitelisted(exif.read_tags(data))
    read_dng_tags(data)
    if data[6:14] == ciff.SIGNATURE:
        ciff.read_tags(data)
    opcodes = parse_opcodes(data)
    if opcodes is not None:
        assert parse_opcodes(pack_opcodes(opcodes)) == opcodes
        opcodes_for_planes(data, "RGGB")


if __name__ == "__main__":
    atheris.Setup(sys.argv, parse)
    atheris.Fuzz()
