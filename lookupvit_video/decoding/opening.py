"""What a file that is opened may lead to: to nothing but itself."""

import av

# Formats that only name other files or addresses, which libav would open in their place.
_NAMES_OTHERS = {
    "applehttp",
    "concat",
    "dash",
    "hls",
    "imf",
    "lavfi",
    "rtp",
    "rtsp",
    "sdp",
    "tee",
    "webm_dash_manifest",
}
_ITSELF = sorted({name for names in av.formats_available for name in names.split(",")} - _NAMES_OTHERS)

# Options of libav. A playlist must open neither a network address nor another file; nor must references in a .mov.
SAFE = {"protocol_whitelist": "file", "format_whitelist": ",".join(_ITSELF)}
