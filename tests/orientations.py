"""Videos stored turned and mirrored, as containers, codecs and EXIF say it, and what a player shows of them."""

from pathlib import Path

import av
import numpy as np

from tests.videos import write_video

# The eight right-angled display matrices (a b, c d): a stored picture's column p and row q are shown at column
# a p + c q and row b p + d q, counted from the lowest (ISO 14496-12, 6.2.2).
MATRICES = {
    "upright": (1, 0, 0, 1),
    "mirrored": (-1, 0, 0, 1),
    "upside down, mirrored": (1, 0, 0, -1),
    "turned by 180": (-1, 0, 0, -1),
    "turned by 90": (0, 1, -1, 0),
    "turned by 270": (0, -1, 1, 0),
    "transposed": (0, 1, 1, 0),
    "transposed the other way": (0, -1, -1, 0),
}
# The same as H.264 and HEVC say it: mirrored left to right, upside down, then turned counter-clockwise by degrees.
MESSAGES = {
    "upright": (0, 0, 0),
    "mirrored": (1, 0, 0),
    "upside down, mirrored": (0, 1, 0),
    "turned by 180": (0, 0, 180),
    "turned by 90": (0, 0, 270),
    "turned by 270": (0, 0, 90),
    "transposed": (1, 0, 90),
    "transposed the other way": (1, 0, 270),
}
EXIF = {
    "upright": 1, "mirrored": 2, "turned by 180": 3, "upside down, mirrored": 4, "transposed": 5, "turned by 90": 6,
    "transposed the other way": 7, "turned by 270": 8,
}  # fmt: skip


def shown(picture: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """A stored picture (H, W, 3) as a player shows it, pixel by pixel as the standard has it."""
    a, b, c, d = matrix
    q, p = np.mgrid[: picture.shape[0], : picture.shape[1]]
    column, row = a * p + c * q, b * p + d * q
    column, row = column - column.min(), row - row.min()
    result = np.zeros((row.max() + 1, column.max() + 1, 3), picture.dtype)
    result[row, column] = picture
    return result


def write_with_matrix(path: Path, matrix: tuple[float, float, float, float], **settings) -> str:
    """Write a video whose container holds a display matrix; mp4, mov, 3gp, mkv or webm."""
    if path.suffix in (".mkv", ".webm"):
        return write_video(path, display_matrix=matrix, **settings)
    write_video(path, **settings)
    set_box_matrix(path, matrix)
    return str(path)


def set_box_matrix(path: Path, matrix: tuple[float, ...], box: bytes = b"tkhd", offset: int = 0) -> None:
    """Overwrite the matrix in the header of the first track of an mp4 file, or of the movie (box mvhd)."""
    a, b, c, d = (round(number * 65536) for number in matrix)
    data = bytearray(path.read_bytes())
    at = data.index(box) + 4 + (40 if box == b"tkhd" else 36)  # version 0 of the box
    numbers = np.array([a, b, 0, c, d, 0, offset << 16, offset << 16, 1 << 30], dtype=">i4")
    data[at : at + 36] = numbers.tobytes()
    path.write_bytes(data)


def orientation_message(codec: str, mirror: int, flip: int, degrees: float) -> bytes:
    """A NAL unit with a display orientation message (ITU-T H.264, D.1.27; H.265, D.2.17)."""
    angle = round(degrees / 360 * 65536) % 65536
    bits = f"0{mirror}{flip}{angle:016b}" + ("0100" if codec == "h264" else "1") + "1"
    bits += "0" * (-len(bits) % 8)
    payload = int(bits, 2).to_bytes(len(bits) // 8, "big")
    body, zeros = bytearray(), 0
    for byte in bytes([47, len(payload)]) + payload + b"\x80":
        if zeros >= 2 and byte <= 3:
            body.append(3)  # emulation prevention
            zeros = 0
        body.append(byte)
        zeros = zeros + 1 if byte == 0 else 0
    return (b"\x06" if codec == "h264" else b"\x4e\x01") + bytes(body)


def write_with_messages(path: Path, messages: list[tuple[int, int, float] | None], **settings) -> str:
    """Write a video whose key pictures carry orientation messages: message i the i-th, the last one all others."""
    codec = {"libx264": "h264", "libx265": "hevc"}[settings.get("codec", "libx264")]
    plain = path.with_name(f"plain_{path.name}.mp4")
    write_video(plain, **settings)
    with av.open(str(plain)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        keys = 0
        for packet in source.demux(video=0):
            if packet.dts is None:
                continue
            new = packet
            if packet.is_keyframe:
                message = messages[min(keys, len(messages) - 1)]
                keys += 1
                if message is not None:
                    unit = orientation_message(codec, *message)
                    new = av.Packet(len(unit).to_bytes(4, "big") + unit + bytes(packet))
                    new.pts, new.dts, new.time_base, new.is_keyframe = packet.pts, packet.dts, packet.time_base, True
                    new.duration = packet.duration
            new.stream = stream
            target.mux(new)
    plain.unlink()
    return str(path)


def write_with_exif(path: Path, orientation: int, **settings) -> str:
    """Write JPEG pictures, each with an EXIF header that says how the camera was held, into an avi or mov."""
    plain = path.with_name(f"plain_{path.name}")
    write_video(plain, **{"codec": "mjpeg", "pix_fmt": "yuvj420p"} | settings)
    tiff = b"II*\0\x08\0\0\0\x01\0" + b"\x12\x01\x03\0\x01\0\0\0" + bytes([orientation, 0, 0, 0]) + bytes(4)
    exif = b"\xff\xe1" + (len(tiff) + 8).to_bytes(2, "big") + b"Exif\0\0" + tiff
    with av.open(str(plain)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is None:
                continue
            data = bytes(packet)
            new = av.Packet(data[:2] + exif + data[2:])
            new.pts, new.dts, new.time_base, new.is_keyframe = packet.pts, packet.dts, packet.time_base, True
            new.duration, new.stream = packet.duration, stream
            target.mux(new)
    plain.unlink()
    return str(path)
