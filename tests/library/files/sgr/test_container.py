from __future__ import annotations

import json
import pickle
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from upath import UPath

from library.entropy import coders
from library.errors import StreamFileError
from library.files.metadata import ImageMetadata
from library.files.sgr import container
from library.files.sgr.container import (
    DamagedTileError,
    FileMetadata,
    SgrFile,
    StreamHeader,
    TileRecord,
    fixed_size,
    write_sgr,
)
from library.files.sgr.header import CODERS, HEADER_LENGTH

HEADER = StreamHeader(
    width=300,
    height=150,
    layout="mosaic",
    cfa="GRBG",
    tile=64,
    num_passes=3,
    model_digest=bytes(range(16)),
    quality=30,
    stabilizer=(0.125, 0.0),
    noise=(1e-4, 1e-7),
    strength=0.3,
    black_level=(512.0, 512.25, 511.75, 512.0),
    white_level=16383.0,
)
IMAGE = ImageMetadata(
    make="Stillgrain",
    model="Test",
    iso=800.0,
    exposure_time=1 / 125,
    f_number=2.8,
    focal_length=35.0,
    timestamp="2024-05-06T07:08:09",
    orientation=6,
    pixel_aspect=0.5,
    xyz_to_camera=np.array([[0.7374, -0.2389, -0.0551], [-0.5435, 1.3162, 0.2519], [-0.1006, 0.1795, 0.6552]]),
    as_shot_white_balance=np.array([2.0, 1.0, 1.5]),
    noise_profile=((1e-4, 1e-7), (2e-4, 2e-7)),
    exif={"Artist": "Zoë", "Flash": 16, "LensSpecification": [24.0, 70.0, 2.8, 2.8], "ExposureBiasValue": -0.3},
    original_name="DSC_1.NEF",
    software="",
    denoised_by="bundle",
    cfa="GBRG",
    dng={"UniqueCameraModel": "Test", "BaselineExposure": [0.5], "OpcodeList2": bytes(range(256))},
    levels="white 16383 of the decoder",
)
OF_ANOTHER_CODER = replace(HEADER, coder="constriction", noise=None)
METADATA = FileMetadata(
    original_sha256="0f" * 32,
    original_name="DSC_1 \udcff.NEF",  # a name that is no UTF-8, as Python gives it
    software="Stillgrain 1",
    image=IMAGE,
    exposure_ev=0.5,
    extra={"note": ["a", 1, 0.1, None, True, {"b": []}]},
)


def streams(header: StreamHeader, *, longest: int = 60, seed: int = 0) -> list[TileRecord]:
    """Tiles of random bytes, in an order of their own."""
    rng = np.random.default_rng(seed)
    return [
        TileRecord(
            int(index), int(rng.integers(64)), tuple(rng.bytes(rng.integers(longest)) for _ in range(header.num_passes))
        )
        for index in rng.permutation(header.num_tiles)
    ]


TILES = streams(HEADER)


@pytest.fixture
def sgr(tmp_path: Path) -> Path:
    path = tmp_path / "photo.sgr"
    write_sgr(path, HEADER, METADATA, TILES, thumbnail=b"\xff\xd8" + bytes(50), blocks={"noTe": b"hello"})
    return path


def by_index(tiles: list[TileRecord]) -> list[TileRecord]:
    return sorted(tiles, key=lambda tile: tile.index)


def read_all(file: SgrFile) -> list[TileRecord]:
    return [file.read_tile(index) for index in range(file.header.num_tiles)]


def same_metadata(a: FileMetadata, b: FileMetadata) -> bool:
    return repr(asdict(a)) == repr(asdict(b))


def fields_of(file: SgrFile) -> str:
    """All that a file says, but for its streams."""
    return repr((asdict(file.header), asdict(file.metadata), file.thumbnail, file.block("noTe"), file.version))


# --- round trips ------------------------------------------------------------------------------------------------------


def test_every_coder_has_a_number_in_the_header():
    assert CODERS[0] == "rans"
    assert sorted(CODERS) == sorted(coders.CODERS)


def test_what_was_written_is_read(sgr: Path):
    with SgrFile(sgr) as file:
        assert asdict(file.header) == asdict(HEADER)
        assert same_metadata(file.metadata, METADATA)
        assert file.thumbnail == b"\xff\xd8" + bytes(50)
        assert file.block("noTe") == b"hello"
        assert file.block("none") is None
        assert file.version == "1.0"
        assert read_all(file) == by_index(TILES)
        assert file.damaged_tiles() == []
        assert file.faults == ()


@st.composite
def headers(draw: st.DrawFn) -> StreamHeader:
    finite = st.floats(allow_nan=False, allow_infinity=False)
    single = st.floats(allow_nan=False, allow_infinity=False, width=32)
    cfa = draw(st.sampled_from(["", "RGGB", "GRBG", "GBRG", "BGGR"]))
    black = draw(st.tuples(*[st.floats(-1e9, 1e9)] * 4))
    return StreamHeader(
        width=draw(st.integers(1, 500)),
        height=draw(st.integers(1, 500)),
        layout="mosaic" if cfa else "rgb",
        cfa=cfa,
        tile=draw(st.sampled_from([64, 128, 4096])),
        num_passes=draw(st.integers(1, 8)),
        model_digest=draw(st.binary(min_size=16, max_size=16)),
        quality=draw(st.integers(0, 63)),
        stabilizer=draw(st.tuples(single, single)),
        noise=draw(st.none() | st.tuples(finite, finite)),
        strength=draw(st.floats(0, 1)),
        black_level=black,
        white_level=draw(st.floats(1e9, 1e12, exclude_min=True)),
        coder=draw(st.sampled_from(["rans", "constriction"])),
    )


@given(header=headers(), data=st.data(), thumbnail=st.none() | st.binary(max_size=30))
def test_any_header_and_any_tiles_come_back(
    tmp_path_factory: pytest.TempPathFactory, header: StreamHeader, data: st.DataObject, thumbnail: bytes | None
):
    order = data.draw(st.permutations(range(header.num_tiles)))
    stream = st.binary(max_size=5) | st.integers(120, 20_000).map(bytes)
    pool = [TileRecord(0, q, tuple(data.draw(stream) for _ in range(header.num_passes))) for q in (0, 21, 63)]
    tiles = [replace(pool[index % 3], index=index) for index in order]
    path = tmp_path_factory.getbasetemp() / "any.sgr"
    write_sgr(path, header, FileMetadata(), iter(tiles), thumbnail=thumbnail)
    for salvage in (False, True):
        with SgrFile(path, salvage=salvage) as file:
            assert asdict(file.header) == asdict(header)
            assert file.thumbnail == thumbnail
            assert read_all(file) == by_index(tiles)
            assert file.faults == ()


@given(
    header=headers(),
    top=st.integers(-80, 520),
    left=st.integers(-80, 520),
    height=st.integers(-5, 300),
    width=st.integers(-5, 300),
)
def test_the_tiles_of_a_region_are_those_that_hold_a_photosite_of_it(
    tmp_path_factory: pytest.TempPathFactory, header: StreamHeader, top: int, left: int, height: int, width: int
):
    path = tmp_path_factory.getbasetemp() / "region.sgr"
    write_sgr(path, header, FileMetadata(), streams(header, longest=1))
    with SgrFile(path) as file:
        owner = np.full((header.height, header.width), -1)
        for index in range(header.num_tiles):
            y, x, h, w = file.tile_bounds(index)
            assert h > 0
            assert w > 0
            assert (owner[y : y + h, x : x + w] == -1).all()
            owner[y : y + h, x : x + w] = index
        assert (owner >= 0).all()
        region = owner[max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)]
        assert file.tiles_of(top, left, height, width) == np.unique(region).tolist()


def test_a_region_is_read_without_touching_the_bytes_of_other_tiles(sgr: Path):
    with SgrFile(sgr) as file:
        inside = file.tiles_of(60, 100, 10, 10)
        offsets = {tile: int(file._entries[tile]["offset"]) for tile in range(HEADER.num_tiles)}
    data = bytearray(sgr.read_bytes())
    for tile, offset in offsets.items():
        if tile not in inside:
            data[offset : offset + 4] = bytes(4)
    sgr.write_bytes(data)
    with SgrFile(sgr) as file:
        assert [file.read_tile(tile) for tile in inside] == [by_index(TILES)[tile] for tile in inside]
        assert file.damaged_tiles() == sorted(set(offsets) - set(inside))


def test_threads_can_share_a_file(sgr: Path):
    with SgrFile(sgr) as file, ThreadPoolExecutor(8) as pool:
        assert list(pool.map(file.read_tile, [*range(HEADER.num_tiles)] * 20)) == by_index(TILES) * 20


def test_a_file_lies_in_an_object_store_as_well(tmp_path: Path):
    path = UPath(f"memory:/{tmp_path}") / "photo.sgr"
    write_sgr(path, HEADER, METADATA, TILES)
    with SgrFile(path) as file:
        assert read_all(file) == by_index(TILES)
    with SgrFile(path, salvage=True) as file:
        assert read_all(file) == by_index(TILES)


def test_tiles_are_written_as_they_come(tmp_path: Path):
    """A picture's streams are larger together than the memory that its writer may take."""
    header = replace(HEADER, width=2048, height=2048, num_passes=1)

    def tiles() -> Iterator[TileRecord]:
        for index in range(header.num_tiles):
            yield TileRecord(index, 0, (bytes(20_000),))

    tracemalloc.start()
    write_sgr(tmp_path / "large.sgr", header, METADATA, tiles())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "large.sgr").stat().st_size > 20_000_000
    assert peak < 2_000_000


# --- metadata ---------------------------------------------------------------------------------------------------------


def test_every_fact_of_an_image_is_kept():
    """A field that ImageMetadata gains must be given a key here and in FORMAT.md, or it would vanish."""
    default = ImageMetadata()
    for field in fields(ImageMetadata):
        assert repr(getattr(IMAGE, field.name)) != repr(getattr(default, field.name)), f"{field.name} is not tested"
        assert field.name in METADATA.to_json()["image"] or field.name == "software"
        assert f"`{field.name}`" in FORMAT


def test_metadata_of_which_nothing_is_known_take_few_bytes(tmp_path: Path):
    write_sgr(tmp_path / "a.sgr", HEADER, FileMetadata(image=ImageMetadata(software="")), TILES)
    with SgrFile(tmp_path / "a.sgr") as file:
        assert file.metadata.to_json() == {}
        assert file.sizes.metadata < 30


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        (FileMetadata(original_sha256="ABC"), "original_sha256"),
        (FileMetadata(exposure_ev=float("nan")), "JSON"),
        (FileMetadata(extra={"a": float("inf")}), "JSON"),
        (FileMetadata(extra={"a": "x" * 2**20}), "1048576"),
        (FileMetadata(image=ImageMetadata(orientation=9)), "orientation"),
        (FileMetadata(image=ImageMetadata(xyz_to_camera=np.eye(4))), "xyz_to_camera"),
    ],
)
def test_metadata_that_could_not_be_read_again_are_not_written(tmp_path: Path, metadata: FileMetadata, said: str):
    with pytest.raises(ValueError, match=said):
        write_sgr(tmp_path / "a.sgr", HEADER, metadata, TILES)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "payload",
    [
        zlib.compress(bytes(50_000_000), 9),  # fifty megabytes of a thousandth of that
        zlib.compress(b"[" * 100_000),
        zlib.compress(b'{"a":' * 100_000),
        zlib.compress(b'{"exposure_ev":1e999}'),
        zlib.compress(b'{"extra":{"a":NaN}}'),
        zlib.compress(b'{"exposure_ev":' + b"9" * 5000 + b"}"),
        zlib.compress(b'{"image":{"iso":' + b"9" * 400 + b"}}"),
        zlib.compress(b'{"image":[]}'),
        zlib.compress(b'{"image":{"exif":{"Flash":null}}}'),
        zlib.compress(b'{"image":{"xyz_to_camera":[[1,2],[3,4]]}}'),
        zlib.compress(b'{"image":{"noise_profile":[[1,2,3]]}}'),
        zlib.compress(b"\xff\xfe"),
        zlib.compress(b"{}")[:-1],
        zlib.compress(b"{}") + b"x",
        b"",
    ],
    ids=range(15),
)
def test_forged_metadata_are_refused_in_little_memory(tmp_path: Path, payload: bytes):
    path = tmp_path / "forged.sgr"
    path.write_bytes(forged(blocks=[block(b"META", payload)]))
    tracemalloc.start()
    with pytest.raises(StreamFileError, match="metadata"):
        SgrFile(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8_000_000
    with SgrFile(path, salvage=True) as file:
        assert same_metadata(file.metadata, FileMetadata())
        assert len(file.faults) == 1
        assert file.read_tile(0) == TileRecord(0, 5, (b"abc",))


def test_keys_that_are_not_known_are_left_out(tmp_path: Path):
    path = tmp_path / "newer.sgr"
    path.write_bytes(forged(blocks=[block(b"META", zlib.compress(b'{"software":"2","mood":1,"image":{"aura":2}}'))]))
    with SgrFile(path) as file:
        assert file.metadata.software == "2"


# --- what may be written ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"width": 0},
        {"width": 2**20 + 1},
        {"width": 2**16, "height": 2**16},
        {"layout": "planes"},
        {"layout": "rgb"},
        {"cfa": ""},
        {"cfa": "RGBG"},
        {"tile": 96},
        {"tile": 32},
        {"tile": 8192},
        {"num_passes": 0},
        {"num_passes": 9},
        {"model_digest": b"short"},
        {"quality": 64},
        {"coder": "huffman"},
        {"stabilizer": (0.1, 0.0)},
        {"stabilizer": (1e300, 0.0)},
        {"noise": (float("nan"), 0.0)},
        {"strength": 1.1},
        {"black_level": (0.0,)},
        {"white_level": 512.0},
        {"white_level": float("inf")},
    ],
    ids=repr,
)
def test_a_header_that_no_file_may_have_is_refused(change: dict[str, Any]):
    with pytest.raises(ValueError, match=r"must|has|CFA"):
        replace(HEADER, **change)


@pytest.mark.parametrize(
    ("tiles", "said"),
    [
        (TILES[:-2], "2 of 15 tiles are missing"),
        ([*TILES, TILES[0]], "twice"),
        ([replace(TILES[0], index=15)], "no tile 15"),
        ([replace(TILES[0], index=-1)], "no tile -1"),
        ([replace(TILES[0], passes=(b"",))], "1 passes"),
        ([replace(TILES[0], quality=64)], "quality 64"),
    ],
)
def test_a_picture_that_is_not_whole_is_not_written(tmp_path: Path, tiles: list[TileRecord], said: str):
    with pytest.raises(ValueError, match=said):
        write_sgr(tmp_path / "a.sgr", HEADER, METADATA, tiles)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["META", "THMB", "CODR", "abc", "äbcd", "ab\ncd", "ab\n."])
def test_a_block_needs_a_type_of_its_own(tmp_path: Path, kind: str):
    with pytest.raises(ValueError, match="type"):
        write_sgr(tmp_path / "a.sgr", HEADER, METADATA, TILES, blocks={kind: b""})


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("salvage", [False, True])
def test_every_byte_is_counted_once(sgr: Path, salvage: bool):
    with SgrFile(sgr, salvage=salvage) as file:
        sizes = file.sizes
    assert sizes.total == sgr.stat().st_size
    assert (
        sizes.header + sizes.metadata + sizes.thumbnail + sizes.blocks + sizes.index + sum(sizes.passes) == sizes.total
    )
    assert sizes.passes == tuple(sum(len(tile.passes[i]) for tile in TILES) for i in range(3))
    assert sizes.thumbnail == 52 + 17
    assert sizes.blocks == 5 + 17


@pytest.mark.parametrize("num_passes", [1, 3, 5])
def test_the_container_costs_little(tmp_path: Path, num_passes: int):
    header = replace(HEADER, num_passes=num_passes)
    write_sgr(tmp_path / "a.sgr", header, METADATA, streams(header, longest=16_000))
    with SgrFile(tmp_path / "a.sgr") as file:
        assert file.sizes.header + 17 + 4 < 200
        assert file.sizes.index < 64 * header.num_tiles


def test_facts_for_people_are_json(sgr: Path):
    with SgrFile(sgr) as file:
        facts = json.loads(json.dumps(file.to_json(), allow_nan=False))
    assert facts["bpp"] == 8 * sgr.stat().st_size / (300 * 150)
    assert facts["model_digest"] == HEADER.model_digest.hex()
    assert facts["qualities"] == [min(t.quality for t in TILES), max(t.quality for t in TILES)]
    assert facts["metadata"]["image"]["make"] == "Stillgrain"
    assert facts["faults"] == []


# --- the document -----------------------------------------------------------------------------------------------------

FORMAT = Path(container.__file__).with_name("FORMAT.md").read_text(encoding="utf-8")


def example() -> bytes:
    lines = FORMAT.split("```hex\n")[1].split("```")[0].splitlines()
    data = bytearray()
    for line in lines:
        offset, digits = line.split("  ")
        assert int(offset, 16) == len(data)
        data += bytes.fromhex(digits)
    return bytes(data)


def test_the_example_of_the_document_is_what_the_code_writes_and_reads(tmp_path: Path):
    header = StreamHeader(
        width=6,
        height=4,
        layout="mosaic",
        cfa="GBRG",
        tile=64,
        num_passes=2,
        model_digest=bytes(range(16)),
        quality=40,
        stabilizer=(0.5, 0.0),
        noise=None,
        strength=0.25,
        black_level=(512.0, 512.0, 512.0, 512.0),
        white_level=16383.0,
    )
    metadata = FileMetadata(original_name="a.dng", image=ImageMetadata(software=""))
    tiles = [TileRecord(0, 41, (b"\x01\x02\x03", b"\xaa"))]
    (tmp_path / "read.sgr").write_bytes(example())
    with SgrFile(tmp_path / "read.sgr") as file:
        assert asdict(file.header) == asdict(header)
        assert same_metadata(file.metadata, metadata)
        assert read_all(file) == tiles
    write_sgr(tmp_path / "written.sgr", header, metadata, tiles)
    assert (tmp_path / "written.sgr").read_bytes() == example()


def test_the_table_of_the_example_has_every_byte_of_it():
    rows = [line.split("|")[1:3] for line in FORMAT.split("```")[-1].splitlines() if line.startswith("| 0x")]
    data = b""
    for offset, digits in rows:
        assert int(offset, 16) == len(data)
        data += bytes.fromhex(digits.strip(" `"))
    assert data == example()


def read_by_the_document(data: bytes) -> tuple[dict[str, Any], dict[bytes, bytes], list[TileRecord]]:
    """A second reader, written from FORMAT.md alone."""
    assert data[:8] == bytes.fromhex("89 53 47 52 0d 0a 1a 0a")
    major, minor, length = struct.unpack_from("<BBH", data, 8)
    assert struct.unpack_from("<I", data, length - 4)[0] == zlib.crc32(data[: length - 4])
    end, tiles_offset, index_offset, width, height = struct.unpack_from("<QQQII", data, 12)
    layout, cfa, tile_log2, num_passes, quality, flags = data[44:50]
    numbers = struct.unpack_from("<ddd4dd", data, 74)
    facts = {
        "width": width,
        "height": height,
        "layout": ["mosaic", "rgb"][layout],
        "cfa": ["", "RGGB", "GRBG", "GBRG", "BGGR"][cfa],
        "tile": 2**tile_log2,
        "num_passes": num_passes,
        "model_digest": data[50:66],
        "quality": quality,
        "stabilizer": struct.unpack_from("<ff", data, 66),
        "noise": numbers[:2] if flags & 1 else None,
        "coder": ["rans", "constriction"][flags >> 1 & 3],
        "strength": numbers[2],
        "black_level": numbers[3:7],
        "white_level": numbers[7],
    }
    assert (major, minor) == (1, 0 if facts["coder"] == "rans" else 1)
    num_tiles = -(-height // 2**tile_log2) * -(-width // 2**tile_log2)
    assert end == len(data) == index_offset + num_tiles * (13 + 4 * num_passes) + 4
    at, blocks = length, {}
    while at < tiles_offset:
        kind, critical, size = struct.unpack_from("<4sBQ", data, at)
        assert critical == (kind in (b"META", b"CODR"))
        blocks[kind] = data[at + 13 : at + 13 + size]
        assert struct.unpack_from("<I", data, at + 13 + size)[0] == zlib.crc32(data[at : at + 13 + size])
        at += 17 + size
    assert at == tiles_offset
    assert blocks.get(b"CODR") == (None if facts["coder"] == "rans" else bytes([flags >> 1 & 3]))
    assert struct.unpack_from("<I", data, end - 4)[0] == zlib.crc32(data[index_offset:-4])
    tiles, used = [], 0
    for number in range(num_tiles):
        offset, *lengths, quality, crc = struct.unpack_from(
            f"<Q{num_passes}IBI", data, index_offset + number * (13 + 4 * num_passes)
        )
        assert data[offset : offset + 4] == b"\xa5TLE"
        assert struct.unpack_from("<IIB", data, offset + 4) == (crc, number, quality)
        at = offset + 13
        for length in lengths:
            found = shift = 0
            while True:
                found |= (data[at] & 127) << shift
                at, shift = at + 1, shift + 7
                if data[at - 1] < 128:
                    break
            assert found == length
        passes = []
        for length in lengths:
            passes.append(data[at : at + length])
            at += length
        assert zlib.crc32(data[offset + 8 : at]) == crc
        tiles.append(TileRecord(number, quality, tuple(passes)))
        used += at - offset
    assert used == index_offset - tiles_offset
    return facts, blocks, tiles


@pytest.mark.parametrize("header", [HEADER, OF_ANOTHER_CODER], ids=lambda header: header.coder)
def test_a_second_reader_written_from_the_document_reads_the_same(tmp_path: Path, header: StreamHeader):
    tiles = streams(HEADER, longest=300)
    write_sgr(tmp_path / "a.sgr", header, METADATA, tiles, thumbnail=b"small", blocks={"noTe": b"hello"})
    facts, blocks, read = read_by_the_document((tmp_path / "a.sgr").read_bytes())
    assert facts == asdict(header)
    assert blocks.keys() - {b"CODR"} == {b"META", b"THMB", b"noTe"}
    assert json.loads(zlib.decompress(blocks[b"META"])) == json.loads(json.dumps(METADATA.to_json()))
    assert read == by_index(tiles)


# --- versions and blocks ----------------------------------------------------------------------------------------------


def block(kind: bytes, payload: bytes, flags: int = 0) -> bytes:
    data = struct.pack("<4sBQ", kind, flags, len(payload)) + payload
    return data + struct.pack("<I", zlib.crc32(data))


META = block(b"META", zlib.compress(b"{}"), 1)


def forged(
    *,
    version: tuple[int, int] = (1, 0),
    longer_header: bytes = b"",
    blocks: list[bytes] | None = None,
    side: int = 10,
    cfa: int = 1,
    tile_log2: int = 6,
    num_passes: int = 1,
    flags: int = 0,
    index: Callable[[int, int], bytes] | None = None,
    shift: int = 0,
) -> bytes:
    """A file of one tile, whose checksums fit whatever it says."""
    joined = b"".join([META] if blocks is None else blocks)
    checked = struct.pack("<IBB", 0, 5, 3) + b"abc"
    crc = zlib.crc32(checked)
    record = b"\xa5TLE" + struct.pack("<I", crc) + checked
    length = HEADER_LENGTH + len(longer_header)
    at = length + len(joined)
    entry = index(at, crc) if index else struct.pack("<QIBI", at, 3, 5, crc)
    end = at + len(record) + len(entry) + 4
    header = b"\x89SGR\r\n\x1a\n" + struct.pack(
        "<BBHQQQII", *version, length, end, at + shift, at + len(record), side, side
    )
    header += bytes([0, cfa, tile_log2, num_passes, 30, flags]) + bytes(16) + struct.pack("<2f8d", *[0] * 9, 1)
    header += longer_header
    header += struct.pack("<I", zlib.crc32(header))
    return header + joined + record + entry + struct.pack("<I", zlib.crc32(entry))


@pytest.mark.parametrize("added", [b"", b"something", bytes(1000)], ids=len)
def test_a_newer_minor_version_is_read_and_what_is_new_in_it_skipped(tmp_path: Path, added: bytes):
    path = tmp_path / "newer.sgr"
    path.write_bytes(forged(version=(1, 7), longer_header=added, blocks=[block(b"NEWS", b"new"), META]))
    for salvage in (False, True):
        with SgrFile(path, salvage=salvage) as file:
            assert file.version == "1.7"
            assert file.read_tile(0) == TileRecord(0, 5, (b"abc",))
            assert file.block("NEWS") == b"new"
            assert file.sizes.total == path.stat().st_size
            assert file.faults == ()


@pytest.mark.parametrize("salvage", [False, True])
@pytest.mark.parametrize(
    ("data", "said"),
    [
        (forged(version=(2, 0)), "version 2.0, and this Stillgrain reads 1.x"),
        (forged(version=(0, 9)), "version 0.9"),
        (forged(blocks=[META, block(b"NEED", b"", 1)]), "NEED"),
        (forged(cfa=9), "CFA"),
        (forged(cfa=0), "CFA"),
        (forged(tile_log2=5), "tile"),
        (forged(tile_log2=255), "tile"),
        (forged(num_passes=0), "passes"),
        (forged(num_passes=2), "places its parts"),
        (forged(flags=4), "unknown coder"),
        (forged(version=(1, 7), flags=6, blocks=[META, block(b"CODR", b"\3", 1)]), "unknown coder"),
        (forged(side=0), "sides"),
        (forged(side=2**20), "area"),
        (forged(side=2**15), "places its parts"),  # 262,144 tiles in a file of 200 bytes
        (forged(shift=2**40), "places its parts"),
        (b"", "empty"),
        (b"\x89SG", "truncated"),
        (b"\x89PNG\r\n\x1a\n" + bytes(300), "is no .sgr"),
        (bytes(1000), "is no .sgr"),
        (forged()[:100], "truncated"),
        (forged().replace(b"\r\n", b"\n"), "text mode"),
    ],
    ids=range(21),
)
def test_what_cannot_be_understood_is_refused_in_words(tmp_path: Path, data: bytes, said: str, salvage: bool):
    path = tmp_path / "other.sgr"
    path.write_bytes(data)
    with pytest.raises(StreamFileError, match=said) as refused:
        SgrFile(path, salvage=salvage)
    assert refused.value.path == str(path)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (forged(blocks=[]), "no metadata"),
        (forged(blocks=[META, META]), "two blocks META"),
        (forged(flags=2), "no block CODR"),
        (forged(flags=2, blocks=[META, block(b"CODR", b"\2", 1)]), "not of its header's coder, constriction"),
        (forged(flags=2, blocks=[META, block(b"CODR", b"\1\1", 1)]), "not of its header's coder, constriction"),
        (forged(blocks=[META, block(b"CODR", b"\0", 1)]), "not of its header's coder, rans"),
        (forged(blocks=[META, b"x" * 16]), "among its blocks"),
        (forged(blocks=[META, struct.pack("<4sBQ", b"HUGE", 0, 2**63) + bytes(20)]), "damaged block"),
        (forged(blocks=[META, *[block(b"%4d" % i, b"") for i in range(64)]]), "among its blocks"),
        (forged(index=lambda at, crc: struct.pack("<QIBI", at + 1, 3, 5, crc)), "does not fit its tiles"),
        (forged(index=lambda at, crc: struct.pack("<QIBI", at, 4, 5, crc)), "does not fit its tiles"),
        (forged(index=lambda at, crc: struct.pack("<QIBI", 2**64 - 1, 3, 5, crc)), "does not fit its tiles"),
        (forged(index=lambda at, crc: struct.pack("<QIBI", at, 2**32 - 1, 5, crc)), "does not fit its tiles"),
    ],
    ids=range(13),
)
def test_what_is_inconsistent_is_refused_and_its_tile_salvaged(tmp_path: Path, data: bytes, said: str):
    path = tmp_path / "other.sgr"
    path.write_bytes(data)
    with pytest.raises(StreamFileError, match=said):
        SgrFile(path)
    with SgrFile(path, salvage=True) as file:
        assert said in file.faults[0]
        assert file.read_tile(0) == TileRecord(0, 5, (b"abc",))


def test_the_header_names_the_coder_and_what_readers_of_1_0_do_not_know_stops_them(tmp_path: Path):
    """They ignore flags that they do not know, and refuse a critical block."""
    for header, version in ((HEADER, "1.0"), (OF_ANOTHER_CODER, "1.1")):
        write_sgr(tmp_path / "a.sgr", header, FileMetadata(), TILES)
        size, data = (tmp_path / "a.sgr").stat().st_size, (tmp_path / "a.sgr").read_bytes()
        assert (block(b"CODR", b"\1", 1) in data) == (header.coder != "rans")
        with SgrFile(tmp_path / "a.sgr") as file:
            assert (file.header.coder, file.version, file.to_json()["coder"]) == (header.coder, version, header.coder)
            assert fixed_size(header) == size - file.sizes.metadata - sum(t[2] - t[1] for t in spans(file.path))
    (tmp_path / "a.sgr").write_bytes(data.replace(b"CODR", b"CODX"))
    with SgrFile(tmp_path / "a.sgr", salvage=True) as file:
        assert file.faults[-1] == "has no block CODR, which its coder needs"
        assert file.header.coder == "constriction"
        assert read_all(file) == by_index(TILES)


@pytest.mark.parametrize("crc_of_index", [True, False])
def test_an_index_that_contradicts_a_tile_is_damage_of_that_tile(tmp_path: Path, crc_of_index: bool):
    path = tmp_path / "other.sgr"
    path.write_bytes(forged(index=lambda at, crc: struct.pack("<QIBI", at, 3, 6, crc if crc_of_index else 0)))
    with SgrFile(path) as file, pytest.raises(DamagedTileError, match="tile 0"):
        file.read_tile(0)


@pytest.mark.parametrize(("path", "said"), [("missing.sgr", "does not exist"), (".", "directory")])
def test_what_is_no_file_is_said_to_be_none(tmp_path: Path, path: str, said: str):
    with pytest.raises(StreamFileError, match=said):
        SgrFile(tmp_path / path)


def test_a_tile_that_the_picture_does_not_have_is_the_callers_fault(sgr: Path):
    with SgrFile(sgr) as file:
        for index in (-1, 15):
            with pytest.raises(IndexError):
                file.read_tile(index)
            with pytest.raises(IndexError):
                file.tile_bounds(index)


def test_errors_cross_process_boundaries():
    error = pickle.loads(pickle.dumps(DamagedTileError("a.sgr", 3, "is damaged")))
    assert isinstance(error, DamagedTileError)
    assert (error.path, error.tile, error.reason) == ("a.sgr", 3, "tile 3 is damaged")
    assert str(error) == "a.sgr: tile 3 is damaged"


# --- damage -----------------------------------------------------------------------------------------------------------


def test_a_truncated_file_says_how_much_is_missing_and_keeps_its_first_tiles(sgr: Path):
    data = sgr.read_bytes()
    with SgrFile(sgr) as file:
        ends = {}
        for tile in range(HEADER.num_tiles):
            entry = container._entry(file._entries[tile])
            head = len(container._checked_head(tile, entry.quality, entry.lengths))
            ends[tile] = entry.offset + 8 + head + sum(entry.lengths)
    for length in range(HEADER_LENGTH, len(data), 31):
        sgr.write_bytes(data[:length])
        with pytest.raises(StreamFileError, match=f"truncated: {len(data) - length} of its {len(data)} bytes"):
            SgrFile(sgr)
        with SgrFile(sgr, salvage=True) as file:
            lost = file.damaged_tiles()
            assert lost == [tile for tile, end in ends.items() if end > length]
            assert [file.read_tile(t) for t in ends if t not in lost] == [
                t for t in by_index(TILES) if t.index not in lost
            ]
            assert file.sizes.total == length


def spans(path: Path | UPath) -> list[tuple[int, int, int]]:
    """Tile, beginning and end of each record."""
    with SgrFile(path) as file:
        offsets = sorted((int(entry["offset"]), tile) for tile, entry in enumerate(file._entries))
    end = int.from_bytes(path.read_bytes()[28:36], "little")
    return [(tile, at, after) for (at, tile), after in zip(offsets, [o for o, _ in offsets[1:]] + [end], strict=True)]


@pytest.mark.parametrize("coder", CODERS)
def test_no_change_of_a_byte_goes_unnoticed(tmp_path: Path, coder: coders.CoderName):
    """Every byte of a small file. In a tile it is this tile that is named, and the others are read."""
    path = UPath(f"memory:/{tmp_path}") / "small.sgr"
    header = replace(HEADER, width=130, height=64, coder=coder)
    tiles = by_index(streams(header, longest=20))
    write_sgr(path, header, METADATA, tiles, thumbnail=b"jpeg", blocks={"noTe": b"hello"})
    data, of_tiles = path.read_bytes(), spans(path)
    for at in range(len(data)):
        of = next((tile for tile, start, end in of_tiles if start <= at < end), None)
        for change in (1 << at % 8, 255):
            path.write_bytes(data[:at] + bytes([data[at] ^ change]) + data[at + 1 :])
            if of is None:
                with pytest.raises(StreamFileError):
                    SgrFile(path)
            else:
                with SgrFile(path) as file:
                    with pytest.raises(DamagedTileError) as named:
                        file.read_tile(of)
                    assert named.value.tile == of
                    assert [file.read_tile(t.index) for t in tiles if t.index != of] == [
                        t for t in tiles if t.index != of
                    ]
        with SgrFile(path, salvage=True) as file:
            # A record's sync bytes and checksum are not needed where the index is whole.
            start = next((start for tile, start, _ in of_tiles if tile == of), 0)
            assert file.damaged_tiles() == ([] if of is None or at - start < 8 else [of])
            assert asdict(file.header) == asdict(header)


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """One of the accidents that files have."""
    at = int(rng.integers(len(data)))
    length = int(rng.integers(1, rng.choice([4, 40, len(data)])))
    match rng.integers(6):
        case 0:
            return data[:at] + bytes([data[at] ^ 1 << rng.integers(8)]) + data[at + 1 :]
        case 1:
            return data[:at]
        case 2:
            return data[:at] + data[at + length :]
        case 3:
            return data[:at] + rng.bytes(length) + data[at:]
        case 4:
            return data[:at] + data[at : at + length] + data[at:]
        case _:
            return data[:at] + bytes(len(data[at : at + length])) + data[at + length :]


def whole_tiles(file: SgrFile) -> dict[int, TileRecord]:
    """Those that are read; each of the others is refused by its number."""
    tiles = {}
    for index in range(file.header.num_tiles):
        try:
            tiles[index] = file.read_tile(index)
        except DamagedTileError as error:
            assert error.tile == index  # noqa: PT017
    return tiles


def test_two_thousand_damaged_files_are_refused_and_give_only_tiles_that_are_whole(tmp_path: Path):
    path = UPath(f"memory:/{tmp_path}") / "photo.sgr"  # disks are slow
    header = replace(HEADER, width=250, height=100)
    wanted = {tile.index: tile for tile in streams(header)}
    write_sgr(path, header, METADATA, wanted.values(), thumbnail=bytes(range(50)), blocks={"noTe": b"hello"})
    data, of_tiles = path.read_bytes(), spans(path)
    with SgrFile(path) as file:
        said = fields_of(file)
    rng = np.random.default_rng(0)
    changed = detected = named = salvaged = 0
    tracemalloc.start()
    for _ in range(2000):
        damaged = mutated(data, rng)
        if damaged == data:
            continue
        changed += 1
        path.write_bytes(damaged)
        lost: set[int] = set()
        try:
            with SgrFile(path) as file:
                whole = whole_tiles(file)
                assert fields_of(file) == said
            assert whole.items() <= wanted.items()
            lost = wanted.keys() - whole.keys()
            detected += bool(lost)
        except StreamFileError:
            detected += 1
        # Nothing but the bytes of one tile are others: the file opens as ever, and this one is named.
        if len(damaged) == len(data):
            others = np.flatnonzero(np.frombuffer(damaged, np.uint8) != np.frombuffer(data, np.uint8))
            of = {tile for tile, start, end in of_tiles if start <= others[0] and others[-1] < end}
            assert lost == of or not of
            named += bool(of)
        try:
            with SgrFile(path, salvage=True) as file:
                whole = whole_tiles(file)
            assert whole.items() <= wanted.items()
            salvaged += len(whole)
        except StreamFileError:
            pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert changed > 1900
    assert detected >= 0.999 * changed
    assert named > 100
    assert salvaged > 0.6 * changed * len(wanted)
    assert peak < 1_000_000


@pytest.mark.parametrize("what", ["cut", "inserted", "duplicated"])
def test_tiles_that_moved_are_found_again(sgr: Path, what: str):
    data, of_tiles, wanted = sgr.read_bytes(), spans(sgr), by_index(TILES)
    for hurt, start, end in of_tiles:
        middle = (start + end) // 2
        moved = {
            "cut": data[:middle] + data[middle + 1 :],
            "inserted": data[:middle] + b"\0" + data[middle:],
            "duplicated": data[:end] + data[start:end] + data[end:],
        }[what]
        sgr.write_bytes(moved)
        with pytest.raises(StreamFileError, match=r"bytes"):
            SgrFile(sgr)
        with SgrFile(sgr, salvage=True) as file:
            assert file.damaged_tiles() == ([] if what == "duplicated" else [hurt])
            assert all(file.read_tile(t.index) == t for t in wanted if t.index not in file.damaged_tiles())


def test_tiles_that_moved_into_the_place_of_blocks_are_found(sgr: Path):
    data = sgr.read_bytes()
    sgr.write_bytes(data[: HEADER_LENGTH + 5] + data[HEADER_LENGTH + 150 :])
    with SgrFile(sgr, salvage=True) as file:
        assert read_all(file) == by_index(TILES)
        assert same_metadata(file.metadata, FileMetadata())


def test_a_tile_in_a_block_is_not_taken_for_one_of_the_picture(tmp_path: Path):
    path, inner = tmp_path / "outer.sgr", tmp_path / "inner.sgr"
    write_sgr(inner, HEADER, METADATA, streams(HEADER, seed=1))
    write_sgr(path, HEADER, METADATA, TILES, blocks={"prev": inner.read_bytes()})
    with SgrFile(path, salvage=True) as file:
        assert read_all(file) == by_index(TILES)


@pytest.mark.parametrize("longest", [10, 2_000_000])
def test_salvage_finds_tiles_wherever_the_windows_of_its_scan_end(
    tmp_path: Path, longest: int, monkeypatch: pytest.MonkeyPatch
):
    header = replace(HEADER, width=4 * 64, height=64)
    tiles = by_index(streams(header, longest=longest, seed=2))
    path = tmp_path / "a.sgr"
    write_sgr(path, header, METADATA, tiles)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    for chunk in range(5, 40) if longest == 10 else [2**20]:
        monkeypatch.setattr(container, "_CHUNK", chunk)
        with SgrFile(path, salvage=True) as file:
            assert read_all(file) == tiles
            assert file.faults == ("has a damaged index",)


def test_a_file_that_is_all_false_tiles_is_given_up(tmp_path: Path):
    """Each of 40,000 heads claims the rest of the file: 8 GB of checksums, were they all made."""
    path = tmp_path / "forged.sgr"
    false = b"\xa5TLE" + struct.pack("<IIB", 0, 0, 5) + b"\xff\xff\x0f"
    path.write_bytes(forged()[:-1] + (false * 40_000) + bytes(262_143))
    with SgrFile(path, salvage=True) as file:
        assert file.faults[-1] == "holds too much that looks like tiles and is none"
        assert file.read_tile(0) == TileRecord(0, 5, (b"abc",))
