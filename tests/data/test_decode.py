"""Image files of every kind, complete and damaged, against Pillow and numpy."""

import concurrent.futures
import io
import re
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from alexnet_jax.data import decode

SIZE_PX = 16
GREEN = (30, 200, 60)
ORIENTATION = 0x0112  # The EXIF tag.
SHORT, LONG = 3, 4  # Types of TIFF fields.


def quietly(function, *arguments):
  """Calls a function of which Pillow alone may warn."""
  with warnings.catch_warnings():
    warnings.filterwarnings("ignore", module="PIL")
    return function(*arguments)


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


def tiff(order, width, height, bits, photometric, samples, data):
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


def segment(data, marker):
  """(begin, end) of the first segment of a JPEG with this marker."""
  begin = 2
  while data[begin + 1] != marker:
    begin += 2 + struct.unpack_from(">H", data, begin + 2)[0]
  return begin, begin + 2 + struct.unpack_from(">H", data, begin + 2)[0]


def entropy_begin(data):
  """Where the entropy-coded bytes of a JPEG's first scan begin."""
  return segment(data, 0xDA)[1]


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
      ("jpeg cmyk", saved(flat("CMYK", RED_INK), "JPEG"), (254, 0, 0)),
      ("png", saved(flat("RGB"), "PNG"), GREEN),
      ("png 4 bits", png(40, 40, 4, 0, np.full((40, 20), 0x77, "u1")),
       (119,) * 3),
      ("png palette", saved(palette(), "PNG"), GREEN),
      ("png 16 bits rgb", png(40, 40, 16, 2, wide(GREEN, 3)), GREEN),
      ("gif", saved(flat("RGB"), "GIF"), GREEN),
      ("webp", saved(flat("RGB"), "WEBP"), GREEN),
      ("avif", saved(flat("RGB"), "AVIF"), GREEN),
      ("bmp", saved(flat("RGB"), "BMP"), GREEN),
      ("tiff", saved(flat("RGB"), "TIFF"), GREEN),
      ("tiff white is 0", grey_tiff("<", np.full((40, 40), 165, "u1"),
                                    photometric=0), GREY),
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
      ("png palette", saved(palette(1), "PNG"), WHITE),
      ("png palette alphas", saved(palette(b"\xff\0"), "PNG"), WHITE),
      ("png rgb key", png(40, 40, 8, 2, np.full((40, 40, 3), GREEN, "u1"),
                          bytes([0, 30, 0, 200, 0, 60])), WHITE),
      ("png 16 bits rgba", png(40, 40, 16, 6, wide((*GREEN, 0), 4)), WHITE),
      ("gif", saved(palette(), "GIF", transparency=1), WHITE),
      ("webp", saved(flat("RGBA", (*GREEN, 0)), "WEBP"), WHITE),
    ]
  ],
)  # fmt: skip
def test_transparent_parts_lie_on_white(data, expected):
  """Pillow's own conversion shows the colour below, often black."""
  assert np.abs(decoded(data) - expected).max() <= 4


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
  expected = decoded(data)
  last = range(len(data) - 1, len(data) - 26, -1)
  for length in {*range(0, len(data), len(data) // 20), *last}:
    if length < len(data) - after_pixels:
      refusal(data[:length])
    else:
      try:
        cut = decoded(data[:length])
      except decode.UnreadableError:
        continue
      np.testing.assert_array_equal(cut, expected)


def test_flipped_bytes_of_a_png_are_found():
  """Its checksums know, but Pillow looks at none of those of pixels."""
  data = saved(smooth(0, 48, 40), "PNG")
  expected = decoded(data)
  begin, end = data.index(b"IDAT") + 4, len(data) - 16
  wrong = []
  for at in range(begin, end, 9):
    try:
      image = decoded(patched(data, at, bytes([data[at] ^ 0x5A])))
    except decode.UnreadableError:
      continue
    if not np.array_equal(image, expected):
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
  "eps by pillow": saved(flat("RGB"), "EPS"),
}


@pytest.mark.parametrize("data", UNKNOWN.values(), ids=UNKNOWN)
def test_what_is_no_picture_is_named_by_how_it_begins(data):
  reason = refusal(data)
  assert "of no known kind" in reason
  assert repr(data[:16]) in reason


# Sizes.


# The central square.


def squared(picture):
  pixels = quietly(decode.square, picture, SIZE_PX)
  assert (pixels.shape, pixels.dtype) == ((SIZE_PX, SIZE_PX, 3), np.uint8)
  return pixels.astype(int)


@pytest.mark.parametrize("size", [(96, 48), (48, 96), (12, 8)])
def test_scaling_precedes_the_cut(size):
  """Pillow's own resize and crop, whose whole numbers of pixels agree."""
  picture = smooth(0, *size)
  width, height = (SIZE_PX * side // min(size) for side in size)
  left, top = (width - SIZE_PX) // 2, (height - SIZE_PX) // 2
  scaled = picture.resize((width, height), Image.Resampling.BICUBIC)
  cut = np.asarray(scaled)[top : top + SIZE_PX, left : left + SIZE_PX]
  assert np.abs(squared(picture) - cut).max() <= 1


# JPEGs that are kept as they are.


def test_zeros_before_the_end_mark_of_a_jpeg_are_no_damage():
  """Some cameras pad there, and libjpeg warns of it as of lost bytes."""
  data = saved(smooth(0, 48, 40), "JPEG")
  padded = data[:-2] + bytes(30) + data[-2:]
  found = quietly(decode.decode, padded)
  np.testing.assert_array_equal(found, quietly(decode.decode, data))


def test_threads_leave_the_filters_of_warnings_as_they_are():
  """Each would restore what another had set, in whatever program calls."""
  data = saved(smooth(0, 64, 64), "PNG")
  before = list(warnings.filters)
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    list(pool.map(decode.decode, [data] * 400))
  after, warnings.filters[:] = list(warnings.filters), before
  assert after == before


# Damage and what has no defined colours.


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_a_damaged_exif_block_spoils_no_pixels(mode):
  data = saved(smooth(0, 24, 16).convert(mode), "JPEG")
  block = b"Exif\0\0II*\0\x08\0\0\0\x09\0cut"
  size = struct.pack(">H", len(block) + 2)
  odd = data[:2] + b"\xff\xe1" + size + block + data[2:]
  np.testing.assert_array_equal(decoded(odd), decoded(data))


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
@pytest.mark.parametrize("how", ["bytes lost", "no such code"])
def test_a_jpeg_that_pillow_passes_over_is_refused(how, mode):
  """Libjpeg only warns, and Pillow and TensorFlow show a torn picture."""
  data = saved(smooth(0, 48, 40).convert(mode), "JPEG")
  middle = (segment(data, 0xDA)[1] + len(data)) // 2
  if how == "bytes lost":
    data = data[:middle] + data[middle + 60 :]
  else:
    data = patched(data, middle, b"\xff\0" * 20)
  with Image.open(io.BytesIO(data)) as image:
    image.load()
  assert re.search(r"(?i)corrupt|premature|inconsistent", refusal(data))


@pytest.mark.parametrize(
  "data",
  [
    png(40, 40, 16, 0, wide(90)),
    grey_tiff("<", wide(90)),
    tiff("<", 40, 40, 12, 1, 1, b"\x5a\x55\xa5" * 800),
    b"P5 40 40 1000\n" + struct.pack(">H", 353) * 1600,
    saved(Image.new("I", (8, 8), 90), "TIFF"),
    saved(Image.new("F", (8, 8), 90), "TIFF"),
  ],
  ids=["png", "tiff", "12 bits", "pgm", "32 bits", "float"],
)
def test_greys_of_more_than_8_bits_are_refused(data):
  """Pillow clips all over 255 to white."""
  assert refusal(data) == "its greys have more than 8 bits; convert it to 8"


def test_16_bit_colour_keys_are_refused():
  """Pillow compares them by halves."""
  key = struct.pack(">HHH", 30 * 257, 200 * 257 + 128, 60 * 257)
  data = png(40, 40, 16, 2, wide((30, 200.5, 60), 3), key)
  assert refusal(data) == "its transparent colour has 16 bits"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP"])
def test_a_bomb_is_refused(kind):
  """A small file that claims 14,000 x 14,000 px, which is over the bound."""
  data, side = saved(smooth(0, 24, 20), kind), 14_000
  if kind == "JPEG":
    begin, _ = segment(data, 0xC0)
    data = patched(data, begin + 5, struct.pack(">HH", side, side))
  elif kind == "BMP":
    data = patched(data, 18, struct.pack("<ii", side, side))
  else:
    data = png(side, side, 8, 2, bytes(100))
  assert "178956970 pixels" in refusal(data)


# JPEGs that are kept as they are.


def test_only_an_upright_colour_jpeg_of_the_size_is_plain():
  """Stored as it is, another would have other pixels: readers turn nothing."""
  picture = noise(0, SIZE_PX, SIZE_PX)
  for options in ({}, {"progressive": True}, {"exif": turned(1)}):
    data = saved(picture, "JPEG", **options)
    assert decode.is_plain_jpeg(data, SIZE_PX) is True
  for data in (
    saved(noise(0, SIZE_PX, SIZE_PX + 1), "JPEG"),
    saved(picture.convert("L"), "JPEG"),
    saved(picture.convert("CMYK"), "JPEG"),
    saved(picture, "PNG"),
    saved(picture, "JPEG", exif=turned(6)),
    saved(picture, "JPEG")[:100],
    b"",
  ):
    assert decode.is_plain_jpeg(data, SIZE_PX) is False
