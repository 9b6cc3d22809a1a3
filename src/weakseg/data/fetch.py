"""Downloading the public data sets and putting them where `open_dataset` finds them.

What is fetched is a table, `DATASETS`: which archives, from where, how large, with which hash. Sizes and MD5 sums are
those of the publishers' files. MD5 finds broken downloads, it does not stop an attacker, so archives are unpacked
with distrust all the same.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

import numpy as np
import numpy.typing as npt

from weakseg.download import DownloadError, Progress, bytes_in, download, part_of
from weakseg.errors import WeaksegError
from weakseg.files import atomic_path, write_text

CHUNK = 1 << 20
PASCAL_CLASSES = 20
# What reading a damaged archive may raise.
UNREADABLE = (OSError, EOFError, RuntimeError, zlib.error, tarfile.TarError, zipfile.BadZipFile)


class _DamagedError(Exception):
    """An archive cannot be read to its end."""


@dataclass(frozen=True)
class Archive:
    """A file to download and what becomes of it.

    `size` and `unpacked` (the most it may unpack to) are in bytes. Only what lies in `folder` of the archive is
    wanted. `needs` are files of another data set that must be there before. `install(archive, path, out, progress)`
    brings the downloaded file at `path` into the folder `out` and keeps what an interrupted call has finished.
    """

    file: str
    urls: tuple[str, ...]
    size: int
    md5: str
    unpacked: int
    install: Callable[[Archive, Path, Path, Progress], None]
    folder: str = ""
    needs: tuple[str, ...] = ()


def fetch(
    name: str,
    out: Path,
    *,
    base_urls: Sequence[str] | None = None,
    progress: Progress | None = None,
    datasets: Mapping[str, tuple[Archive, ...]] | None = None,
) -> None:
    """Download a data set (`voc2012`, `sbd`, `coco2014`) and unpack it in the folder `out`, ready to be opened.

    `sbd` adds `SegmentationClassAug` and the list `train_aug` to a folder that holds `voc2012`. Calling again goes on
    where the last call stopped: finished archives are skipped (`<archive>.done` marks them), a broken download is
    resumed, files already unpacked are kept. An archive that lies in `out` is used as it is; the archives stay there
    and may be deleted afterwards. `base_urls` are mirrors, "http://host/folder", asked instead of the publishers.

    Raises `WeaksegError` for an unknown name, a failed download, a wrong size or hash (the archive is deleted), a full
    disk, or an archive that is damaged or reaches outside its folder.
    """
    datasets = DATASETS if datasets is None else datasets
    if name not in datasets:
        raise WeaksegError(f'Unknown data set "{name}". Those that can be fetched are: {", ".join(datasets)}.')
    report = progress or (lambda step, done, total: None)
    for archive in datasets[name]:
        marker = out / f"{archive.file}.done"
        if marker.exists():
            continue
        _check_needs(archive, out)
        path = out / archive.file
        if not path.exists():
            _check_space(archive, out)
            urls = [f"{base.rstrip('/')}/{archive.file}" for base in base_urls or ()] or archive.urls
            try:
                download(urls, path, archive.size, report)
            except DownloadError as error:
                raise WeaksegError(
                    f"{archive.file} could not be downloaded ({error}). Check the connection and run the same command "
                    f"again; the {bytes_in(part_of(path)) / 1e6:.1f} MB that arrived are kept."
                ) from None
        _verify(archive, path, report)
        try:
            archive.install(archive, path, out, report)
        except _DamagedError as error:
            raise WeaksegError(f"{path} is damaged ({error}). Delete it and run the same command again.") from None
        write_text(marker, f"{archive.file} is unpacked in this folder. Without this file it is fetched again.\n")


def _check_needs(archive: Archive, out: Path) -> None:
    for needed in archive.needs:
        if not (out / needed).exists():
            raise WeaksegError(
                f"{out / needed} is missing. {archive.file} adds to PASCAL VOC 2012: fetch voc2012 into {out} first."
            )


def _check_space(archive: Archive, out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(out).free
    except OSError as error:
        raise WeaksegError(f"The folder {out} cannot be used ({error.strerror or error}). Choose another.") from None
    needed = archive.size - bytes_in(part_of(out / archive.file)) + archive.unpacked
    if free < needed:
        raise WeaksegError(
            f"The disk of {out} has {free / 1e9:.1f} GB free, but {archive.file} may need {needed / 1e9:.1f} GB. "
            "Free some space or choose a folder on another disk."
        )


def _verify(archive: Archive, path: Path, report: Progress) -> None:
    """Delete the archive and raise if it is not the publisher's."""
    problem = None
    if bytes_in(path) != archive.size:
        problem = f"has {bytes_in(path)} bytes instead of {archive.size}"
    elif (found := _md5(path, report)) != archive.md5:
        problem = f"has the MD5 sum {found} instead of {archive.md5}"
    if problem:
        path.unlink()
        raise WeaksegError(f"{path} {problem} and was deleted. Run the same command again or choose another mirror.")


def _md5(path: Path, report: Progress) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        for chunk in _chunks(file):
            digest.update(chunk)
            report(f"Checking {path.name}", file.tell(), bytes_in(path))
    return digest.hexdigest()


def _chunks(stream: IO[bytes]) -> Iterator[bytes]:
    """All of a stream, a piece at a time; trouble in reading, not in what is done with a piece, is damage."""
    try:
        while chunk := stream.read(CHUNK):
            yield chunk
    except UNREADABLE as error:
        raise _DamagedError(_reason(error)) from error


def _reason(error: Exception) -> str:
    """The first line of what an error says."""
    return str(error).partition("\n")[0].rstrip(":") or type(error).__name__


# --- Unpacking --------------------------------------------------------------------------------------------------------


def unpack(archive: Archive, path: Path, out: Path, report: Progress) -> None:
    """Write the files of an archive to `out`; those that are there already with the right size are kept."""
    for name, size, content in _files(archive, path, report):
        target = out / name
        if target.is_file() and bytes_in(target) == size:
            continue
        with atomic_path(target) as temporary, temporary.open("wb") as file:
            for chunk in _chunks(content):
                file.write(chunk)


def _files(archive: Archive, path: Path, report: Progress) -> Iterator[tuple[PurePosixPath, int, IO[bytes]]]:
    """The files in the wanted folder of a tar or zip: the path within the folder, the size, the open content.

    Raises `WeaksegError` at a name that is absolute or has "..", at a link or device, and where more unpacks than
    `archive.unpacked`.
    """
    unpacked = 0
    with path.open("rb") as raw:
        try:
            for name, size, content in _entries(raw, zipped=path.suffix == ".zip"):
                # Windows paths know both slashes and drive letters, so this is the strictest reading on any system.
                strict = PureWindowsPath(name)
                if strict.anchor or ".." in strict.parts or "\0" in name:
                    raise WeaksegError(f"{path} holds {name!r}, which lies outside its folder; it was not unpacked.")
                inside = PurePosixPath(name)
                if not inside.is_relative_to(archive.folder):
                    continue
                if content is None:
                    raise WeaksegError(f"{path} holds {name!r}, a link or device; it was not unpacked.")
                unpacked += size
                if unpacked > archive.unpacked:
                    raise WeaksegError(f"{path} unpacks to more than {archive.unpacked / 1e9:.3g} GB; it was refused.")
                yield inside.relative_to(archive.folder), size, content
                report(f"Unpacking {path.name}", raw.tell(), bytes_in(path))
        except UNREADABLE as error:
            raise _DamagedError(_reason(error)) from error


def _entries(raw: IO[bytes], *, zipped: bool) -> Iterator[tuple[str, int, IO[bytes] | None]]:
    """Name, size (bytes) and content of everything but folders; no content for what is no plain file."""
    if zipped:
        with zipfile.ZipFile(raw) as archive:
            for item in archive.infolist():
                kind = stat.S_IFMT(item.external_attr >> 16)
                if not item.is_dir():
                    plain = kind in (0, stat.S_IFREG)
                    yield item.filename, item.file_size, archive.open(item) if plain else None
    else:
        with tarfile.open(fileobj=raw, mode="r:*") as tar:
            for member in tar:
                if not member.isdir():
                    yield member.name, member.size, tar.extractfile(member) if member.isfile() else None


# --- The Semantic Boundaries Dataset ----------------------------------------------------------------------------------


def install_sbd(archive: Archive, path: Path, out: Path, report: Progress) -> None:
    """Write `SegmentationClassAug` and the list `train_aug`: the 10,582 images of the augmented VOC training set.

    These are the images that VOC (train) or SBD (train and val) annotate, without those of VOC's val. Where both
    annotate an image, VOC's mask is taken: it has a void border, SBD's has none.
    """
    from weakseg.data.images import write_label_map

    lists = out / "ImageSets" / "Segmentation"
    train, val = (set((lists / f"{split}.txt").read_text(encoding="utf-8").split()) for split in ("train", "val"))
    masks = out / "SegmentationClassAug"
    names = set(train)
    for file, _, content in _files(archive, path, report):
        if file.suffix != ".mat" or file.stem in train | val:
            continue
        names.add(file.stem)
        target = masks / f"{file.stem}.png"
        if not target.exists():
            data = b"".join(_chunks(content))
            write_label_map(target, read_sbd_mask(data, f"{path}: {file}"))
    for name in train:
        with atomic_path(masks / f"{name}.png") as temporary:
            shutil.copyfile(out / "SegmentationClass" / f"{name}.png", temporary)
    missing = sorted(name for name in names if not (out / "JPEGImages" / f"{name}.jpg").exists())
    if missing:
        raise WeaksegError(
            f"{out / 'JPEGImages'} lacks {len(missing)} images of {archive.file}, {missing[0]}.jpg for one. "
            f"Fetch voc2012 into {out} again."
        )
    write_text(lists / "train_aug.txt", "".join(f"{name}\n" for name in sorted(names)))


def read_sbd_mask(data: bytes, where: str) -> npt.NDArray[np.uint8]:
    """The label map (H, W) in the bytes of a `cls/*.mat` file of SBD: the field `Segmentation` of `GTcls`, whose
    numbers are those of VOC. Raises `WeaksegError` that begins with `where`."""
    from scipy.io import loadmat

    try:
        mask = loadmat(io.BytesIO(data), variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0]
    except Exception as error:  # the reader lets through whatever a strange file leads it to
        raise WeaksegError(f"{where} is no SBD class file with GTcls.Segmentation ({error}).") from error
    if mask.ndim != 2 or mask.dtype.kind not in "ui" or not 0 <= mask.min() <= mask.max() <= PASCAL_CLASSES:
        raise WeaksegError(f"{where}: the mask is no label map of two dimensions with values 0 to {PASCAL_CLASSES}.")
    return mask.astype(np.uint8)


# --- What can be fetched ----------------------------------------------------------------------------------------------


def _coco(file: str, folder: str, size: int, md5: str, unpacked: int) -> Archive:
    hosts = ("http://images.cocodataset.org", "https://s3.amazonaws.com/images.cocodataset.org")
    return Archive(file, tuple(f"{host}/{folder}/{file}" for host in hosts), size, md5, unpacked, unpack)


DATASETS: Mapping[str, tuple[Archive, ...]] = {
    "voc2012": (
        Archive(
            file="VOCtrainval_11-May-2012.tar",
            urls=(
                "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
                "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
                "https://data.pjreddie.com/files/VOCtrainval_11-May-2012.tar",
            ),
            size=1_999_639_040,
            md5="6cd6e144f989b92b3379bac3b3de84fd",
            unpacked=2_000_000_000,
            install=unpack,
            folder="VOCdevkit/VOC2012",
        ),
    ),
    "sbd": (
        Archive(
            file="benchmark.tgz",
            urls=(
                "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
            ),
            size=1_419_539_633,
            md5="82b4d87ceb2ed10f6038a1cba92111cb",
            unpacked=1_000_000_000,
            install=install_sbd,
            folder="benchmark_RELEASE/dataset/cls",
            needs=(
                "JPEGImages",
                "SegmentationClass",
                "ImageSets/Segmentation/train.txt",
                "ImageSets/Segmentation/val.txt",
            ),
        ),
    ),
    "coco2014": (
        _coco("annotations_trainval2014.zip", "annotations", 252_872_794, "0a379cfc70b0e71301e0f377548639bd", 10**9),
        _coco("val2014.zip", "zips", 6_645_013_297, "a3d79f5ed8d289b7a7554ce06a5782b3", 7 * 10**9),
        _coco("train2014.zip", "zips", 13_510_573_713, "0da8c0bd3d6becc4dcb32757491aca88", 15 * 10**9),
    ),
}
