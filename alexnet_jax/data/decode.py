"""One image file of any kind: read in full, upright, in RGB, and squared."""

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

# Some formats run programs (EPS) or hold none of our pictures (fonts, video).
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF")
# Pillow's own bound: 0.5 GB in RGB. A file of 1 kB can ask for a thousand
# times as much.
MAX_PIXELS = 178_956_970
_ORIENTATION, _BITS_PER_SAMPLE, _PHOTOMETRIC = 0x0112, 0x0102, 0x0106  # Tags.
# What undoes each orientation of EXIF; 1 is upright.
_TURNS = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}
# Warnings of libjpeg that mean wrong pixels; others are of odd headers.
_DAMAGE = ("corrupt", "premature", "inconsistent")


class UnreadableError(ValueError):
  """A file that is no whole image; the text says why."""


def decode(data: bytes) -> Image.Image:
  """Returns an image file as an upright RGB image of 8 bits a channel.

  Every byte of its pixels is read, so a damaged file is found here. 16-bit
  channels are scaled, transparent parts lie on white, CMYK is turned into RGB,
  of an animation the first frame is taken. Colour profiles are not applied.

  Args:
    data: the file.

  Raises:
    UnreadableError: no image of a known kind, a damaged one, one of more than
      MAX_PIXELS pixels, or one whose values have no defined white.
  """
  if not data:
    raise UnreadableError("the file is empty")
  try:
    with _silent():
      return _decode_jpeg(data) if is_jpeg(data) else _decode_other(data)
  except (UnreadableError, MemoryError):
    raise
  except Image.UnidentifiedImageError:
    raise UnreadableError(
      f"damaged, or of no known kind; it begins with {data[:16]!r}"
    ) from None
  except Image.DecompressionBombError as e:
    raise UnreadableError(f"it has more than {MAX_PIXELS:,} pixels") from e
  # Pillow's decoders raise these and more on damaged files of each format.
  except Exception as e:
    raise UnreadableError(f"{type(e).__name__}: {e}") from e


@contextlib.contextmanager
def _silent() -> Iterator[None]:
  """Keeps Pillow's warnings of odd EXIF and of large images to itself."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    yield


def is_jpeg(data: bytes) -> bool:
  """Whether a file begins as every JPEG does."""
  return data[:2] == b"\xff\xd8"


def is_plain_jpeg(data: bytes, size_px: int) -> bool:
  """Whether a file is an upright RGB JPEG of this very size, by its header."""
  if not is_jpeg(data):
    return False
  try:
    height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
  except ValueError:
    return False
  upright = (height, width) == (size_px, size_px) and _orientation(data) == 1
  return upright and colours in ("YCbCr", "RGB")


def square(image: Image.Image, size_px: int) -> np.ndarray:
  """Returns the central square of an image (paper 2), uint8 [S, S, 3].

  The shorter side is scaled to `size_px`, by a bicubic filter that is widened
  where the image shrinks, and the square cut out of the middle.
  """
  if image.size == (size_px, size_px):
    return np.asarray(image)
  size = (size_px, size_px)
  return np.asarray(ImageOps.fit(image, size, Image.Resampling.BICUBIC))


def _orientation(data: bytes) -> int:
  """Returns how EXIF says that a JPEG lies; 1 is upright."""
  try:
    with _silent(), Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
      return image.getexif().get(_ORIENTATION, 1)
  except Exception:  # A damaged EXIF block says nothing about the pixels.
    return 1


def _decode_jpeg(data: bytes) -> Image.Image:
  # simplejpeg reports what Pillow passes over: bad codes, missing segments.
  try:
    header: Any = simplejpeg.decode_jpeg_header(data)
    height, width, colours, _ = header
    if height * width > MAX_PIXELS:
      raise Image.DecompressionBombError
    inks = colours in ("CMYK", "YCCK")
    pixels = simplejpeg.decode_jpeg(data, "CMYK" if inks else "RGB")
  except ValueError as e:
    if "extraneous" in str(e) and data != (unpadded := _unpadded(data)):
      return _decode_jpeg(unpadded)
    if any(word in str(e).lower() for word in _DAMAGE):
      raise UnreadableError(str(e)) from e
    return _decode_other(data)  # A kind of JPEG that only Pillow knows.
  if inks:
    return _decode_other(data)  # It turns inks into colours.
  return _turned(Image.fromarray(pixels), _orientation(data))


def _unpadded(data: bytes) -> bytes:
  """Returns a JPEG without zeros before its end mark; some cameras pad."""
  body, mark, rest = data.rpartition(b"\xff\xd9")
  return body.rstrip(b"\0") + mark + rest


def _decode_other(data: bytes) -> Image.Image:
  with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
    if image.format == "PNG":
      with Image.open(io.BytesIO(data)) as twin:
        twin.verify()  # Loading passes over the checksums of the pixels.
    image.load()  # Of a TIFF, this turns it.
    return _turned(_to_rgb(image), image.getexif().get(_ORIENTATION, 1))


def _turned(image: Image.Image, orientation: int) -> Image.Image:
  turn = _TURNS.get(orientation)
  return image if turn is None else image.transpose(turn)


def _to_rgb(image: Any) -> Image.Image:
  if image.mode.startswith("I;16") or (
    image.mode == "I" and image.format in ("PNG", "PPM")
  ):
    return _from_16_bits(image)
  if image.mode in ("I", "F"):
    raise UnreadableError("its 32-bit values have no defined white")
  if not image.has_transparency_data:
    return image.convert("RGB")
  key = image.info.get("transparency")
  if isinstance(key, tuple) and max(key) > 255:
    raise UnreadableError("its transparent colour has 16 bits")
  ground = Image.new("RGBA", image.size, "white")
  return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")


def _from_16_bits(image: Any) -> Image.Image:
  """Scales grey values, which Pillow would clip."""
  values, white = np.asarray(image).astype(np.uint32), 65535
  clear = values == image.info.get("transparency", -1)
  if image.format == "TIFF":
    white = 2 ** image.tag_v2[_BITS_PER_SAMPLE][0] - 1
    if image.tag_v2.get(_PHOTOMETRIC) == 0:  # White is zero.
      values = white - values
  scaled = (values * 255 + white // 2) // white
  scaled[clear] = 255
  return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")
