from __future__ import annotations

import io
import os
import struct
import sys
import tempfile
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from weakseg.data.findings import Report
from weakseg.data.images import (
    IMAGE_SUFFIXES,
    MAX_ID,
    IndexMask,
    conversions,
    find_files,
    image_size,
    match_name,
    overlay,
    read_bytes,
    read_image,
    read_label_map,
    read_superpixels,
    write_image,
    write_label_map,
    write_superpixels,
)
from weakseg.errors import WeaksegError
from weakseg.labels import BACKGROUND, UNLABELLED, VOID, Classes, palette

Save = Callable[..., Path]


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG of any bit depth, whose rows are given as they are stored."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


# Images


@pytest.mark.parametrize("suffix", [suffix for suffix in IMAGE_SUFFIXES if suffix not in (".heic", ".heif")])
def test_every_listed_suffix_is_read_as_rgb(tmp_path: Path, save_image: Save, suffix: str) -> None:
    path = save_image(tmp_path / f"x{suffix}", (5, 9))
    image = read_image(path)
    assert image.shape == (5, 9, 3)
    assert image.dtype == np.uint8
    assert image.flags.writeable
    assert image_size(path) == (5, 9)


def test_a_written_image_comes_back(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (4, 7, 3), dtype=np.uint8)
    write_image(tmp_path / "new" / "x.png", pixels)
    np.testing.assert_array_equal(read_image(tmp_path / "new" / "x.png"), pixels)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".ppm"])
def test_lossless_pixels_come_back(tmp_path: Path, suffix: str) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (4, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"x{suffix}")
    np.testing.assert_array_equal(read_image(tmp_path / f"x{suffix}"), pixels)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_the_image_upright(tmp_path: Path, suffix: str, orientation: int) -> None:
    # A bright top left quarter; what a viewer must show for each orientation, by the EXIF standard (4.6.4 A).
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:8, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"x{suffix}"
    Image.fromarray(stored).save(path, exif=exif, **({"quality": 95} if suffix in (".jpg", ".webp") else {}))
    bright_corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    image = read_image(path)
    assert image.shape[:2] == ((16, 32) if orientation <= 4 else (32, 16))
    assert image_size(path) == image.shape[:2]
    corners = {(row, column): int(image[row, column, 0]) for row in (0, -1) for column in (0, -1)}
    assert max(corners, key=corners.__getitem__) == bright_corner[orientation]
    assert sum(value > 128 for value in corners.values()) == 1
    if suffix != ".tif":
        assert ("EXIF rotation" in conversions(path)) == (orientation > 1)


def test_grey_is_repeated(tmp_path: Path) -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    Image.fromarray(grey).save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_image(tmp_path / "x.png"), np.repeat(grey[..., None], 3, 2))
    assert conversions(tmp_path / "x.png") == ["greyscale"]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 257, 65535], [128 * 257, 30000, 128]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"x{suffix}")
    assert read_image(tmp_path / f"x{suffix}")[..., 1].tolist() == [[0, 1, 255], [128, 117, 0]]
    assert conversions(tmp_path / f"x{suffix}") == ["greyscale", "16 bits"]


def test_sixteen_bit_colour_is_read_and_noted(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(png(1, 1, 16, 2, b"\0" + struct.pack(">HHH", 0x1234, 0x5678, 0x9ABC)))
    assert read_image(path).tolist() == [[[0x12, 0x56, 0x9A]]]
    assert conversions(path) == ["16 bits"]


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    pixels = np.array([[[10, 20, 30, 0], [10, 20, 30, 255], [0, 0, 0, 51]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png").tolist() == [[[255, 255, 255], [10, 20, 30], [204, 204, 204]]]
    assert conversions(tmp_path / "x.png") == ["transparency (laid over white)"]


def test_transparent_palette_and_grey(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8))
    image.save(tmp_path / "grey.png", transparency=1)
    assert read_image(tmp_path / "grey.png").tolist() == [[[0, 0, 0], [255, 255, 255]]]
    indexed = Image.frombytes("P", (2, 1), b"\0\1")
    indexed.putpalette([9, 8, 7, 6, 5, 4])
    indexed.save(tmp_path / "palette.png", transparency=0)
    assert read_image(tmp_path / "palette.png").tolist() == [[[255, 255, 255], [6, 5, 4]]]
    assert conversions(tmp_path / "palette.png") == ["a palette", "transparency (laid over white)"]


def test_cmyk_is_converted(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "x.jpg", quality=95)
    red, green, blue = read_image(tmp_path / "x.jpg")[4, 4].tolist()
    assert red > 240
    assert green < 15
    assert blue < 15
    assert conversions(tmp_path / "x.jpg") == ["CMYK"]


def test_of_several_frames_the_first_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (3, 3), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "x.gif")[0, 0].tolist() == [255, 0, 0]
    assert "several frames (the first is taken)" in conversions(tmp_path / "x.gif")


def orientation_texts(value: int) -> PngInfo:
    """Metadata of a PNG as ImageMagick writes EXIF data, and as XMP."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = value
    info = PngInfo()
    info.add_text("Raw profile type exif", f"\nexif\n{len(exif.tobytes())}\n{exif.tobytes().hex()}\n", zip=True)
    return info


@pytest.mark.parametrize("kind", ["at the end", "profile", "XMP"])
def test_the_orientation_of_a_png_wherever_it_stands(tmp_path: Path, save_image: Save, kind: str) -> None:
    upright = read_image(save_image(tmp_path / "x.png"))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    if kind == "at the end":
        data = (tmp_path / "x.png").read_bytes()
        chunk = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
        chunk = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        (tmp_path / "x.png").write_bytes(data[:-12] + chunk + data[-12:])
    else:
        info = orientation_texts(3)
        if kind == "XMP":
            info = PngInfo()
            info.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="3"/>', zip=True)
        save_image(tmp_path / "x.png", pnginfo=info)
    np.testing.assert_array_equal(read_image(tmp_path / "x.png"), upright[::-1, ::-1])
    assert image_size(tmp_path / "x.png") == (6, 8)


ASCII, SHORT, LONG, UNDEFINED, FLOAT = 2, 3, 4, 7, 11


def exif_of(kind: int, count: int, value: bytes) -> bytes:
    """EXIF data that hold only an orientation, of any type; `value` are the four bytes that are stored."""
    return b"Exif\0\0II*\0\x08\0\0\0\1\0" + struct.pack("<HHI", 0x0112, kind, count) + value + bytes(4)


@pytest.mark.parametrize(
    ("kind", "count", "value"),
    [
        (SHORT, 1, b"\6\0\0\0"),
        (SHORT, 2, b"\6\0\1\0"),
        (LONG, 1, b"\6\0\0\0"),
        (ASCII, 2, b"6\0\0\0"),
        (UNDEFINED, 1, b"\6\0\0\0"),
        (FLOAT, 1, struct.pack("<f", 6)),
    ],
)
def test_the_orientation_of_whatever_type(
    tmp_path: Path, save_image: Save, kind: int, count: int, value: bytes
) -> None:
    path = save_image(tmp_path / "x.jpg", exif=exif_of(kind, count, value))
    assert read_image(path).shape == (8, 6, 3)
    assert image_size(path) == (8, 6)


@pytest.mark.parametrize(
    ("kind", "count", "value"),
    [(SHORT, 1, b"\x63\0\0\0"), (ASCII, 4, b"up \0"), (FLOAT, 1, struct.pack("<f", np.nan)), (SHORT, 0, bytes(4))],
)
def test_an_orientation_without_sense_is_none(
    tmp_path: Path, save_image: Save, kind: int, count: int, value: bytes
) -> None:
    assert read_image(save_image(tmp_path / "x.jpg", exif=exif_of(kind, count, value))).shape == (6, 8, 3)


def test_damaged_exif_data_are_ignored(tmp_path: Path, save_image: Save) -> None:
    expected = read_image(save_image(tmp_path / "x.jpg"))
    save_image(tmp_path / "y.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xffrubbish")
    np.testing.assert_array_equal(read_image(tmp_path / "y.jpg"), expected)


def test_large_texts_and_profiles_of_a_png_are_ignored(tmp_path: Path, save_image: Save) -> None:
    expected = read_image(save_image(tmp_path / "x.png"))
    info = PngInfo()
    for keyword in ("Comment", "XML:com.adobe.xmp", "Raw profile type exif"):
        info.add_text(keyword, "a" * 3_000_000, zip=True)
        info.add_itxt(keyword, "a" * 3_000_000, zip=True)
    path = save_image(tmp_path / "y.png", pnginfo=info, icc_profile=bytes(3_000_000))
    np.testing.assert_array_equal(read_image(path), expected)
    assert image_size(path) == (6, 8)
    assert conversions(path) == []


@pytest.mark.parametrize("highest", [1, 255, 4095])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_twelve_bits_in_sixteen_are_refused(tmp_path: Path, highest: int, suffix: str) -> None:
    Image.fromarray(np.full((3, 4), highest, np.uint16)).save(tmp_path / f"x{suffix}")
    with pytest.raises(WeaksegError, match=rf"x\{suffix} cannot be used: its 16 bits hold values of at most 12"):
        read_image(tmp_path / f"x{suffix}")


def test_colours_of_twelve_bits_in_sixteen_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png(1, 1, 16, 2, b"\0" + bytes([15, 255] * 3)))
    with pytest.raises(WeaksegError, match="of at most 12 bits"):
        read_image(tmp_path / "x.png")
    (tmp_path / "x.png").write_bytes(png(1, 1, 16, 2, b"\0" + bytes([16, 0] * 3)))
    assert read_image(tmp_path / "x.png").tolist() == [[[16, 16, 16]]]


def test_black_of_sixteen_bits_is_black(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((3, 4), np.uint16)).save(tmp_path / "x.png")
    assert not read_image(tmp_path / "x.png").any()


def test_an_ordinary_photograph_needs_no_conversion(tmp_path: Path, save_image: Save) -> None:
    assert conversions(save_image(tmp_path / "x.jpg")) == []


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_truncated_image_is_an_error_that_names_it(tmp_path: Path, save_image: Save, suffix: str) -> None:
    path = save_image(tmp_path / f"broken{suffix}", (64, 64))
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(
        WeaksegError, match=rf"broken\{suffix} cannot be decoded: the file is cut off. Replace or remove it"
    ):
        read_image(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_what_is_no_image_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.jpg").write_bytes(content)
    for read in (read_image, image_size, conversions):
        with pytest.raises(WeaksegError, match=r"x\.jpg is not a readable JPEG / PNG / .* Convert or remove it"):
            read(tmp_path / "x.jpg")


def test_a_missing_image_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WeaksegError, match=r"x\.jpg does not exist"):
        read_image(tmp_path / "x.jpg")


@pytest.mark.parametrize("side", [12000, 20000, 60000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_giant_is_refused_before_it_is_decoded(tmp_path: Path, side: int) -> None:
    # There are no pixels in the file: only its header can have been read.
    (tmp_path / "bomb.png").write_bytes(png(side, side, 8, 0, b""))
    for read in (read_image, image_size, read_label_map):
        with pytest.raises(WeaksegError, match=r"bomb\.png has more than 128 megapixels\. Scale it down"):
            read(tmp_path / "bomb.png")


def test_values_that_are_no_colours_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((2, 2), 0.5, np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(np.full((2, 2), 10**6, np.int32)).save(tmp_path / "wide.tif")
    with pytest.raises(WeaksegError, match=r"float\.tif .*floating-point values; save it with 8 bits"):
        read_image(tmp_path / "float.tif")
    with pytest.raises(WeaksegError, match=r"wide\.tif .*do not fit 16 bits"):
        read_image(tmp_path / "wide.tif")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_damage_never_gives_another_exception(tmp_path: Path, data: st.DataObject) -> None:
    suffix = data.draw(st.sampled_from([".jpg", ".png", ".gif", ".tif", ".webp"]))
    memory = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 10), "green").save(memory, format=Image.registered_extensions()[suffix], exif=exif)
    content = bytearray(memory.getvalue())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    try:
        assert read_image(path).shape[2] == 3
        image_size(path)
        conversions(path)
    except WeaksegError as error:
        assert str(path) in str(error)


# Masks


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(labels=arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=9)))
def test_label_maps_come_back(tmp_path: Path, labels: np.ndarray) -> None:
    path = tmp_path / "new folder" / "x.png"
    write_label_map(path, labels)
    first = path.read_bytes()
    np.testing.assert_array_equal(read_label_map(path), labels)
    write_label_map(path, labels)
    assert path.read_bytes() == first
    assert [file.name for file in path.parent.iterdir()] == ["x.png"]


def test_label_maps_are_written_in_voc_colours(tmp_path: Path) -> None:
    write_label_map(tmp_path / "x.png", np.array([[0, 1, 15, 255]], np.uint8))
    with Image.open(tmp_path / "x.png") as image:
        assert image.mode == "P"
        assert np.asarray(image.convert("RGB")).tolist() == [[[0, 0, 0], [128, 0, 0], [192, 128, 128], [224, 224, 192]]]


def test_only_label_maps_are_written(tmp_path: Path) -> None:
    for wrong in (np.zeros((2, 2), np.int64), np.zeros((2, 2, 3), np.uint8)):
        with pytest.raises(ValueError, match="a label map is uint8"):
            write_label_map(tmp_path / "x.png", wrong)
    assert list(tmp_path.iterdir()) == []


def test_palette_and_grey_masks_keep_their_values(tmp_path: Path, save_mask: Save) -> None:
    values = np.array([[0, 3], [200, 255]], np.uint8)
    for mode in ("P", "L"):
        np.testing.assert_array_equal(read_label_map(save_mask(tmp_path / f"{mode}.png", values, mode)), values)


def test_a_palette_of_few_bits_keeps_its_values(tmp_path: Path) -> None:
    image = Image.frombytes("P", (3, 1), b"\0\1\2")
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    image.save(tmp_path / "x.png", bits=2)
    assert read_label_map(tmp_path / "x.png").tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "1"])
def test_other_png_files_are_no_label_map(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (4, 4)).save(tmp_path / "x.png")
    with pytest.raises(
        WeaksegError, match=r"x\.png is no label map.*palette .* greyscale PNG of 8 or 16 bits.*Save it again"
    ):
        read_label_map(tmp_path / "x.png")


@given(arrays(np.uint16, array_shapes(min_dims=2, max_dims=2, max_side=6)))
def test_deep_label_maps_come_back_as_they_were(labels: npt.NDArray[np.uint16]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.png"
        write_label_map(path, labels, deep=True)
        assert np.array_equal(read_label_map(path), labels)


def test_classes_of_deep_files_are_numbered_without_a_gap(tmp_path: Path) -> None:
    classes = Classes([f"c{place}" for place in range(300)])
    labels = np.array([[BACKGROUND, *classes.labels, UNLABELLED, VOID]], np.uint16)
    write_label_map(tmp_path / "x.png", labels, deep=True)
    with Image.open(tmp_path / "x.png") as picture:
        assert np.array(picture).tolist() == [[*range(301), 65534, 65535]]
    values = {**classes.own_values(), 65534: UNLABELLED}
    assert np.array_equal(IndexMask(tmp_path / "x.png", values).read(), labels)


def test_masks_of_16_bits_with_few_classes_are_read(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 1, 65535]], np.uint16)).save(tmp_path / "x.png")
    assert IndexMask(tmp_path / "x.png", Classes(["cat"]).own_values()).read().tolist() == [[0, 1, VOID]]


def test_known_values_of_many_classes_are_told_as_ranges(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 400]], np.uint16)).save(tmp_path / "x.png")
    values = Classes([f"c{place}" for place in range(300)]).own_values()
    with pytest.raises(WeaksegError, match=r"400 \(1 pixels\)\. Known values: 0 … 300, 65535\."):
        IndexMask(tmp_path / "x.png", values).read()


def test_saliency_and_regions_have_8_bits(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 400]], np.uint16)).save(tmp_path / "x.png")
    with pytest.raises(WeaksegError, match=r"x\.png is no label map.*8-bit"):
        read_bytes(tmp_path / "x.png")


def test_grey_of_few_bits_is_refused_because_decoding_changes_its_values(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png(2, 1, 4, 0, b"\0\x12"))
    with pytest.raises(WeaksegError, match=r"no label map: its pixels are of kind L;4"):
        read_label_map(tmp_path / "x.png")


def test_a_jpeg_is_no_label_map(tmp_path: Path, save_image: Save) -> None:
    with pytest.raises(WeaksegError, match=r"x\.jpg is not a readable PNG file"):
        read_label_map(save_image(tmp_path / "x.jpg", mode="L"))


def test_index_mask_translates_values_with_gaps(tmp_path: Path, save_mask: Save) -> None:
    path = save_mask(tmp_path / "x.png", [[0, 8, 255], [12, 8, 0]])
    assert IndexMask(path, {0: 0, 8: 1, 12: 2, 255: VOID}).read().tolist() == [[0, 1, 255], [2, 1, 0]]


def test_index_mask_names_unknown_values_with_their_counts(tmp_path: Path, save_mask: Save) -> None:
    path = save_mask(tmp_path / "x.png", [[0, 9, 9], [12, 13, 0]])
    with pytest.raises(
        WeaksegError, match=r"x\.png .*no class: 9 \(2 pixels\), 13 \(1 pixels\)\. Known values: 0, 12\."
    ):
        IndexMask(path, {0: 0, 12: 2}).read()


def test_index_mask_fingerprint_follows_the_file(tmp_path: Path, save_mask: Save) -> None:
    mask = IndexMask(save_mask(tmp_path / "x.png", [[0, 1]]), {0: 0, 1: 1})
    before = mask.fingerprint()
    assert mask.fingerprint() == before
    save_mask(tmp_path / "x.png", np.eye(9))
    assert mask.fingerprint() != before
    (tmp_path / "x.png").unlink()
    with pytest.raises(WeaksegError, match=r"x\.png cannot be read"):
        mask.fingerprint()


@given(alpha=st.floats(0, 1), seed=st.integers(0, 99))
def test_overlay_leaves_the_background_and_mixes_the_rest(alpha: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
    labels = rng.choice(np.array([0, 1, 7, 255], np.uint8), (3, 4))
    shown = overlay(image, labels, alpha)
    colours = np.array(palette()).reshape(256, 3)
    assert shown.dtype == np.uint8
    np.testing.assert_array_equal(shown[labels == 0], image[labels == 0])
    expected = (1 - alpha) * image + alpha * colours[labels]
    assert np.abs(shown - expected)[labels != 0].max(initial=0) <= 0.51


# Superpixels


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arrays(np.int32, array_shapes(min_dims=2, max_dims=2), elements=st.integers(0, MAX_ID)))
def test_written_superpixels_come_back(tmp_path: Path, ids: np.ndarray) -> None:
    write_superpixels(tmp_path / "x.png", ids)
    found = read_superpixels(tmp_path / "x.png")
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, ids)


def test_the_low_byte_of_an_id_is_blue(tmp_path: Path) -> None:
    write_superpixels(tmp_path / "x.png", np.array([[5 + 256 * 7 + 65536 * 9]], np.int32))
    assert read_image(tmp_path / "x.png").tolist() == [[[9, 7, 5]]]


@pytest.mark.parametrize("wrong", [-1, MAX_ID + 1])
def test_ids_that_do_not_fit_are_not_written(tmp_path: Path, wrong: int) -> None:
    with pytest.raises(ValueError, match=str(wrong)):
        write_superpixels(tmp_path / "x.png", np.array([[0, wrong]], np.int32))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "I;16"])
def test_other_png_files_are_no_superpixels(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (4, 4)).save(tmp_path / "x.png")
    with pytest.raises(WeaksegError, match=r"x\.png is no map of superpixels"):
        read_superpixels(tmp_path / "x.png")


def test_colours_of_16_bits_are_no_superpixels(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png(1, 1, 16, 2, b"\0" + bytes(6)))
    with pytest.raises(WeaksegError, match=r"x\.png is no map of superpixels"):
        read_superpixels(tmp_path / "x.png")


# Finding files


def test_files_are_named_by_their_path_without_suffix(tmp_path: Path) -> None:
    for name in (
        "b.JPG",
        "a b.png",
        "sub/deeper/猫.webp",
        "x.y.jpg",
        "notes.txt",
        ".hidden.jpg",
        ".git/z.jpg",
        "._b.jpg",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    report = Report()
    found = find_files(tmp_path, IMAGE_SUFFIXES, report)
    assert found == {
        "a b": tmp_path / "a b.png",
        "b": tmp_path / "b.JPG",
        "x.y": tmp_path / "x.y.jpg",
        "sub/deeper/猫": tmp_path / "sub/deeper/猫.webp",
    }
    assert report.problems == []


def test_a_missing_folder_is_empty(tmp_path: Path) -> None:
    assert find_files(tmp_path / "none", IMAGE_SUFFIXES, Report()) == {}


def test_one_name_with_two_suffixes_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    (tmp_path / "a.png").touch()
    report = Report()
    assert find_files(tmp_path, IMAGE_SUFFIXES, report) == {"a": tmp_path / "a.jpg"}
    assert report.problems == [f'{tmp_path / "a.png"} and a.jpg have the same name "a". Rename one of them.']


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has no such names")
def test_a_name_that_is_not_utf8_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / os.fsdecode(b"caf\xe9.png")).touch()
    report = Report()
    assert list(find_files(tmp_path, IMAGE_SUFFIXES, report)) == ["a"]
    [problem] = report.problems
    assert "is not UTF-8" in problem


def test_links_to_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "loop").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(WeaksegError, match="loop is a link to a folder"):
        find_files(tmp_path / "images", IMAGE_SUFFIXES, Report())


def test_composed_and_decomposed_names_are_the_same_name(tmp_path: Path) -> None:
    typed = unicodedata.normalize("NFC", "Bär/é")
    stored = unicodedata.normalize("NFD", typed)
    assert typed != stored
    (tmp_path / stored).parent.mkdir()
    (tmp_path / f"{stored}.jpg").touch()
    found = find_files(tmp_path, IMAGE_SUFFIXES, Report())
    assert found == {typed: tmp_path / f"{stored}.jpg"}
    assert match_name(f"{stored}.jpg", found) == match_name(f"{typed}.jpg", found) == match_name(typed, found) == typed


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("a", "a"),
        ("a.jpg", "a"),
        (" a.JPG ", "a"),
        ("./a.jpg", "a"),
        ("sub\\b.png", "sub/b"),
        ("x.jpg", "x.jpg"),
        ("x.jpg.png", "x.jpg"),
        ("a.5", None),
        ("b.png", None),
        ("../a.jpg", "a"),
        ("../../media/upload/4/sub/b.png", "sub/b"),
        ("/a.jpg", "a"),
        ("C:\\photos\\a.jpg", "a"),
        ("sub/c.jpg", None),
        ("", None),
        (".jpg", None),
    ],
)
def test_a_reference_means_a_listed_file_or_nothing(reference: str, name: str | None) -> None:
    assert match_name(reference, {key: Path(key) for key in ("a", "sub/b", "x.jpg")}) == name
