"""Downloads from a real server on this machine: broken connections, wrong files, hostile archives."""

from __future__ import annotations

import hashlib
import io
import socket
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from server import Server, serving
from weakseg import download as download_module
from weakseg.data.fetch import DATASETS, Archive, fetch, install_sbd, read_sbd_mask, unpack
from weakseg.data.voc import read_voc
from weakseg.errors import WeaksegError

CONTENT = {
    "top/images/a b.jpg": np.random.default_rng(0).bytes(50_000),
    "top/lists/ü.txt": "ä\n".encode(),
    "other/readme": b"not wanted",
}


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as state:
        yield state


@pytest.fixture(autouse=True)
def at_once_and_direct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module, "RETRY_WAITS", (0.0, 0.0, 0.0))
    monkeypatch.setenv("no_proxy", "*")


def tar_bytes(files: Mapping[str, bytes], mode: str = "w", extra: tarfile.TarInfo | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        if extra is not None:
            tar.addfile(extra)
    return buffer.getvalue()


def zip_bytes(files: Mapping[str, bytes], extra: zipfile.ZipInfo | None = None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        if extra is not None:
            archive.writestr(extra, b"/etc/passwd")
    return buffer.getvalue()


def table(data: bytes, file: str = "set.tar", **changes: object) -> dict[str, tuple[Archive, ...]]:
    """A table of one data set, "tiny", of one archive with this content."""
    values: dict[str, object] = {
        "file": file,
        "urls": (),
        "size": len(data),
        "md5": hashlib.md5(data).hexdigest(),
        "unpacked": 10**6,
        "install": unpack,
        "folder": "top",
    }
    return {"tiny": (Archive(**{**values, **changes}),)}  # type: ignore[arg-type]


@dataclass
class Offer:
    """One archive on the server, and the call that fetches it."""

    server: Server
    out: Path
    data: bytes
    file: str = "set.tar"

    def fetch(self, progress: Callable[[str, int, int], None] | None = None, **changes: object) -> None:
        self.server.files.setdefault(self.file, self.data)
        datasets = table(self.data, self.file, **changes)
        fetch("tiny", self.out, base_urls=[self.server.url + "/"], progress=progress, datasets=datasets)

    def contents(self) -> dict[str, bytes]:
        """What was unpacked; also asserts that nothing half-written is left."""
        files = {path.relative_to(self.out).as_posix(): path for path in self.out.rglob("*") if path.is_file()}
        assert not [name for name in files if name.endswith((".writing", ".part"))]
        ours = {self.file, f"{self.file}.done"}
        return {name: path.read_bytes() for name, path in files.items() if name not in ours}


WANTED = {"images/a b.jpg": CONTENT["top/images/a b.jpg"], "lists/ü.txt": CONTENT["top/lists/ü.txt"]}


@pytest.fixture
def offer(server: Server, tmp_path: Path) -> Offer:
    return Offer(server, tmp_path / "data", tar_bytes(CONTENT))


@pytest.mark.parametrize(
    ("file", "data"),
    [
        ("set.tar", tar_bytes(CONTENT)),
        ("set.tgz", tar_bytes(CONTENT, "w:gz")),
        ("set.zip", zip_bytes({**CONTENT, "top/images/": b""})),
    ],
)
def test_the_wanted_folder_is_unpacked(server: Server, tmp_path: Path, file: str, data: bytes) -> None:
    offer = Offer(server, tmp_path / "new" / "data", data, file)
    offer.fetch()
    assert offer.contents() == WANTED
    assert server.requests == [(file, None)]


def test_finished_steps_are_skipped(offer: Offer) -> None:
    offer.fetch()
    asked = len(offer.server.requests)
    offer.fetch()
    unpacked = offer.out / "images" / "a b.jpg"
    written = unpacked.stat().st_mtime_ns
    (offer.out / "lists" / "ü.txt").write_bytes(b"half")
    (offer.out / "set.tar.done").unlink()
    offer.fetch()
    assert len(offer.server.requests) == asked
    assert unpacked.stat().st_mtime_ns == written
    (offer.out / "set.tar").unlink()
    offer.fetch()
    assert len(offer.server.requests) == asked
    assert offer.contents() == WANTED


def test_an_archive_that_lies_there_is_used(offer: Offer) -> None:
    offer.out.mkdir()
    (offer.out / "set.tar").write_bytes(offer.data)
    offer.fetch()
    assert offer.contents() == WANTED
    assert offer.server.requests == []


def test_progress_reaches_the_end_of_every_step(offer: Offer) -> None:
    calls: list[tuple[str, int, int]] = []
    offer.fetch(progress=lambda *call: calls.append(call))
    assert list(dict.fromkeys(step for step, _, _ in calls)) == [
        "Downloading set.tar",
        "Checking set.tar",
        "Unpacking set.tar",
    ]
    assert all(0 < done <= total == len(offer.data) for _, done, total in calls)
    assert ("Downloading set.tar", len(offer.data), len(offer.data)) in calls
    assert ("Checking set.tar", len(offer.data), len(offer.data)) in calls


def test_a_cut_connection_is_resumed_where_it_broke(offer: Offer) -> None:
    # More cuts than attempts are granted without progress: each brings something.
    offer.server.cuts = [10_000, 5_000, 1, 1, 7_000]
    offer.fetch()
    assert offer.contents() == WANTED
    starts = [10_000, 15_000, 15_001, 15_002, 22_002]
    assert offer.server.requests == [("set.tar", None), *(("set.tar", f"bytes={start}-") for start in starts)]


def test_a_server_that_cannot_resume_sends_everything_again(offer: Offer) -> None:
    offer.server.cuts = [10_000]
    offer.server.ranges = False
    offer.fetch()
    assert offer.contents() == WANTED
    assert len(offer.server.requests) == 2


def test_a_connection_that_stays_broken_keeps_what_arrived(offer: Offer) -> None:
    offer.server.cuts = [20_000, 0, 0, 0]
    with pytest.raises(WeaksegError, match=r"set\.tar could not be downloaded \(127\.0\.0\.1:\d+: .*0\.0 MB") as caught:
        offer.fetch()
    assert "run the same command again" in str(caught.value)
    assert [path.name for path in offer.out.iterdir()] == ["set.tar.part"]
    offer.fetch()
    assert offer.server.requests[-1] == ("set.tar", "bytes=20000-")
    assert offer.contents() == WANTED


def test_an_interrupted_call_is_resumed(offer: Offer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module, "CHUNK", 4096)

    def stop(step: str, done: int, total: int) -> None:
        if done >= 3 * 4096:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        offer.fetch(progress=stop)
    offer.fetch()
    assert offer.server.requests == [("set.tar", None), ("set.tar", f"bytes={3 * 4096}-")]
    assert offer.contents() == WANTED


def test_without_an_announced_length_the_size_of_the_table_counts(offer: Offer) -> None:
    offer.server.announce = False
    offer.server.cuts = [10_000]
    offer.fetch()
    assert offer.contents() == WANTED
    assert offer.server.requests[1] == ("set.tar", "bytes=10000-")


def test_leftovers_of_another_file_are_replaced(offer: Offer) -> None:
    offer.out.mkdir()
    (offer.out / "set.tar.part").write_bytes(bytes(len(offer.data) + 5))
    offer.fetch()
    assert offer.contents() == WANTED
    assert offer.server.requests[1] == ("set.tar", None)


def test_a_part_of_another_range_is_not_mixed_in(offer: Offer) -> None:
    offer.server.cuts = [10_000]
    offer.server.content_range = f"bytes 9000-{len(offer.data) - 1}/{len(offer.data)}"
    with pytest.raises(WeaksegError, match="it sends bytes from 9000 on instead of from 10000 on"):
        offer.fetch()
    offer.server.content_range = "nonsense"
    with pytest.raises(WeaksegError, match="does not say which part"):
        offer.fetch()


def test_a_busy_server_is_asked_again_and_a_missing_file_is_not(offer: Offer) -> None:
    offer.server.statuses = [503, 429]
    offer.fetch()
    assert offer.contents() == WANTED
    offer.server.files = {"other.tar": b""}
    offer.server.requests.clear()
    with pytest.raises(WeaksegError, match="HTTP 404 Not Found"):
        fetch("tiny", offer.out / "2", base_urls=[offer.server.url], datasets=table(offer.data))
    assert len(offer.server.requests) == 1


def test_the_next_address_is_asked_when_one_fails(offer: Offer) -> None:
    offer.server.files = {"good.tar": offer.data, "login.tar": b"<html>please log in</html>"}
    urls = tuple(f"{offer.server.url}/{file}" for file in ("absent.tar", "login.tar", "good.tar"))
    fetch("tiny", offer.out, datasets=table(offer.data, urls=urls))
    assert offer.contents() == WANTED
    assert [name for name, _ in offer.server.requests] == ["absent.tar", "login.tar", "good.tar"]


def test_a_file_of_another_size_is_refused_before_it_is_downloaded(offer: Offer) -> None:
    offer.server.files["set.tar"] = offer.data + b"more"
    size = len(offer.data)
    with pytest.raises(WeaksegError, match=f"its file has {size + 4} bytes instead of {size}"):
        offer.fetch()
    assert list(offer.out.iterdir()) == []


def test_a_server_that_does_not_stop_is_left(offer: Offer) -> None:
    offer.server.announce = False
    offer.server.files["set.tar"] = offer.data + b"more"
    with pytest.raises(WeaksegError, match=f"it sends more than {len(offer.data)} bytes"):
        offer.fetch()
    offer.server.files["set.tar"] = offer.data
    offer.fetch()
    assert offer.contents() == WANTED


def test_a_wrong_hash_deletes_the_file(offer: Offer) -> None:
    offer.server.files["set.tar"] = bytes(len(offer.data))
    with pytest.raises(WeaksegError, match=r"set\.tar has the MD5 sum \w{32} instead of \w{32} and was deleted"):
        offer.fetch()
    assert list(offer.out.iterdir()) == []
    (offer.out / "set.tar").write_bytes(b"short")
    with pytest.raises(WeaksegError, match=r"has 5 bytes instead of \d+ and was deleted"):
        offer.fetch()
    assert list(offer.out.iterdir()) == []


def test_offline_is_said_in_one_sentence(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(WeaksegError, match=r"Connection refused\)\. Check the connection and run the same"):
            fetch("tiny", tmp_path, base_urls=[url], datasets=table(b"x"))


@pytest.mark.parametrize("base", ["file:///etc", "ftp://host/x", "/some/folder"])
def test_mirrors_are_web_addresses(tmp_path: Path, base: str) -> None:
    with pytest.raises(WeaksegError, match="is no web address: mirrors begin with http"):
        fetch("tiny", tmp_path, base_urls=[base], datasets=table(b"x"))


def test_unknown_names_list_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(WeaksegError, match=r'"voc".*voc2012, sbd, coco2014'):
        fetch("voc", tmp_path)


def test_too_small_a_disk_is_noticed_before_the_download(offer: Offer) -> None:
    with pytest.raises(WeaksegError, match=r"GB free, but set\.tar may need 1000000000\.0 GB"):
        offer.fetch(unpacked=10**18)
    assert offer.server.requests == []
    (offer.out / "set.tar").write_bytes(offer.data)
    offer.fetch(unpacked=10**18)  # it lies there and may be half unpacked: nobody knows how much is still needed
    assert offer.contents() == WANTED


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, the disk that is always full")
def test_a_disk_that_fills_up_is_named(offer: Offer) -> None:
    offer.out.mkdir()
    (offer.out / "set.tar.part").symlink_to("/dev/full")
    with pytest.raises(WeaksegError, match=r"set\.tar\.part could not be written \(No space left on device\)"):
        offer.fetch()


def test_a_file_in_place_of_the_folder_is_explained(offer: Offer) -> None:
    offer.out.write_text("a file")
    with pytest.raises(WeaksegError, match=r"folder .*data cannot be used \(File exists\)"):
        offer.fetch()


HOSTILE_NAMES = ["../evil", "/evil", "top/../../evil", "top/x/../../../evil", "..\\evil", "C:/evil", "C:evil"]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_names_outside_the_folder_are_refused(server: Server, tmp_path: Path, name: str, kind: str) -> None:
    make = tar_bytes if kind == "tar" else zip_bytes
    offer = Offer(server, tmp_path / "data", make({"top/good": b"1", name: b"2", "top/later": b"3"}), f"set.{kind}")
    with pytest.raises(WeaksegError, match="which lies outside its folder"):
        offer.fetch()
    assert offer.contents() == {"good": b"1"}
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert not (offer.out / f"set.{kind}.done").exists()


def test_names_that_no_file_can_have_are_refused(server: Server, tmp_path: Path) -> None:
    member = tarfile.TarInfo("top/name")
    member.pax_headers = {"path": "top/na\0me"}
    with pytest.raises(WeaksegError, match="which lies outside its folder"):
        Offer(server, tmp_path, tar_bytes({}, extra=member)).fetch()


@settings(max_examples=40, deadline=None)
@given(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)
    | st.text("./\\a:", min_size=1, max_size=9)
)
def test_whatever_a_name_is_nothing_lands_outside(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "deep" / "data"
        out.mkdir(parents=True)
        data = zip_bytes({name: b"x"})
        (out / "set.zip").write_bytes(data)
        try:
            fetch("tiny", out, datasets=table(data, "set.zip", folder=""))
        except WeaksegError as error:
            assert str(out) in str(error)
        assert [path.name for path in Path(folder).iterdir()] == ["deep"]
        assert [path.name for path in (Path(folder) / "deep").iterdir()] == ["data"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(server: Server, tmp_path: Path, kind: bytes) -> None:
    member = tarfile.TarInfo("top/escape")
    member.type = kind
    member.linkname = "/etc"
    offer = Offer(server, tmp_path / "data", tar_bytes({}, "w", member))
    with pytest.raises(WeaksegError, match="'top/escape', a link or device"):
        offer.fetch()
    assert offer.contents() == {}
    assert not (offer.out / "escape").is_symlink()


def test_links_in_a_zip_are_refused(server: Server, tmp_path: Path) -> None:
    link = zipfile.ZipInfo("top/escape")
    link.external_attr = 0o120777 << 16
    offer = Offer(server, tmp_path / "data", zip_bytes({}, link), "set.zip")
    with pytest.raises(WeaksegError, match="'top/escape', a link or device"):
        offer.fetch()
    assert offer.contents() == {}


@pytest.mark.parametrize("kind", ["tgz", "zip"])
def test_an_archive_that_unpacks_to_too_much_is_refused(server: Server, tmp_path: Path, kind: str) -> None:
    files = {"top/a": bytes(600_000), "top/b": bytes(600_000)}
    data = zip_bytes(files) if kind == "zip" else tar_bytes(files, "w:gz")
    offer = Offer(server, tmp_path / "data", data, f"set.{kind}")
    with pytest.raises(WeaksegError, match=r"unpacks to more than 0\.001 GB"):
        offer.fetch()
    assert list(offer.contents()) == ["a"]


def broken_inside(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes(40) + data[middle + 40 :]


@pytest.mark.parametrize(
    ("file", "data"),
    [
        ("set.tar", tar_bytes(CONTENT)[:20_000]),
        ("set.tar", b"no archive at all"),
        ("set.tgz", tar_bytes(CONTENT, "w:gz")[:20_000]),
        ("set.zip", zip_bytes(CONTENT)[:20_000]),
        ("set.zip", broken_inside(zip_bytes(CONTENT))),
    ],
)
def test_a_damaged_archive_leaves_no_half_file(server: Server, tmp_path: Path, file: str, data: bytes) -> None:
    offer = Offer(server, tmp_path / "data", data, file)
    with pytest.raises(WeaksegError, match=rf"{file} is damaged \(.+\)\. Delete it"):
        offer.fetch()
    assert offer.contents() == {}
    assert not (offer.out / f"{file}.done").exists()


def test_the_table_is_complete() -> None:
    archives = [archive for archives in DATASETS.values() for archive in archives]
    assert len({archive.file for archive in archives}) == len(archives) == 5
    for archive in archives:
        assert archive.size is not None
        assert archive.unpacked > 0
        assert len(bytes.fromhex(archive.md5 or "")) == 16
        assert all(url.endswith(f"/{archive.file}") for url in archive.urls)


# SBD


def sbd_mat(mask: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    savemat(buffer, {"GTcls": {"Boundaries": np.zeros((1, 1)), "Segmentation": mask}}, do_compression=True)
    return buffer.getvalue()


def make_voc(root: Path) -> None:
    """Five images; t1 and t2 train, v1 val, s1 and s2 without a mask of VOC."""
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for name in ("t1", "t2", "v1", "s1", "s2"):
        Image.new("RGB", (6, 4)).save(root / "JPEGImages" / f"{name}.jpg")
    for name in ("t1", "t2", "v1"):
        mask = Image.new("P", (6, 4), 3)
        mask.putpalette([0] * 768)
        mask.save(root / "SegmentationClass" / f"{name}.png")
    lists = root / "ImageSets" / "Segmentation"
    (lists / "train.txt").write_text("t1\nt2\n")
    (lists / "val.txt").write_text("v1\n")


def sbd_offer(server: Server, root: Path, names: str = "t1 v1 s1 s2", folder: str = "cls") -> Offer:
    files = {f"sbd/{folder}/{name}.mat": sbd_mat(np.full((4, 6), 7, np.uint8)) for name in names.split()}
    return Offer(server, root, tar_bytes({"sbd/img/s1.jpg": b"jpg", **files}, "w:gz"), "set.tgz")


sbd = {"install": install_sbd, "folder": "sbd/cls", "needs": ("ImageSets/Segmentation/val.txt",)}


def test_sbd_becomes_the_augmented_training_list(server: Server, tmp_path: Path) -> None:
    make_voc(tmp_path)
    sbd_offer(server, tmp_path).fetch(**sbd)
    data = read_voc(tmp_path)
    samples = {sample.name: sample for sample in data.split("train_aug")}
    assert list(samples) == ["s1", "s2", "t1", "t2"]
    values = {name: sample.mask.read() for name, sample in samples.items() if sample.mask is not None}
    assert all(mask.shape == (4, 6) for mask in values.values())
    assert {name: int(mask[0, 0]) for name, mask in values.items()} == {"s1": 7, "s2": 7, "t1": 3, "t2": 3}
    assert {path.stem for path in (tmp_path / "SegmentationClassAug").iterdir()} == {"s1", "s2", "t1", "t2"}
    assert not (tmp_path / "img").exists()


def test_sbd_keeps_what_an_interrupted_call_converted(server: Server, tmp_path: Path) -> None:
    make_voc(tmp_path)

    def stop(step: str, done: int, total: int) -> None:
        if step.startswith("Unpacking") and (tmp_path / "SegmentationClassAug" / "s1.png").exists():
            raise KeyboardInterrupt

    offer = sbd_offer(server, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        offer.fetch(progress=stop, **sbd)
    assert not (tmp_path / "ImageSets" / "Segmentation" / "train_aug.txt").exists()
    converted = (tmp_path / "SegmentationClassAug" / "s1.png").stat().st_mtime_ns
    offer.fetch(**sbd)
    assert (tmp_path / "SegmentationClassAug" / "s1.png").stat().st_mtime_ns == converted
    assert len(read_voc(tmp_path).split("train_aug")) == 4
    assert len(server.requests) == 1


def test_sbd_without_voc_is_refused_before_the_download(server: Server, tmp_path: Path) -> None:
    with pytest.raises(WeaksegError, match=r"val\.txt is missing.*fetch voc2012 into"):
        sbd_offer(server, tmp_path).fetch(**sbd)
    assert server.requests == []


def test_sbd_images_that_voc_lacks_are_reported(server: Server, tmp_path: Path) -> None:
    make_voc(tmp_path)
    with pytest.raises(WeaksegError, match=r"JPEGImages lacks 2 images of set\.tgz, x1\.jpg for one"):
        sbd_offer(server, tmp_path, "s1 x1 x2").fetch(**sbd)
    assert not (tmp_path / "ImageSets" / "Segmentation" / "train_aug.txt").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is no SBD class file"),
        (b"garbage" * 100, "is no SBD class file"),
        (sbd_mat(np.zeros((2, 2), np.uint8))[:200], "is no SBD class file"),
        (sbd_mat(np.full((2, 2), 21, np.uint8)), "values 0 to 20"),
        (sbd_mat(np.zeros((2, 2, 3), np.uint8)), "label map of two dimensions"),
        (sbd_mat(np.full((2, 2), 0.5)), "label map of two dimensions"),
    ],
)
def test_strange_class_files_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(WeaksegError, match=f"^here: x.mat.*{message}"):
        read_sbd_mask(data, "here: x.mat")


def test_a_class_file_is_read_as_it_is() -> None:
    mask = np.arange(21, dtype=np.uint8).reshape(3, 7)
    np.testing.assert_array_equal(read_sbd_mask(sbd_mat(mask), "x"), mask)
