from __future__ import annotations

import struct

from library.files.exif import MAKE, MODEL, read_tags, whitelisted
from library.files.metadata import ImageMetadata, metadata_tags
from library.files.tiff import Tag, TagType, tiff_header

METADATA = ImageMetadata(make="Canon", model="Canon EOS R5", exif={"LensModel": "RF 50mm", "Flash": 16})


def test_values_written_are_the_values_read():
    tags = read_tags(tiff_header(*metadata_tags(METADATA)))
    assert (tags[MAKE], tags[MODEL]) == ("Canon", "Canon EOS R5")
    assert whitelisted(tags) == METADATA.exif


def test_a_cr3_keeps_its_two_directories_in_boxes():
    ifd0, exif = metadata_tags(METADATA)
    boxes = b"".join(
        struct.pack(">I", len(block) + 8) + kind + block
        for kind, block in ((b"CMT1", tiff_header(ifd0)), (b"CMT2", tiff_header(exif)))
    )
    tags = read_tags(b"\0\0\0\x18ftypcrx \0\0\0\1crx isom" + boxes)
    assert tags[MODEL] == "Canon EOS R5"
    assert whitelisted(tags) == METADATA.exif


def test_a_raf_keeps_them_in_its_preview():
    block = b"Exif\0\0" + tiff_header(*metadata_tags(METADATA))
    jpeg = b"\xff\xd8\xff\xe1" + struct.pack(">H", len(block) + 2) + block + b"\xff\xd9"
    data = b"FUJIFILMCCD-RAW ".ljust(84, b"\0") + struct.pack(">II", 148, len(jpeg))
    assert read_tags(data.ljust(148, b"\0") + jpeg)[MODEL] == "Canon EOS R5"


def test_a_fraction_over_zero_is_zero():
    tag = Tag(42034, TagType.RATIONAL, [24, 105, 0, 0])
    header = tiff_header([], [tag]).replace(struct.pack("<II", 0, 1), struct.pack("<II", 0, 0))
    assert whitelisted(read_tags(header)) == {"LensSpecification": [24.0, 105.0, 0.0, 0.0]}


def test_a_value_of_a_type_that_cannot_be_written_again_is_left_out():
    odd = [
        Tag(37385, TagType.RATIONAL, 16.5),  # Flash
        Tag(41989, TagType.LONG, 70_000),  # FocalLengthIn35mmFilm
        Tag(37381, TagType.SRATIONAL, -2.5),  # MaxApertureValue
        Tag(37380, TagType.ASCII, "-1/3"),  # ExposureBiasValue
        Tag(42036, TagType.SHORT, 7),  # LensModel
        Tag(37383, TagType.LONG, 5),  # MeteringMode
    ]
    values = whitelisted(read_tags(tiff_header([], odd)))
    assert values == {"MeteringMode": 5}
    assert whitelisted(read_tags(tiff_header(*metadata_tags(ImageMetadata(exif=values))))) == values
