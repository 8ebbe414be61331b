"""Sources of images in every format give the right images, names and labels, or say what is wrong."""

import io
import json
import logging
import pickle
import tarfile
from pathlib import Path

import av
import h5py
import numpy as np
import pytest
from PIL import Image

from pixio_robot.errors import BadInput, DataError, MissingExtra, Unreadable
from pixio_robot.pretrain.images.decoding import decode
from pixio_robot.pretrain.images.image_set import ImageSet
from pixio_robot.pretrain.images.sources import open_images

CACHE = Path("cache")  # tests run in a temporary folder


def _png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def _value(images: ImageSet, index: int) -> int:
    """Return the grey level of an image made by `_png`."""
    read = images.read(index)
    pixels = decode(read) if isinstance(read, bytes) else read
    assert (pixels == pixels[0, 0, 0]).all()
    return int(pixels[0, 0, 0])


def _values(images: ImageSet) -> list[int]:
    return [_value(images, index) for index in range(len(images))]


def _tar(path: Path, members: dict[str, bytes], kind: int = tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def _shard(path: Path, first: int, count: int, label: bool = True) -> Path:
    members = {}
    for number in range(first, first + count):
        members[f"{number:04d}.png"] = _png(number)
        if label:
            members[f"{number:04d}.cls"] = str(number % 3).encode()
    return _tar(path, members)


def test_a_shard_gives_images_labels_and_names() -> None:
    images = open_images(str(_shard(Path("data/a.tar"), 0, 7)), CACHE)
    assert len(images) == 7 and _values(images) == list(range(7))
    assert images.labels is not None and images.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert images.classes == ("0", "1", "2") and images.groups is None
    assert images.name(3) == "data/a.tar:0003.png"


def test_class_names_are_read_beside_shards() -> None:
    shard = _shard(Path("data/a.tar"), 0, 3)
    shard.with_name("classes.txt").write_text("cup\nplate\n")
    assert open_images("data", CACHE).classes == ("cup", "plate", "2")


def test_labels_may_be_json_and_may_be_missing() -> None:
    members = {
        "a.png": _png(1),
        "a.json": json.dumps({"label": 2, "caption": "x"}).encode(),
        "b.json": b"{not json",
        "b.png": _png(2),
        "c.PNG": _png(3),
        "d.txt": b"no image",
        "e/f.cls": b"1\n",
        "e/f.png": _png(4),
        "e/f.seg.png": _png(5),
    }
    images = open_images(str(_tar(Path("a.tar"), members)), CACHE)
    assert images.labels is not None and images.labels.tolist() == [2, -1, -1, 1]
    assert _values(images) == [1, 2, 3, 4] and images.name(3) == "a.tar:e/f.png"


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_found_as_webdataset_finds_them(kind: int) -> None:
    tariterators = pytest.importorskip("webdataset.tariterators")
    long = "folder-" * 11
    members = {f"{long}/{long if kind != tarfile.USTAR_FORMAT else 'x'}{i}.png": _png(i) for i in range(3)}
    members |= {"plain.png": _png(9), "plain.cls": b"1"}
    if kind != tarfile.USTAR_FORMAT:
        members |= {f"öäü-{i}.png": _png(20 + i) for i in range(2)} | {"y" * 300 + ".png": _png(30)}
    path = _tar(Path("a.tar"), members, kind)
    images = open_images(str(path), CACHE)
    with path.open("rb") as file:
        theirs = list(tariterators.group_by_keys(tariterators.tar_file_expander([{"stream": file, "url": str(path)}])))
    assert [images.name(i).removeprefix("a.tar:").removesuffix(".png") for i in range(len(images))] == [
        sample["__key__"] for sample in theirs
    ]
    assert [images.read(i) for i in range(len(images))] == [sample["png"] for sample in theirs]


def test_links_folders_and_large_sizes_are_skipped() -> None:
    with tarfile.open("a.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        for name, kind in (("folder", tarfile.DIRTYPE), ("link.png", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "y" * 200
            archive.addfile(info)
        info = tarfile.TarInfo("a.png")
        info.size = len(_png(1))
        archive.addfile(info, io.BytesIO(_png(1)))
    assert _values(open_images("a.tar", CACHE)) == [1]


def test_sparse_files_and_sizes_beyond_the_end_are_no_images() -> None:
    path = _shard(Path("a.tar"), 0, 3, label=False)
    header = 2 * 1024  # of the third image, each has one block of content
    content = bytearray(path.read_bytes())

    def changed(place: int, value: bytes) -> Path:
        block = bytearray(content[header : header + 512])
        block[place : place + len(value)] = value
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        return _written(Path("a.tar"), content[:header] + block + content[header + 512 :])

    assert _values(open_images(str(changed(156, b"S")), CACHE)) == [0, 1]
    images = open_images(str(changed(124, b"00007777777\0")), CACHE)
    assert _values(images) == [0, 1] and images.name(1) == "a.tar:0001.png"
    assert _values(open_images(str(changed(124, b"\xff" * 12)), CACHE)) == [0, 1]  # a size below 0


def _written(path: Path, content: bytes | bytearray) -> Path:
    path.write_bytes(content)
    return path


def test_brace_patterns_expand_to_files() -> None:
    for number in range(3):
        _shard(Path(f"data/train-{number:03d}.tar"), 10 * number, 4)
    images = open_images("data/train-{000..002}.tar", CACHE)
    assert _values(images) == [0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23]
    assert images.name(11) == "data/train-002.tar:0023.png"
    assert _values(open_images("data/train-*1.tar", CACHE)) == [10, 11, 12, 13]
    with pytest.raises(DataError, match=r"6 files, 3 are missing: data/train-003.tar, .*"):
        open_images("data/train-{000..005}.tar", CACHE)


def test_only_changed_shards_are_indexed_again() -> None:
    for number in range(2):
        _shard(Path(f"data/{number}.tar"), 10 * number, 4)
    before = open_images("data", CACHE)
    indices = {file: file.stat().st_mtime_ns for file in (CACHE / "images/files").glob("*.npz")}
    _shard(Path("data/1.tar"), 50, 5)
    after = open_images("data", CACHE)
    assert _values(after) == [0, 1, 2, 3, 50, 51, 52, 53, 54]
    assert after.fingerprint != before.fingerprint
    assert all(file.stat().st_mtime_ns == time for file, time in indices.items())
    assert len(list((CACHE / "images/files").glob("*.npz"))) == 3
    with pytest.raises(Unreadable):
        Path("data/0.tar").write_bytes(b"")
        before.read(0)


def test_a_copy_has_the_same_fingerprint() -> None:
    _shard(Path("one/x/a.tar"), 0, 4)
    _shard(Path("two/x/a.tar"), 0, 4)
    _shard(Path("three/x/a.tar"), 1, 4)
    one, two, three = (open_images(name, CACHE).fingerprint for name in ("one", "two", "three"))
    assert one == two != three


def test_truncated_shard_provides_its_complete_images(caplog: pytest.LogCaptureFixture) -> None:
    for number in range(2):
        _shard(Path(f"data/{number}.tar"), 10 * number, 6)
    content = Path("data/0.tar").read_bytes()
    Path("data/0.tar").write_bytes(content[: 4 * 2048 + 540])  # within the fifth image
    with caplog.at_level(logging.WARNING):
        images = open_images("data", CACHE)
    assert _values(images) == [0, 1, 2, 3, 10, 11, 12, 13, 14, 15]
    assert "data/0.tar is cut short or damaged; the 4 whole images" in caplog.text
    Path("data/1.tar").write_bytes(content[:540])
    with pytest.raises(DataError, match=r"no whole image in data/1\.tar"):
        open_images("data/1.tar", CACHE)
    damaged = bytearray(content)
    damaged[2 * 2048 + 20] ^= 1  # a header whose checksum is wrong
    Path("data/1.tar").write_bytes(damaged)
    assert _values(open_images("data/1.tar", CACHE)) == [0, 1]


def test_folders_of_images_are_labelled_by_subfolder() -> None:
    for name, value in (("b/x.png", 1), ("a/deep/y.PNG", 2), ("b/z.jpg.txt", 0), ("a/.hidden.png", 0), ("a/w.png", 3)):
        path = Path("data") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_png(value))
    images = open_images("data", CACHE)
    assert images.classes == ("a", "b") and images.labels is not None
    found = {images.name(i): (_value(images, i), int(images.labels[i])) for i in range(len(images))}
    assert found == {"data/a/deep/y.PNG": (2, 0), "data/a/w.png": (3, 0), "data/b/x.png": (1, 1)}
    Path("data/loose.png").write_bytes(_png(9))
    assert open_images("data", CACHE).labels is None
    assert open_images("data/b", CACHE).labels is None
    assert _values(open_images("data/loose.png", CACHE)) == [9]


def test_sources_are_joined_and_labels_matched_by_name() -> None:
    for name, value in (("one/cat/a.png", 1), ("one/dog/b.png", 2), ("two/dog/c.png", 3), ("two/eel/d.png", 4)):
        Path(name).parent.mkdir(parents=True)
        Path(name).write_bytes(_png(value))
    images = open_images(["one", "two", "procedural:3"], CACHE)
    assert images.classes[:3] == ("cat", "dog", "eel") and images.labels is not None
    assert images.labels[:4].tolist() == [0, 1, 1, 2] and len(images) == 7
    assert [_value(images, index) for index in range(4)] == [1, 2, 3, 4]
    assert images.name(6) == "procedural:0#2"


def test_demonstrations_provide_every_frame() -> None:
    with h5py.File("demos.hdf5", "w") as file:
        for number, length in ((0, 3), (2, 2), (10, 4)):
            frames = np.arange(length, dtype=np.uint8)[:, None, None, None] + np.full(
                (1, 4, 6, 3), 10 * number, np.uint8
            )
            file[f"data/demo_{number}/obs/agentview_image"] = frames
            file[f"data/demo_{number}/next_obs/agentview_image"] = frames
            file[f"data/demo_{number}/obs/depth"] = np.zeros((length, 4, 6, 1), np.uint8)
            file[f"data/demo_{number}/actions"] = np.zeros((length, 7))
    images = open_images("demos.hdf5", CACHE)
    assert _values(images) == [0, 1, 2, 20, 21, 100, 101, 102, 103]
    assert images.groups is not None and images.groups.tolist() == [0, 3, 5, 9]
    assert images.name(4) == "demos.hdf5:data/demo_2/obs/agentview_image#1"
    with h5py.File("empty.hdf5", "w") as file:
        file["actions"] = np.zeros(3)
    with pytest.raises(DataError, match=r"empty\.hdf5 holds no images"):
        open_images("empty.hdf5", CACHE)


def _video(path: Path, codec: str, frames: int, **options: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ramp = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (48, 1))[..., None].repeat(3, 2)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.options = 64, 48, "yuv420p", {"g": "12", **options}
        for number in range(frames):
            image = av.VideoFrame.from_ndarray(np.roll(ramp, 3 * number, axis=1), format="rgb24")
            container.mux(stream.encode(image))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {"bf": "2"}),
        ("a.mkv", "libx264", {"x264-params": "open-gop=1:bframes=3"}),
        ("a.avi", "libx264", {"bf": "2"}),  # whose container tells the wrong time stamps
        ("a.mov", "mpeg4", {"bf": "0"}),
        ("a.webm", "libvpx-vp9", {"deadline": "realtime"}),
    ],
)
def test_any_video_frame_equals_that_of_full_decoding(name: str, codec: str, options: dict[str, str]) -> None:
    path = _video(Path(name), codec, 30, **options)
    with av.open(name) as container:
        truth = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    images = open_images(str(path), CACHE)
    assert len(images) == len(truth) == 30
    for index in [29, 0, 17, 16, 18, 3, 4, 28, *range(30)]:
        assert np.array_equal(images.read(index), truth[index])
    fresh = [pickle.loads(pickle.dumps(images)).read(index) for index in (23, 11, 12, 13)]  # nothing kept
    assert all(np.array_equal(one, truth[index]) for one, index in zip(fresh, (23, 11, 12, 13), strict=True))


def test_videos_are_groups_and_broken_ones_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    _video(Path("data/a.mp4"), "mpeg4", 5)
    _video(Path("data/b.mp4"), "mpeg4", 7)
    Path("data/c.mp4").write_bytes(b"no video")
    with caplog.at_level(logging.WARNING):
        images = open_images("data", CACHE)
    assert images.groups is not None and images.groups.tolist() == [0, 5, 12]
    assert images.name(6) == "data/b.mp4#1" and "not used: data/c.mp4" in caplog.text
    with pytest.raises(DataError, match=r"c\.mp4 is not a decodable video"):
        open_images("data/c.mp4", CACHE)


def test_mixed_folders_provide_all_images() -> None:
    _shard(Path("data/shards/a.tar"), 0, 2)
    _video(Path("data/video/a.mp4"), "mpeg4", 3)
    Path("data/z.png").write_bytes(_png(7))
    Path("data/notes.txt").write_text("mine")
    images = open_images("data", CACHE)
    assert len(images) == 6 and images.groups is not None and images.groups.tolist() == [0, 1, 2, 3, 6]
    assert images.labels is not None and images.labels.tolist() == [-1, 0, 1, -1, -1, -1]


def _bag(kind: str) -> str:
    """Write colour (raw, then compressed) and depth messages, two colour ones at the same time."""
    pytest.importorskip("rosbags")
    from rosbags.typesys import Stores, get_typestore

    if kind == "bag":
        from rosbags.rosbag1 import Writer

        store, path, name = get_typestore(Stores.ROS1_NOETIC), Path("a.bag"), "a.bag"
        writer = Writer(path)
    else:
        from rosbags.rosbag2 import StoragePlugin
        from rosbags.rosbag2 import Writer as Writer2

        store, path = get_typestore(Stores.ROS2_HUMBLE), Path("recording")
        plugin = StoragePlugin.MCAP if kind == "mcap" else StoragePlugin.SQLITE3
        writer = Writer2(path, version=9, storage_plugin=plugin)
        name = "recording" if kind == "folder" else f"recording/recording.{kind}"
    types = store.types
    stamp = types["builtin_interfaces/msg/Time"](sec=0, nanosec=0)
    arguments = {"seq": 0} if kind == "bag" else {}
    header = types["std_msgs/msg/Header"](stamp=stamp, frame_id="camera", **arguments)

    def message(encoding: str, values: np.ndarray) -> object:
        data = np.frombuffer(values.tobytes(), np.uint8)
        height, width = values.shape[:2]
        image = types["sensor_msgs/msg/Image"]
        return image(header, height, width, encoding, 0, len(data) // height, data)

    with writer:
        image, compressed = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
        topics = {
            topic: writer.add_connection(topic, what, typestore=store)
            for topic, what in (("/bgr", image), ("/depth", image), ("/png", compressed))
        }

        def write(topic: str, time: int, what: object) -> None:
            serialise = store.serialize_ros1 if kind == "bag" else store.serialize_cdr
            writer.write(topics[topic], time, serialise(what, topics[topic].msgtype))

        for time, value in ((5, 1), (9, 2), (9, 3), (12, 4)):
            write("/bgr", time, message("bgr8", np.full((4, 6, 3), (value, 50, 100), np.uint8)))
            write("/depth", time, message("mono16", np.zeros((4, 6), np.uint16)))
        for time, value in ((6, 7), (10, 8)):
            data = np.frombuffer(_png(value), np.uint8)
            write("/png", time, types["sensor_msgs/msg/CompressedImage"](header, "png", data))
    return name


@pytest.mark.parametrize("kind", ["bag", "folder", "db3", "mcap"])
def test_recordings_provide_their_colour_images(kind: str) -> None:
    name = _bag(kind)
    images = open_images(name, CACHE)
    assert images.groups is not None and images.groups.tolist() == [0, 4, 6]
    blues = [images.read(index)[0, 0].tolist() for index in (3, 0, 1, 2)]
    assert blues[0] == [100, 50, 4] and sorted(each[2] for each in blues) == [1, 2, 3, 4]
    assert [_value(images, index) for index in (5, 4)] == [8, 7]
    assert images.name(5) == f"{name}:/png#1"
    assert pickle.loads(pickle.dumps(images)).read(0)[0, 0].tolist() == [100, 50, 1]


def test_recordings_need_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("a.bag").write_bytes(b"#ROSBAG V2.0\n")
    monkeypatch.setitem(__import__("sys").modules, "rosbags.highlevel", None)
    with pytest.raises(MissingExtra, match=r"pixio-robot\[recordings\]"):
        open_images("a.bag", CACHE)


def test_broken_recording_is_refused() -> None:
    pytest.importorskip("rosbags")
    Path("a.bag").write_bytes(b"#ROSBAG V2.0\n")
    with pytest.raises(DataError, match=r"a\.bag cannot be read as a recording"):
        open_images("a.bag", CACHE)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("dta", DataError, "no images at dta; .*did you mean 'data'"),
        ("nowhere/at/all", DataError, "nor its folder"),
        ("data/empty", DataError, "an empty folder"),
        ("data/texts", DataError, r"holds no images among its files \(2 of txt, 1 of no suffix\)"),
        ("data/texts/a.txt", DataError, "is not an image source"),
        ("data/a.tar.gz", DataError, "unpack it first"),
        ("data/text.tar", DataError, "no whole image"),
        ("data/none.tar", DataError, "no whole image"),
        ("data/text.hdf5", DataError, "not a complete HDF5"),
        ("procedural:0", BadInput, "procedural"),
        ("procedural:many", BadInput, "procedural"),
        ("synthetic:1:2", BadInput, "synthetic"),
        ([], BadInput, "no source"),
    ],
)
def test_sources_that_cannot_be_opened_say_why(source: str | list[str], error: type[Exception], message: str) -> None:
    Path("data/empty").mkdir(parents=True)
    Path("data/texts").mkdir()
    for name in ("texts/a.txt", "texts/b.txt", "texts/README", "a.tar.gz", "text.hdf5"):
        (Path("data") / name).write_text("text")
    Path("data/text.tar").write_text("text" * 300)
    _tar(Path("data/none.tar"), {"a.txt": b"text"})
    with pytest.raises(error, match=message):
        open_images(source, CACHE)


def test_procedural_images_are_a_function_of_seed_and_number() -> None:
    images = open_images("procedural:64:5", CACHE)
    again, other = open_images("procedural:1000:5", CACHE), open_images("procedural:64", CACHE)
    assert len(images) == 64 and len(images.classes) == 8 and images.labels is not None
    assert all(np.array_equal(images.read(index), again.read(index)) for index in range(0, 64, 5))
    assert not np.array_equal(images.read(0), other.read(0))
    images = np.stack([np.asarray(images.read(index)) for index in range(64)])
    assert images.shape == (64, 128, 128, 3) and images.dtype == np.uint8
    assert images.std(axis=(1, 2, 3)).min() > 2
    assert len({image.tobytes() for image in images}) == 64


def test_synthetic_images_are_noise() -> None:
    images = open_images("synthetic:10", CACHE)
    assert len(images) == 10 and images.labels is None
    first, second = np.asarray(images.read(0)), np.asarray(images.read(1))
    assert first.shape == (256, 256, 3) and not np.array_equal(first, second)


def test_sets_survive_pickling() -> None:
    _shard(Path("data/a.tar"), 0, 4)
    Path("data/z.png").write_bytes(_png(9))
    images = open_images(["data", "procedural:2", "synthetic:2"], CACHE)
    images.read(1)
    packed = pickle.dumps(images)
    copy = pickle.loads(packed)
    assert _values(copy.sets[0]) == [9] and _values(copy.sets[1]) == [0, 1, 2, 3]
    assert copy.sets[1].labels.tolist() == [0, 1, 2, 0]
    assert copy.labels.tolist() == images.labels.tolist()
