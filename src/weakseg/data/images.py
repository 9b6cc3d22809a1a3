"""Image and mask files: finding them, decoding them to the two array contracts, writing label maps."""

from __future__ import annotations

import io
import os
import unicodedata
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from weakseg.data.findings import Report
from weakseg.errors import WeaksegError, explain, out_of_memory
from weakseg.files import atomic_path
from weakseg.labels import BACKGROUND, UNLABELLED, VOID, VOID_OF_16_BITS, palette

MAX_PIXELS = 128_000_000
# Pillow warns of fewer by itself.
Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, MAX_PIXELS)
_JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")
_HEIC_SUFFIXES = (".heic", ".heif")
IMAGE_SUFFIXES = (
    *_JPEG_SUFFIXES,
    ".png",
    ".webp",
    ".avif",
    ".bmp",
    ".tif",
    ".tiff",
    ".gif",
    ".ppm",
    ".pgm",
    *_HEIC_SUFFIXES,
)
# Pillow also opens formats that start other programs (EPS); a picture from a stranger gets these decoders only.
_DECODERS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "TIFF", "GIF", "PPM")
_SYSTEM_FILES = ("thumbs.db", "desktop.ini")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_SIDES = (5, 6, 7, 8)

MAX_ID = (1 << 24) - 1
"""The largest id of a superpixel that three bytes hold."""

LabelMap = npt.NDArray[Any]
"""(H, W), uint8 or uint16."""


# Finding files


def find_files(
    folder: Path, suffixes: Collection[str], report: Report, *, note_others: bool = False
) -> dict[str, Path]:
    """The files under `folder`, at any depth, by name: the relative path without suffix, `/` between folders,
    Unicode in composed form (NFC), which is how people type what a Mac stores decomposed.

    Only what this listing holds is ever opened, so a name in a label file cannot lead out of the folder. Hidden
    files and other suffixes are left out, the latter with a note if `note_others`; a folder that does not exist is
    empty. Two files of one name and a name that is not UTF-8 are problems. Raises `WeaksegError` where a sub-folder
    cannot be read or is a link.
    """
    found: dict[str, Path] = {}
    for parent, folders, files in os.walk(folder, onerror=_unless_missing):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            if (link := Path(parent, name)).is_symlink():
                raise WeaksegError(f"{link} is a link to a folder, which could lead anywhere. Move the files here.")
        inner = "" if parent == str(folder) else f"{Path(parent).relative_to(folder).as_posix()}/"
        for file in sorted(files):
            stem, suffix = os.path.splitext(file)  # noqa: PTH122 (a Path for each of 100,000 files is slow)
            if file.startswith("."):
                continue
            if suffix.lower() not in suffixes:
                if note_others and file.lower() not in _SYSTEM_FILES:
                    report.note(f"the file is not read, only {' '.join(suffixes)} are.", str(Path(parent, file)))
                continue
            name = unicodedata.normalize("NFC", inner + stem)
            path = Path(parent, file)
            if not _is_unicode(name):
                report.problem("the name of the file, or of its folder, is not UTF-8. Rename it.", str(path))
            elif name in found:
                report.problem(f'{path} and {found[name].name} have the same name "{name}". Rename one of them.')
            else:
                found[name] = path
    return found


def _unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise WeaksegError(f"{error.filename} could not be read: {error.strerror}.") from error


def _is_unicode(name: str) -> bool:
    """Whether a file name was UTF-8: Python gives other bytes as lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def match_name(reference: str, found: Mapping[str, Path]) -> str | None:
    """The name in `found` that a label file means by `reference`, with or without its suffix; else `None`.

    A path is tried as it is written, then without its first folder, and so on to the bare name: label files often
    tell where an image lay on another computer.
    """
    name = unicodedata.normalize("NFC", reference.strip()).replace("\\", "/").removeprefix("./")
    while True:
        if name in found:
            return name
        stem, suffix = os.path.splitext(name)  # noqa: PTH122
        if suffix.lower() in IMAGE_SUFFIXES and stem in found:
            return stem
        _, folder, name = name.partition("/")
        if not folder:
            return None


# Images


def read_image(path: Path) -> npt.NDArray[np.uint8]:
    """Decode an image file to RGB, uint8 (H, W, 3), turned upright as its EXIF orientation says.

    Greyscale is repeated over the channels; transparent pixels are laid over white; 16-bit values are scaled
    from 0 … 65535 to 0 … 255 and refused where they reach 4095 at most; CMYK and palettes are converted; of several
    frames the first is taken. Colour profiles are ignored, as usual in the field.

    Raises `WeaksegError` for a file that is missing, damaged, truncated, of another format or of more than
    128 megapixels (found before decoding).
    """
    with _opened(path, _DECODERS) as image:
        orientation = _orientation(image)
        rgb = _to_rgb(image)
        return np.array(rgb.transpose(_TURNS[orientation]) if orientation in _TURNS else rgb)


def image_size(path: Path) -> tuple[int, int]:
    """(H, W) in pixels of what `read_image` returns, from the file's header alone; raises as `read_image`."""
    with _opened(path, _DECODERS) as image:
        width, height = image.size
        return (width, height) if _orientation(image) in _SWAPS_SIDES else (height, width)


def conversions(path: Path) -> list[str]:
    """What `read_image` changes about the stored picture ("CMYK", "EXIF rotation", …), from the file's header."""
    with _opened(path, _DECODERS) as image:
        found = []
        if image.mode in ("CMYK", "1", "P", "PA"):
            found.append({"CMYK": "CMYK", "1": "black and white"}.get(image.mode, "a palette"))
        if image.mode.startswith(("L", "I")):
            found.append("greyscale")
        if image.mode.startswith("I") or _has_16_bits(image):
            found.append("16 bits")
        if image.has_transparency_data:
            found.append("transparency (laid over white)")
        if _orientation(image) in _TURNS:
            found.append("EXIF rotation")
        # A second picture in a JPEG is a phone's thumbnail or depth map, nothing that anyone misses.
        if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
            found.append("several frames (the first is taken)")
        return found


class _Unfit(Exception):
    """A picture that is sound and yet cannot be used; the text says why and what to do."""


@contextmanager
def _opened(path: Path, decoders: tuple[str, ...]) -> Iterator[ImageFile.ImageFile]:
    """An open, not yet decoded image. Whatever goes wrong in the block is an error of this file."""
    if path.suffix.lower() in _HEIC_SUFFIXES and decoders == _DECODERS:
        _register_heic(path)
        decoders = ("HEIF",)
    too_large = f"{path} has more than {MAX_PIXELS // 10**6} megapixels. Scale it down or remove it."
    try:
        with Image.open(_pixels_of_png(path) or path, formats=decoders) as image:
            if image.width * image.height > MAX_PIXELS:
                raise WeaksegError(too_large)
            yield image
    except WeaksegError:
        raise
    except _Unfit as error:
        raise WeaksegError(f"{path} cannot be used: {error}") from None
    except FileNotFoundError:
        raise WeaksegError(f"{path} does not exist.") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise WeaksegError(too_large) from None
    except UnidentifiedImageError:
        raise WeaksegError(f"{path} is not a readable {' / '.join(decoders)} file. Convert or remove it.") from None
    except Exception as error:  # decoders meet broken data with almost any exception
        if out_of_memory(error):
            raise WeaksegError(f"{path} does not fit into the memory. Scale it down.") from error
        if isinstance(error, OSError) and error.errno is not None:
            raise WeaksegError(f"{path} cannot be read. {explain(error)}") from error
        fault = "the file is cut off" if "truncated" in str(error) else "its data are damaged"
        raise WeaksegError(f"{path} cannot be decoded: {fault}. Replace or remove it.") from error


def _register_heic(path: Path) -> None:
    """Let Pillow decode HEIC pictures, which needs a package that not everybody has."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise WeaksegError(
            f"{path} is a HEIC picture, which needs one more package: `pip install 'weakseg[heic]'`. Or convert it to "
            "JPEG."
        ) from None
    register_heif_opener()


_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_TEXT = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_PNG_ORIENTATION = (b"XML:com.adobe.xmp", b"Raw profile type exif")
_MAX_METADATA_BYTES = 1 << 19


def _pixels_of_png(path: Path) -> io.BytesIO | None:
    """A PNG without its texts and colour profile, which Pillow refuses where they are large, and with its EXIF data,
    which may stand at its end, before the pixels; None for a file that needs neither."""
    with path.open("rb") as file:
        if file.read(len(_PNG_SIGNATURE)) != _PNG_SIGNATURE:
            return None
        chunks: list[tuple[bytes, int, int]] = []
        while len(head := file.read(8)) == 8:
            size = int.from_bytes(head[:4]) + 12
            chunks.append((head[4:], file.tell() - 8, size))
            file.seek(size - 8, os.SEEK_CUR)
        kinds = [kind for kind, _, _ in chunks]
        late_exif = b"eXIf" in kinds and b"IDAT" in kinds and kinds.index(b"eXIf") > kinds.index(b"IDAT")
        if not late_exif and not set(kinds).intersection(_PNG_TEXT):
            return None

        def data(chunk: tuple[bytes, int, int]) -> bytes:
            file.seek(chunk[1])
            return file.read(chunk[2])

        def needed(chunk: tuple[bytes, int, int]) -> bool:
            if chunk[0] not in _PNG_TEXT:
                return chunk[0] != b"eXIf"
            return chunk[2] < _MAX_METADATA_BYTES and _tells_orientation(chunk[0], data(chunk)[8:-4])

        exif = [data(chunk) for chunk in chunks if chunk[0] == b"eXIf"][:1]
        header, *others = [data(chunk) for chunk in chunks if needed(chunk)]
        return io.BytesIO(b"".join([_PNG_SIGNATURE, header, *exif, *others]))


def _tells_orientation(kind: bytes, text: bytes) -> bool:
    """Whether a text of a PNG may hold EXIF data or XMP, and is small also when it is unpacked."""
    keyword, _, rest = text.partition(b"\0")
    if keyword not in _PNG_ORIENTATION:
        return False
    packed = rest[1:]
    if kind == b"iTXt":
        packed = rest[2:].split(b"\0", 2)[-1] if rest[:1] == b"\1" else b""
    if kind == b"tEXt" or not packed:
        return True
    try:
        return len(zlib.decompressobj().decompress(packed, _MAX_METADATA_BYTES)) < _MAX_METADATA_BYTES
    except zlib.error:
        return False


def _orientation(image: ImageFile.ImageFile) -> int:
    """EXIF orientation 1 … 8 from the header, of an image that is not yet decoded; 1 where it makes no sense."""
    if image.format == "TIFF":  # which Pillow turns itself
        return 1
    try:
        # Not the method of PNG files, which decodes all of it first, in search of EXIF data at the end.
        value: Any = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
        value = value[0] if isinstance(value, Sequence) and not isinstance(value, str | bytes) else value
        if isinstance(value, bytes) and not value.strip(b"\0").isdigit():
            return int.from_bytes(value.strip(b"\0"))
        return int(value)
    except Exception:  # odd metadata are no reason to do without the picture
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise _Unfit("its values do not fit 16 bits; save it with 8 bits per channel.")
        _require_range(int(values.max()))
        return Image.fromarray(np.round(values / 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise _Unfit("it stores floating-point values; save it with 8 bits per channel.")
    deep = _has_16_bits(image)
    if image.has_transparency_data:
        opaque = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        return opaque.convert("RGB")
    rgb = image.convert("RGB")
    if deep:
        _require_range(256 * int(np.asarray(rgb).max()))
    return rgb


def _has_16_bits(image: Image.Image) -> bool:
    return any(";16" in str(tile) for tile in getattr(image, "tile", ()))


def _require_range(highest: int) -> None:
    """Raise for values that use a small part of the range: scaled to 8 bits, they would be all but black."""
    if 0 < highest < 4096:
        raise _Unfit(
            "its 16 bits hold values of at most 12 bits, so the picture would be all but black. Multiply its "
            "values so that they reach 65535, or save it with 8 bits per channel."
        )


# Masks


# The values 254 and 255 of labels mean something else than a class (`labels`); in 16-bit files the last two values do.
_LABELS_OF_16_BITS = np.concatenate(
    [np.arange(UNLABELLED), np.arange(VOID + 1, VOID_OF_16_BITS + 1), [UNLABELLED, VOID]]
).astype(np.uint16)
_VALUES_OF_16_BITS = np.argsort(_LABELS_OF_16_BITS).astype(np.uint16)


def read_label_map(path: Path) -> LabelMap:
    """The labels in a palette or greyscale PNG (H, W) that `write_label_map` wrote.

    Raises `WeaksegError` for any other kind of file, and for what `read_image` refuses.
    """
    values = read_values(path)
    return _LABELS_OF_16_BITS[values] if values.dtype == np.uint16 else values


def read_values(path: Path) -> LabelMap:
    """The values of a palette or greyscale PNG of 8 or 16 bits as they are stored (H, W).

    Raises `WeaksegError` for any other kind of file, and for what `read_image` refuses.
    """
    return _numbers(path, "a greyscale PNG of 8 or 16 bits", deep=True)


def read_bytes(path: Path) -> npt.NDArray[np.uint8]:
    """The same of 8 bits alone: of objects, regions and saliency, which have no 16-bit form."""
    return _numbers(path, "8-bit greyscale PNG", deep=False)


def _numbers(path: Path, grey: str, *, deep: bool) -> LabelMap:
    with _opened(path, ("PNG",)) as image:
        kind = image.tile[0][3]
        # Greyscale of fewer than 8 bits is refused as well: decoding stretches its values over 0 … 255.
        if image.mode == "P" or kind == "L":
            return np.array(image)
        if deep and str(kind).startswith("I;16"):
            return np.array(image).astype(np.uint16)
        raise WeaksegError(
            f"{path} is no label map: its pixels are of kind {kind}. A mask is a palette "
            f'("indexed colour") or {grey} whose pixel values are class numbers, not colours. '
            "Save it again as one of these."
        )


def write_label_map(path: Path, labels: LabelMap, *, deep: bool = False) -> None:
    """Write labels (H, W) as a palette PNG in the PASCAL VOC colours, or `deep`, as a greyscale PNG of 16 bits, where
    classes are 1 … C, 65535 is void and 65534 unlabelled. The bytes depend on the labels alone."""
    if labels.ndim != 2 or labels.dtype not in ((np.uint8, np.uint16) if deep else (np.uint8,)):
        raise ValueError(f"a label map is uint8 (H, W), or deep and uint16, not {labels.dtype} {labels.shape}")
    if deep:
        image = Image.fromarray(stored_values(labels, deep=True))
    else:
        height, width = labels.shape
        image = Image.frombytes("P", (width, height), labels.tobytes())
        image.putpalette(palette())
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")


def stored_values(labels: LabelMap, *, deep: bool) -> LabelMap:
    """The values that stand for labels in the files of `write_label_map`."""
    return _VALUES_OF_16_BITS[labels] if deep else labels


def read_cutout(path: Path) -> npt.NDArray[np.uint8]:
    """Decode a PNG of colours and opacity to uint8 (H, W, 4); colours where it is transparent are kept.

    Raises `WeaksegError` for any other kind of file, and for what `read_image` refuses.
    """
    with _opened(path, ("PNG",)) as image:
        if image.mode != "RGBA":
            raise WeaksegError(f"{path} has no opacity. Delete the folder it lies in and run again.")
        return np.array(image)


def write_image(path: Path, image: npt.NDArray[np.uint8]) -> None:
    """Write an RGB image, uint8 (H, W, 3), or one with opacity, (H, W, 4), as a PNG."""
    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary, format="PNG")


# Superpixels


def encode_ids(ids: npt.NDArray[np.int32]) -> npt.NDArray[np.uint8]:
    """Ids (H, W) in 0 … `MAX_ID` as an RGB image (H, W, 3): id = B + 256 G + 65536 R."""
    if ids.min() < 0 or ids.max() > MAX_ID:
        raise ValueError(f"ids are 0 … {MAX_ID}, not {ids.min()} … {ids.max()}")
    return np.stack([ids >> 16, ids >> 8 & 255, ids & 255], axis=-1).astype(np.uint8)


def decode_ids(colours: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
    """The ids (H, W) in an RGB image (H, W, 3) that `encode_ids` made."""
    red, green, blue = (colours[..., channel].astype(np.int32) for channel in range(3))
    return (red << 16) + (green << 8) + blue


def read_superpixels(path: Path) -> npt.NDArray[np.int32]:
    """The ids (H, W) in a PNG of three bytes a pixel, such as those of published superpixels.

    Raises `WeaksegError` for any other kind of file, and for what `read_image` refuses.
    """
    with _opened(path, ("PNG",)) as image:
        if image.tile[0][3] != "RGB":
            raise WeaksegError(
                f"{path} is no map of superpixels: its pixels are of kind {image.tile[0][3]}, expected RGB of 8 bits. "
                "Delete it and write it anew with `weakseg superpixels`."
            )
        return decode_ids(np.array(image))


def write_superpixels(path: Path, ids: npt.NDArray[np.int32]) -> None:
    """Write ids (H, W) as a PNG of three bytes a pixel; the bytes depend on them alone."""
    write_image(path, encode_ids(ids))


def write_jpeg(path: Path, image: npt.NDArray[np.uint8]) -> None:
    """Write an RGB image, uint8 (H, W, 3), as a JPEG for people to look at."""
    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary, format="JPEG", quality=85)


def files_of_images(folder: Path, names: Collection[str], report: Report) -> dict[str, Path]:
    """The PNGs of a folder by name, which are those of images `names`; one that belongs to none is a problem."""
    found = find_files(folder, (".png",), report, note_others=True)
    for name in sorted(found.keys() - set(names)):
        report.problem("the file belongs to no image. Rename it to the image's name, or remove it.", str(found[name]))
    return found


@dataclass(frozen=True)
class IndexMask:
    """A ground truth in a palette or greyscale PNG; `labels` translates the values of the file to labels. In a file of
    16 bits, 65535 is void unless they say otherwise."""

    path: Path
    labels: Mapping[int, int]

    def read(self) -> LabelMap:
        """The label map (H, W); raises `WeaksegError` for values that `labels` does not know."""
        values = read_values(self.path)
        labels = self.labels if values.dtype == np.uint8 else {VOID_OF_16_BITS: VOID, **self.labels}
        counts = np.bincount(values.ravel())
        unknown = [int(value) for value in np.flatnonzero(counts) if int(value) not in labels]
        if unknown:
            found = ", ".join(f"{value} ({counts[value]} pixels)" for value in unknown)
            known = _ranges(sorted(labels))
            raise WeaksegError(
                f"{self.path} holds values that are no class: {found}. Known values: {known}. "
                "Correct the mask or the list of classes."
            )
        there = np.flatnonzero(counts)
        table = np.zeros(len(counts), np.uint16)
        table[there] = [labels[int(value)] for value in there]
        return (table if max(labels.values()) > VOID else table.astype(np.uint8))[values]

    def fingerprint(self) -> str:
        """Changes when the file does (its size and time of change)."""
        return file_stamp(self.path)


def _ranges(values: Sequence[int]) -> str:
    """Ascending numbers, those that follow each other as a range: "0 … 1203, 65535"."""
    starts = [i for i, value in enumerate(values) if i == 0 or value > values[i - 1] + 1]
    runs = (values[start:end] for start, end in zip(starts, [*starts[1:], len(values)], strict=True))
    return ", ".join(f"{run[0]} … {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def file_stamp(path: Path) -> str:
    """Size in bytes and time of change in nanoseconds; raises `WeaksegError` where the file is missing."""
    try:
        status = path.stat()
    except OSError as error:
        raise WeaksegError(f"{path} cannot be read: {error.strerror}.") from error
    return f"{status.st_size}-{status.st_mtime_ns}"


def overlay(image: npt.NDArray[np.uint8], labels: LabelMap, alpha: float = 0.5) -> npt.NDArray[np.uint8]:
    """A picture of labels (H, W) on an image (H, W, 3): their colours at opacity `alpha`, the background bare."""
    colours = np.array(palette(max(256, int(labels.max(initial=0)) + 1)), np.float32).reshape(-1, 3)
    opacity = np.where(labels == BACKGROUND, 0, np.float32(alpha))[..., None]
    return np.round(image * (1 - opacity) + colours[labels] * opacity).astype(np.uint8)
