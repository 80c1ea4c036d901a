"""Image files of every kind, whole and damaged, against Pillow and numpy."""

import io
import json
import re
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from alexnet_jax.data import decode

SIZE_PX = 16
GREEN = (30, 200, 60)
ORIENTATION = 0x0112  # The EXIF tag.
SHORT, LONG = 3, 4  # Types of TIFF fields.


def quietly(function, *arguments):
  """Calls a function that must warn of nothing, whatever it catches itself."""
  with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    before = list(warnings.filters)
    result = function(*arguments)
    assert list(warnings.filters) == before
  assert [str(warning.message) for warning in warned] == []
  return result


def decoded(data):
  image = quietly(decode.decode, data)
  assert image.mode == "RGB"
  return np.asarray(image).astype(int)


def refusal(data):
  """The reason for which a file is refused: one line that names no object."""
  with pytest.raises(decode.UnreadableError) as error:
    quietly(decode.decode, data)
  reason = str(error.value)
  assert re.search(r"[a-z]{3}", reason)
  assert len(reason.splitlines()) == 1
  assert not re.search(r"0x[0-9a-f]{5}|object at|<class|<_io", reason)
  return reason


def saved(image, kind, **options):
  stream = io.BytesIO()
  image.save(stream, kind, **options)
  return stream.getvalue()


def flat(mode, colour=None):
  return Image.new(mode, (40, 40), GREEN if colour is None else colour)


def noise(seed, height, width):
  shape = (height, width, 3)
  values = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
  return Image.fromarray(values)


def smooth(seed, width, height):
  picture = noise(seed, 6, 7)
  return picture.resize((width, height), Image.Resampling.BICUBIC)


def patched(data, offset, new):
  return data[:offset] + new + data[offset + len(new) :]


# Files that Pillow does not write.


def png_chunk(name, data):
  length, crc = len(data), zlib.crc32(name + data)
  return struct.pack(">I", length) + name + data + struct.pack(">I", crc)


def png(width, height, bits, colour_type, rows, transparent=b""):
  """`rows` is an array of big-endian samples, or the bytes of all rows."""
  if isinstance(rows, np.ndarray):
    rows = b"".join(b"\0" + row.tobytes() for row in rows)
  header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
  return b"".join(
    [
      b"\x89PNG\r\n\x1a\n",
      png_chunk(b"IHDR", header),
      png_chunk(b"tRNS", transparent) if transparent else b"",
      png_chunk(b"IDAT", zlib.compress(rows, 9)),
      png_chunk(b"IEND", b""),
    ]
  )


def tiff(order, width, height, bits, photometric, samples, data, extra=()):
  """An uncompressed TIFF (TIFF 6.0, section 2) in byte order < or >."""
  fields = [
    (256, LONG, [width]),
    (257, LONG, [height]),
    (258, SHORT, [bits] * samples),
    (259, SHORT, [1]),  # No compression.
    (262, SHORT, [photometric]),  # 0: white is zero, 1: black is, 2: RGB.
    (273, LONG, [0]),  # Where the pixels begin; known below.
    (277, SHORT, [samples]),
    (278, LONG, [height]),
    (279, LONG, [len(data)]),
    *extra,
  ]
  start = 8 + 2 + 12 * len(fields) + 4
  entries, beyond = b"", b""
  for tag, kind, values in sorted(fields):
    value = b"".join(
      struct.pack(order + ("H" if kind == SHORT else "I"), v) for v in values
    )
    if tag == 273:
      size = 2 * samples if samples > 2 else 0
      value = struct.pack(order + "I", start + size)
    if len(value) > 4:
      offset = struct.pack(order + "I", start + len(beyond))
      value, beyond = offset, beyond + value
    entries += struct.pack(order + "HHI", tag, kind, len(values))
    entries += value.ljust(4, b"\0")
  magic = b"II*\0" if order == "<" else b"MM\0*"
  head = magic + struct.pack(order + "IH", 8, len(fields))
  return head + entries + bytes(4) + beyond + data


def grey_tiff(order, values, **fields):
  """A TIFF of one sample a pixel, of the bits of an array's type."""
  fields = {"bits": 8 * values.itemsize, "photometric": 1} | fields
  data = values.astype(values.dtype.newbyteorder(order)).tobytes()
  height, width = values.shape
  return tiff(order, width, height, samples=1, data=data, **fields)


def with_field(data, tag, value):
  """A little-endian TIFF with another value of one field."""
  (first,) = struct.unpack_from("<I", data, 4)
  (count,) = struct.unpack_from("<H", data, first)
  for offset in range(first + 2, first + 2 + 12 * count, 12):
    if struct.unpack_from("<H", data, offset) == (tag,):
      return patched(data, offset + 2, struct.pack("<HII", LONG, 1, value))
  raise LookupError(tag)


def segment(data, marker):
  """(begin, end) of the first segment of a JPEG with this marker."""
  begin = 2
  while data[begin + 1] != marker:
    begin += 2 + struct.unpack_from(">H", data, begin + 2)[0]
  return begin, begin + 2 + struct.unpack_from(">H", data, begin + 2)[0]


def entropy_begin(data):
  """Where the entropy-coded bytes of a JPEG's first scan begin."""
  return segment(data, 0xDA)[1]


def jpeg_of_size(data, width, height, marker=0xC0):
  begin, _ = segment(data, marker)
  return patched(data, begin + 5, struct.pack(">HH", height, width))


def without_adobe(data):
  begin, end = segment(data, 0xEE)
  return data[:begin] + data[end:]


def ycck_jpeg(inks):
  """A flat YCCK JPEG as Photoshop writes it: Adobe's inverted inks.

  Pillow writes four channels inverted and as they are; the Adobe segment then
  says that they were YCCK (its last byte, transform 2). RGB in YCC's definition
  is what the inverted inks are, less 255.
  """
  inverted = Image.new("RGB", (1, 1), tuple(inks[:3])).convert("YCbCr")
  stored = (*np.asarray(inverted)[0, 0], 255 - inks[3])
  image = flat("CMYK", tuple(int(255 - value) for value in stored))
  data = saved(image, "JPEG", quality=95, subsampling=0)
  begin, end = segment(data, 0xEE)
  assert data[begin + 4 : begin + 9] == b"Adobe"
  return patched(data, end - 1, b"\2")


def arithmetic_jpeg():
  """A JPEG of 8 x 8 px whose few arithmetic-coded bytes were made by chance."""
  data = saved(Image.new("L", (8, 8)), "JPEG", quality=5)
  parts, at = [data[:2]], 2
  while True:
    marker = data[at + 1]
    end = at + 2 + struct.unpack_from(">H", data, at + 2)[0]
    if marker == 0xC0:
      parts.append(b"\xff\xc9" + data[at + 2 : end])
    elif marker != 0xC4:  # Huffman tables.
      parts.append(data[at:end])
    if marker == 0xDA:
      return b"".join(parts) + b"\xad\xc1!\xe0&\xec\xff\xd9"
    at = end


def entry(tag, kind, count, value):
  return struct.pack("<HHII", tag, kind, count, value)


def exif(*entries, count=None):
  """An EXIF block; `count` is how many entries it promises."""
  number = len(entries) if count is None else count
  head = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", number)
  return head + b"".join(entries) + bytes(4)


def with_exif(data, block):
  size = struct.pack(">H", len(block) + 2)
  return data[:2] + b"\xff\xe1" + size + block + data[2:]


def turned(orientation):
  block = Image.Exif()
  block[ORIENTATION] = orientation
  return block


# Kinds.


def palette(transparency=None):
  image = Image.new("P", (40, 40), 1)
  image.putpalette([0, 0, 0, *GREEN])
  if transparency is not None:
    image.info["transparency"] = transparency
  return image


def wide(value, channels=None):
  """Big-endian samples of 16 bits, 40 x 40 px."""
  shape = (40, 40) if channels is None else (40, 40, channels)
  return np.full(shape, np.multiply(value, 257), ">u2")


GREY, WHITE = (90,) * 3, (255,) * 3
RED_INK = (0, 255, 255, 0)
# The inks of GREEN, if black takes what the three have in common.
GREEN_INKS = (217, 0, 178, 55)


@pytest.mark.parametrize(
  ("data", "expected"),
  [
    pytest.param(data, expected, id=name)
    for name, data, expected in [
      ("jpeg", saved(flat("RGB"), "JPEG"), GREEN),
      ("jpeg grey", saved(flat("L", 90), "JPEG"), GREY),
      ("jpeg of RGB", saved(flat("RGB"), "JPEG", keep_rgb=True), GREEN),
      ("jpeg cmyk", saved(flat("CMYK", RED_INK), "JPEG"), (254, 0, 0)),
      ("jpeg cmyk progressive",
       saved(flat("CMYK", GREEN_INKS), "JPEG", progressive=True), GREEN),
      # ISO/IEC 10918-6 inverts as Adobe does: 255 is bare paper.
      ("jpeg cmyk unmarked",
       without_adobe(saved(flat("CMYK", GREEN_INKS), "JPEG")), GREEN),
      ("jpeg ycck", ycck_jpeg(GREEN_INKS), GREEN),
      ("mpo", saved(flat("RGB"), "MPO", save_all=True,
                    append_images=[flat("RGB", (255, 0, 0))]), GREEN),
      ("png", saved(flat("RGB"), "PNG"), GREEN),
      ("png 1 bit", saved(flat("1", 1), "PNG"), WHITE),
      ("png 4 bits", png(40, 40, 4, 0, np.full((40, 20), 0x77, "u1")),
       (119,) * 3),
      ("png palette", saved(palette(), "PNG"), GREEN),
      # Pillow's own conversion clips all 16-bit greys over 255 to white.
      ("png 16 bits", png(40, 40, 16, 0, wide(90)), GREY),
      ("png 16 bits rgb", png(40, 40, 16, 2, wide(GREEN, 3)), GREEN),
      ("png 16 bits opaque", png(40, 40, 16, 6, wide((*GREEN, 255), 4)), GREEN),
      ("gif", saved(flat("RGB"), "GIF"), GREEN),
      ("webp", saved(flat("RGB"), "WEBP"), GREEN),
      ("avif", saved(flat("RGB"), "AVIF"), GREEN),
      ("bmp", saved(flat("RGB"), "BMP"), GREEN),
      ("tiff", saved(flat("RGB"), "TIFF"), GREEN),
      ("tiff cmyk", saved(flat("CMYK", RED_INK), "TIFF"), (254, 0, 0)),
      ("tiff white is 0", grey_tiff("<", np.full((40, 40), 165, "u1"),
                                    photometric=0), GREY),
      ("tiff 16 bits II", grey_tiff("<", wide(90)), GREY),
      ("tiff 16 bits MM", grey_tiff(">", wide(90)), GREY),
      # Of medical pictures, say: read as if black were 0 they are negatives.
      ("tiff 16 bits white is 0", grey_tiff("<", wide(165), photometric=0),
       GREY),
      ("tiff 16 bits rgb MM",
       tiff(">", 40, 40, 16, 2, 3, wide(GREEN, 3).tobytes()), GREEN),
      # Two greys of 1445 / 4095 in three bytes. As 16 bits they are near black.
      ("tiff 12 bits", tiff("<", 40, 40, 12, 1, 1, b"\x5a\x55\xa5" * 800),
       GREY),
      ("ppm 16 bits", b"P6 40 40 65535\n" + wide(GREEN, 3).tobytes(), GREEN),
      ("pgm 16 bits", b"P5 40 40 65535\n" + wide(90).tobytes(), GREY),
      ("pgm to 1000", b"P5 40 40 1000\n" + struct.pack(">H", 353) * 1600, GREY),
      ("pbm", b"P4 8 2\n\0\0", WHITE),
    ]
  ],
)  # fmt: skip
def test_every_kind_becomes_8_bit_rgb(data, expected):
  image = decoded(data)
  assert image.shape[2] == 3
  assert np.abs(image - expected).max() <= 4


@pytest.mark.parametrize(
  ("data", "expected"),
  [
    pytest.param(data, expected, id=name)
    for name, data, expected in [
      ("png rgba", saved(flat("RGBA", (*GREEN, 0)), "PNG"), WHITE),
      ("png half", saved(flat("RGBA", (31, 201, 61, 128)), "PNG"),
       (143, 228, 158)),
      ("png la", saved(flat("LA", (90, 0)), "PNG"), WHITE),
      ("png palette", saved(palette(1), "PNG"), WHITE),
      ("png other colour", saved(palette(0), "PNG"), GREEN),
      ("png palette alphas", saved(palette(b"\xff\0"), "PNG"), WHITE),
      ("png grey key",
       png(40, 40, 8, 0, np.full((40, 40), 90, "u1"), b"\0\x5a"), WHITE),
      ("png rgb key", png(40, 40, 8, 2, np.full((40, 40, 3), GREEN, "u1"),
                          bytes([0, 30, 0, 200, 0, 60])), WHITE),
      ("png 16 bits rgba", png(40, 40, 16, 6, wide((*GREEN, 0), 4)), WHITE),
      ("png 16 bits grey key",
       png(40, 40, 16, 0, wide(90), bytes([90, 90])), WHITE),
      ("gif", saved(palette(), "GIF", transparency=1), WHITE),
      ("webp", saved(flat("RGBA", (*GREEN, 0)), "WEBP"), WHITE),
      ("avif", saved(flat("RGBA", (*GREEN, 0)), "AVIF"), WHITE),
      ("tiff", saved(flat("RGBA", (*GREEN, 0)), "TIFF"), WHITE),
    ]
  ],
)  # fmt: skip
def test_transparent_parts_lie_on_white(data, expected):
  """Pillow's own conversion shows the colour below, often black."""
  assert np.abs(decoded(data) - expected).max() <= 4


@pytest.mark.parametrize(
  ("kind", "options"),
  [
    ("PNG", {}),
    ("BMP", {}),
    ("PPM", {}),
    ("WEBP", {"lossless": True}),
    ("TIFF", {"compression": "tiff_adobe_deflate"}),
  ],
)
@pytest.mark.parametrize("size", [(23, 17), (1, 30)])
def test_lossless_kinds_keep_every_pixel(kind, options, size):
  picture = noise(0, *size)
  data = saved(picture, kind, **options)
  np.testing.assert_array_equal(decoded(data), np.asarray(picture))


@pytest.mark.parametrize("size", [(23, 17), (1, 500)])
@pytest.mark.parametrize(
  ("mode", "options"),
  [
    ("RGB", {"subsampling": 0}),
    ("RGB", {"subsampling": 1}),
    ("RGB", {"subsampling": 2}),
    ("RGB", {"progressive": True}),
    ("RGB", {"restart_marker_blocks": 1}),
    ("L", {}),
    ("CMYK", {}),
  ],
)
def test_jpegs_are_read_as_by_pillow(size, mode, options):
  data = saved(smooth(0, *size).convert(mode), "JPEG", **options)
  with Image.open(io.BytesIO(data)) as image:
    expected = np.asarray(image.convert("RGB")).astype(int)
  assert np.abs(decoded(data) - expected).max() <= 4


def test_an_arithmetic_jpeg_is_read_as_by_pillow():
  data = arithmetic_jpeg()
  with Image.open(io.BytesIO(data)) as image:
    expected = np.asarray(image.convert("RGB")).astype(int)
  assert np.ptp(expected) > 20
  np.testing.assert_array_equal(decoded(data), expected)


@pytest.mark.parametrize("kind", ["PNG", "PGM", "TIFF"])
def test_16_bit_greys_are_scaled_and_rounded(kind):
  """White would be 254 by a shift that lacks rounding, or else grey 0 be 1."""
  values = np.linspace(0, 65535, 40 * 40).round().astype(">u2").reshape(40, 40)
  if kind == "PNG":
    data = png(40, 40, 16, 0, values)
  elif kind == "PGM":
    data = b"P5 40 40 65535\n" + values.tobytes()
  else:
    data = grey_tiff("<", values)
  expected = np.rint(values / 257.0)[..., None].repeat(3, 2)
  np.testing.assert_array_equal(decoded(data), expected)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation_is_taken(kind):
  later = [flat("RGB", (255, 0, 0)), flat("RGB", (0, 0, 255))]
  data = saved(flat("RGB"), kind, save_all=True, append_images=later)
  with Image.open(io.BytesIO(data)) as image:
    assert getattr(image, "n_frames", 1) == 3
  assert np.abs(decoded(data) - GREEN).max() <= 4


def as_shot(upright, orientation):
  """What a camera stores with each EXIF orientation (TIFF 6.0, page 36)."""
  return {
    1: upright,
    2: upright[:, ::-1],
    3: upright[::-1, ::-1],
    4: upright[::-1],
    5: upright.swapaxes(0, 1),
    6: np.rot90(upright, 1),
    7: upright[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90(upright, -1),
  }.get(orientation, upright)


@pytest.mark.parametrize("orientation", range(1, 10))
@pytest.mark.parametrize(
  ("kind", "mode"),
  [
    ("JPEG", "RGB"),
    ("JPEG", "CMYK"),
    ("PNG", "RGB"),
    # Pillow turns these itself: not twice.
    ("TIFF", "RGB"),
  ],
)
def test_a_turned_picture_is_upright(kind, mode, orientation):
  """9 is no orientation, and such a file lies as it is."""
  upright = np.zeros((16, 32, 3), np.uint8)
  upright[:8, :16], upright[:8, 16:] = 230, 170
  upright[8:, :16], upright[8:, 16:] = 90, 20
  shot = np.ascontiguousarray(as_shot(upright, orientation))
  picture = Image.fromarray(shot).convert(mode)
  image = decoded(saved(picture, kind, exif=turned(orientation)))
  assert image.shape == upright.shape
  assert np.abs(image - upright).mean() < 8


# Damage.


DAMAGED_EXIF = {
  "cut": (exif(entry(ORIENTATION, SHORT, 1, 6))[:20], False),
  "too few entries": (exif(entry(ORIENTATION, SHORT, 1, 6), count=9), True),
  "unknown type": (exif(entry(ORIENTATION, 99, 1, 6)), False),
  # Eight bytes, of BigTIFF: Pillow turns such a picture and then fails.
  "a large number": (
    exif(entry(ORIENTATION, SHORT, 1, 6), entry(0x9003, 16, 1, 0)),
    True,
  ),
  "a loop": (exif(entry(0x8769, LONG, 1, 8)), False),
}


@pytest.mark.parametrize(
  ("block", "is_turned"), DAMAGED_EXIF.values(), ids=DAMAGED_EXIF
)
@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_a_damaged_exif_block_spoils_no_pixels(mode, block, is_turned):
  """An orientation that is still to be read counts."""
  data = saved(smooth(0, 24, 16).convert(mode), "JPEG")
  expected = decoded(data)
  if is_turned:
    expected = np.rot90(expected, -1)
  np.testing.assert_array_equal(decoded(with_exif(data, block)), expected)


@pytest.mark.parametrize("tail", [b"\0", saved(noise(1, 9, 9), "JPEG")])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP"])
def test_bytes_after_an_image_are_left_alone(kind, tail):
  """Cameras and web servers add some; the picture is whole."""
  data = saved(smooth(0, 24, 20), kind)
  np.testing.assert_array_equal(decoded(data + tail), decoded(data))


def test_fill_bytes_between_segments_are_allowed():
  """Any number of 0xFF may precede a marker (ISO/IEC 10918-1, B.1.1.2)."""
  data = saved(smooth(0, 24, 20), "JPEG")
  begin, _ = segment(data, 0xC0)
  filled = data[:begin] + b"\xff\xff\xff" + data[begin:]
  np.testing.assert_array_equal(decoded(filled), decoded(data))


@pytest.mark.parametrize("what", ["a later JFIF", "an odd last coefficient"])
def test_a_header_that_is_only_odd_is_read(what):
  """Libjpeg warns of it, as of damage, and the pixels are all right."""
  data = saved(smooth(0, 24, 20), "JPEG")
  # The version of JFIF, and how far a scan goes, which is known: 63.
  at = data.index(b"JFIF\0") + 5 if "JFIF" in what else entropy_begin(data) - 2
  odd = patched(data, at, bytes([data[at] + 1]))
  np.testing.assert_array_equal(decoded(odd), decoded(data))


@pytest.mark.parametrize(
  ("mode", "kind", "options", "after_pixels"),
  [
    ("RGB", "JPEG", {}, 0),
    ("RGB", "JPEG", {"progressive": True}, 0),
    ("CMYK", "JPEG", {}, 0),
    # The end of the last block, two checksums and the chunk IEND.
    ("RGB", "PNG", {}, 2 + 4 + 4 + 12),
    ("RGB", "WEBP", {}, 0),
    ("RGB", "BMP", {}, 2),  # Rows are filled to four bytes.
    ("RGB", "TIFF", {"compression": "tiff_lzw"}, 0),
    ("RGB", "GIF", {}, 2),
  ],
)
def test_a_cut_file_is_refused(mode, kind, options, after_pixels):
  """Unless only what follows the pixels is lost. Half a picture is grey."""
  picture = smooth(0, 30, 20).convert(mode)
  data = saved(picture, kind, **options)
  whole = decoded(data)
  last = range(len(data) - 1, len(data) - 26, -1)
  for length in {*range(0, len(data), len(data) // 20), *last}:
    if length < len(data) - after_pixels:
      refusal(data[:length])
    else:
      try:
        cut = decoded(data[:length])
      except decode.UnreadableError:
        continue
      np.testing.assert_array_equal(cut, whole)


def without_a_scan(data):
  """A progressive JPEG that lacks the first approximation of a component."""
  at = data.index(b"\xff\xda\0\x08\x01\x01")
  while data[at + 7] == 0:  # Coefficients from 0 are the mean values.
    at = data.index(b"\xff\xda\0\x08\x01\x01", at + 1)
  end = at + 2
  while data[end] != 0xFF or data[end + 1] == 0:
    end += 1
  return data[:at] + data[end:]


def damage(how):
  picture = smooth(0, 48, 40)
  if how == "scan lost":
    return without_a_scan(saved(picture, "JPEG", progressive=True))
  if how == "restarts swapped":
    data = saved(picture, "JPEG", restart_marker_blocks=2)
    return data.replace(b"\xff\xd1", b"\xff\xd5")
  if how == "ycck no such code":
    data = ycck_jpeg(GREEN_INKS)
    return patched(data, entropy_begin(data) + 20, b"\xff\0" * 20)
  cmyk = how.startswith("cmyk")
  data = saved(picture.convert("CMYK") if cmyk else picture, "JPEG")
  begin = entropy_begin(data)
  middle = (begin + len(data)) // 2
  if how.endswith("bytes lost"):
    return data[:middle] + data[middle + 60 :]
  assert how.endswith("no such code")
  return patched(data, middle, b"\xff\0" * 20)


@pytest.mark.parametrize(
  "how",
  [
    "bytes lost",
    "restarts swapped",
    "cmyk no such code",
    "ycck no such code",
    "scan lost",
  ],
)
def test_a_jpeg_that_pillow_passes_over_is_refused(how):
  """Libjpeg only warns, and Pillow and TensorFlow show a torn picture."""
  data = damage(how)
  with Image.open(io.BytesIO(data)) as image:
    image.load()
  assert re.search(r"(?i)corrupt|premature|inconsistent", refusal(data))


def test_flipped_bytes_of_a_png_are_found():
  """Its checksums know, but Pillow looks at none of those of pixels."""
  data = saved(smooth(0, 48, 40), "PNG")
  whole = decoded(data)
  begin, end = data.index(b"IDAT") + 4, len(data) - 16
  wrong = []
  for at in range(begin, end, 9):
    try:
      image = decoded(patched(data, at, bytes([data[at] ^ 0x5A])))
    except decode.UnreadableError:
      continue
    if not np.array_equal(image, whole):
      wrong.append(at)
  assert wrong == []


EPS = (
  b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n"
  b"0 0 8 8 rectfill\nshowpage\n%%EOF\n"
)
UNKNOWN = {
  "html": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
  "zeros": bytes(1000),
  "pdf": saved(flat("RGB"), "PDF"),
  "eps": EPS,
  "eps with preview": (
    struct.pack("<7IHH", 0xC6D3D0C5, 32, len(EPS), 0, 0, 0, 0, 0xFFFF, 0) + EPS
  ),
  "eps by pillow": saved(flat("RGB"), "EPS"),
  "icon": saved(flat("RGB"), "ICO"),
}


@pytest.mark.parametrize("data", UNKNOWN.values(), ids=UNKNOWN)
def test_what_is_no_picture_is_named_by_how_it_begins(data):
  reason = refusal(data)
  assert "of no known kind" in reason
  assert repr(data[:16]) in reason


def test_an_empty_file_is_named():
  assert refusal(b"") == "the file is empty"


def test_no_picture_is_handed_to_ghostscript(tmp_path, monkeypatch):
  """An EPS file is a program: a `gs` that tells on its caller is not run."""
  ran = tmp_path / "ran"
  program = tmp_path / "gs"
  program.write_text(f"#!/bin/sh\necho ran > '{ran}'\n")
  program.chmod(0o755)
  monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
  monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
  for name in ["eps", "eps with preview", "eps by pillow"]:
    refusal(UNKNOWN[name])
  assert not ran.exists()
  # Pillow, if let, runs it.
  with Image.open(io.BytesIO(EPS)) as image, pytest.raises(OSError):  # noqa: PT011
    image.load()
  assert ran.exists()


@pytest.mark.parametrize(
  "data",
  [
    pytest.param(data, id=name)
    for name, data in {
      "tiff int32": saved(Image.new("I", (8, 8), 90), "TIFF"),
      "tiff float MM": grey_tiff(
        ">", np.full((8, 8), 0.5, "f4"), extra=[(339, SHORT, [3])]
      ),
    }.items()
  ],
)
def test_32_bit_greys_are_refused(data):
  """Pillow clips them to 255, which is white or black for most."""
  assert refusal(data) == "its 32-bit values have no defined white"


def test_a_16_bit_colour_key_is_refused():
  """Pillow keeps the high byte of each value and the low one of the key."""
  key = struct.pack(">HHH", 30 * 257, 200 * 257 + 128, 60 * 257)
  data = png(40, 40, 16, 2, wide((30, 200.5, 60), 3), key)
  assert refusal(data) == "its transparent colour has 16 bits"


# Sizes.


def bombs():
  """Small files of large pictures, by far and by a tenth over the bound."""
  small = smooth(0, 24, 20)
  jpeg = saved(small, "JPEG")
  cmyk = saved(small.convert("CMYK"), "JPEG")
  bmp, gif, tif = (saved(small, kind) for kind in ["BMP", "GIF", "TIFF"])
  webp = saved(small, "WEBP", save_all=True, append_images=[noise(0, 20, 24)])
  avif = saved(small, "AVIF")
  # All of its rows are there.
  whole = png(14_000, 14_000, 1, 0, bytes(14_000 * 1751))
  assert len(whole) < 50_000
  files = {
    "webp": patched(webp, webp.index(b"VP8X") + 12, b"\xfe\x3f\0\xfe\x3f\0"),
    "avif": patched(
      avif, avif.index(b"ispe") + 8, struct.pack(">II", 16_000, 16_000)
    ),
    "png whole": whole,
  }
  for side in [60_000, 14_000]:
    files |= {
      f"jpeg {side}": jpeg_of_size(jpeg, side, side),
      f"jpeg cmyk {side}": jpeg_of_size(cmyk, side, side),
      f"png {side}": png(side, side, 8, 2, bytes(100)),
      f"bmp {side}": patched(bmp, 18, struct.pack("<ii", side, side)),
      f"gif {side}": patched(gif, 6, struct.pack("<HH", side, side)),
      f"tiff {side}": with_field(with_field(tif, 256, side), 257, side),
      f"ppm {side}": b"P6 %d %d 255\n" % (side, side) + bytes(100),
    }
  return files


def test_a_bomb_is_refused_before_it_takes_memory(tmp_path):
  """The least is 0.6 GB in RGB. In a process of its own, by its peak."""
  files = bombs()
  for name, data in files.items():
    (tmp_path / name).write_bytes(data)
  code = """
import json, pathlib, re, sys
from alexnet_jax.data import decode as images

def peak():  # kB
  return int(re.findall(r"VmHWM: +(.+) kB", status.read_text().replace("\\t", " "))[0])

status = pathlib.Path("/proc/self/status")
images.decode(pathlib.Path(sys.argv[2]).read_bytes())
found = {}
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
  before = peak()
  try:
    images.decode(path.read_bytes())
    reason = "none"
  except images.UnreadableError as e:
    reason = str(e)
  found[path.name] = [reason, peak() - before]
print(json.dumps(found))
"""  # noqa: E501
  usual = tmp_path.parent / "usual.png"
  flat("RGB").save(usual)
  done = subprocess.run(
    [sys.executable, "-W", "error", "-c", code, tmp_path, usual],
    cwd=tmp_path.parent,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.stderr == ""
  found = json.loads(done.stdout)
  assert found.keys() == files.keys()
  for name, (reason, grown_kb) in found.items():
    assert "more than 178,956,970 pixels" in reason, name
    assert grown_kb < 30_000, name


# The central square.


def squared(picture):
  pixels = quietly(decode.square, picture, SIZE_PX)
  assert (pixels.shape, pixels.dtype) == ((SIZE_PX, SIZE_PX, 3), np.uint8)
  return pixels.astype(int)


def test_a_square_of_the_right_size_is_not_touched():
  picture = noise(0, SIZE_PX, SIZE_PX)
  np.testing.assert_array_equal(squared(picture), np.asarray(picture))


@pytest.mark.parametrize("side", [1, 15, 40])
def test_a_square_is_scaled_by_a_bicubic_filter(side):
  picture = noise(0, side, side)
  size = (SIZE_PX, SIZE_PX)
  expected = np.asarray(picture.resize(size, Image.Resampling.BICUBIC))
  np.testing.assert_array_equal(squared(picture), expected)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("short_px", [8, 37])
def test_what_lies_beside_the_central_square_vanishes(short_px, turned):
  """A squeezed picture, or a cut that is not central, shows red or blue."""
  half = short_px // 2
  picture = np.zeros((short_px, short_px + 2 * half, 3), np.uint8)
  picture[:, :half] = (255, 0, 0)
  picture[:, half : half + short_px] = GREEN
  picture[:, half + short_px :] = (0, 0, 255)
  if turned:
    picture = np.ascontiguousarray(picture.swapaxes(0, 1))
  off = np.abs(squared(Image.fromarray(picture)) - GREEN)
  # The scaling comes first and blends what is beside the cut into its edge.
  assert off.max() < 60
  assert off[4:-4, 4:-4].max() < 10


@pytest.mark.parametrize("size", [(96, 48), (48, 96), (12, 8)])
def test_scaling_precedes_the_cut(size):
  """Pillow's own resize and crop, whose whole numbers of pixels agree."""
  picture = smooth(0, *size)
  width, height = (SIZE_PX * side // min(size) for side in size)
  left, top = (width - SIZE_PX) // 2, (height - SIZE_PX) // 2
  whole = picture.resize((width, height), Image.Resampling.BICUBIC)
  cut = np.asarray(whole)[top : top + SIZE_PX, left : left + SIZE_PX]
  assert np.abs(squared(picture) - cut).max() <= 1


# JPEGs that are kept as they are.


@pytest.mark.parametrize(
  "options",
  [
    {},
    {"progressive": True},
    {"keep_rgb": True},
    {"exif": turned(1)},
  ],
)
def test_an_upright_colour_jpeg_of_the_size_is_plain(options):
  data = saved(noise(0, SIZE_PX, SIZE_PX), "JPEG", **options)
  assert quietly(decode.is_plain_jpeg, data, SIZE_PX) is True


@pytest.mark.parametrize(
  "data",
  [
    pytest.param(data, id=name)
    for name, data in {
      "wider": saved(noise(0, SIZE_PX, SIZE_PX + 1), "JPEG"),
      "grey": saved(Image.new("L", (SIZE_PX, SIZE_PX)), "JPEG"),
      "cmyk": saved(Image.new("CMYK", (SIZE_PX, SIZE_PX)), "JPEG"),
      "png": saved(noise(0, SIZE_PX, SIZE_PX), "PNG"),
      "empty": b"",
      "cut header": saved(noise(0, SIZE_PX, SIZE_PX), "JPEG")[:100],
    }.items()
  ],
)
def test_any_other_file_is_not_plain(data):
  """Stored as it is it would have another shape, or no colours."""
  assert quietly(decode.is_plain_jpeg, data, SIZE_PX) is False


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_turned_jpeg_is_not_plain(orientation):
  """Kept as it is it would lie on its side: readers of shards turn nothing."""
  picture = noise(0, SIZE_PX, SIZE_PX)
  data = saved(picture, "JPEG", exif=turned(orientation))
  assert quietly(decode.is_plain_jpeg, data, SIZE_PX) is False


def test_zeros_before_the_end_mark_of_a_jpeg_are_no_damage():
  """Some cameras pad there, and libjpeg warns of it as of lost bytes."""
  data = saved(smooth(0, 48, 40), "JPEG")
  padded = data[:-2] + bytes(30) + data[-2:]
  found = quietly(decode.decode, padded)
  np.testing.assert_array_equal(found, quietly(decode.decode, data))
