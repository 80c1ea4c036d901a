"""Decodes an image file of any kind: upright, in RGB, as a square."""

import io
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

# Other formats run programs (EPS) or hold no pictures of ours (fonts, video).
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF")
# Pillow's own bound: 0.5 GB in RGB. A file of 1 kB can claim far more.
_MAX_PIXELS = 178_956_970
_ORIENTATION = 0x0112  # The EXIF tag.
# libjpeg's warnings that mean wrong pixels; its others are about headers.
_DAMAGE = ("corrupt", "premature", "inconsistent")


class UnreadableError(ValueError):
  """The file is not a complete image; the text says why."""


def decode(data: bytes) -> Image.Image:
  """Decodes an image file into an upright RGB image with 8 bits per channel.

  All pixels are read, so damage is found here. Transparent parts become white,
  CMYK is converted, and of an animation the first frame is taken. Colour
  profiles are not applied.

  Raises UnreadableError if the file is damaged, of an unknown kind, has more
  than _MAX_PIXELS pixels, or greys of more than 8 bits.
  """
  try:
    return _decode_jpeg(data) if is_jpeg(data) else _decode_other(data)
  except (UnreadableError, MemoryError):
    raise
  except Image.UnidentifiedImageError:
    raise UnreadableError(
      f"damaged, or of no known kind; it begins with {data[:16]!r}"
    ) from None
  except Exception as e:  # Pillow raises many kinds for damaged files.
    raise UnreadableError(f"{type(e).__name__}: {e}") from e


def is_jpeg(data: bytes) -> bool:
  """Returns whether a file begins as a JPEG."""
  return data[:2] == b"\xff\xd8"


def is_plain_jpeg(data: bytes, size_px: int) -> bool:
  """Returns whether a sound file is an upright colour JPEG of this size."""
  if not is_jpeg(data):
    return False
  try:
    height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
  except ValueError:
    return False
  same_size = (height, width) == (size_px, size_px)
  return same_size and colours in ("YCbCr", "RGB") and _orientation(data) == 1


def square(image: Image.Image, size_px: int) -> np.ndarray:
  """Returns the central square, uint8 [size_px, size_px, 3] (paper, sec. 2).

  A bicubic filter scales the shorter side to `size_px`.
  """
  size = (size_px, size_px)
  if image.size != size:
    image = ImageOps.fit(image, size, Image.Resampling.BICUBIC)
  return np.asarray(image)


def _orientation(data: bytes) -> int:
  """Returns the EXIF orientation of a JPEG."""
  try:
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
      return image.getexif().get(_ORIENTATION, 1)
  except Exception:  # A damaged EXIF block does not damage the pixels.
    return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
  if orientation == 1:  # Pillow would copy it.
    return image
  image.getexif()[_ORIENTATION] = orientation
  return ImageOps.exif_transpose(image)


def _decode_jpeg(data: bytes) -> Image.Image:
  # simplejpeg reports damage that Pillow ignores: bad codes, missing segments.
  try:
    header: Any = simplejpeg.decode_jpeg_header(data)
    height, width, colours, _ = header
    if height * width > _MAX_PIXELS:
      return _decode_other(data)  # Pillow refuses it.
    if colours in ("CMYK", "YCCK"):
      simplejpeg.decode_jpeg(data, "CMYK")
      return _decode_other(data)  # Pillow converts it to RGB.
    pixels = simplejpeg.decode_jpeg(data, "RGB")
  except ValueError as e:
    if "extraneous" in str(e) and data != (unpadded := _unpadded(data)):
      return _decode_jpeg(unpadded)
    if any(word in str(e).lower() for word in _DAMAGE):
      raise UnreadableError(str(e)) from e
    return _decode_other(data)  # Pillow reads more kinds of JPEG.
  return _upright(Image.fromarray(pixels), _orientation(data))


def _unpadded(data: bytes) -> bytes:
  """Removes zeros before a JPEG's end mark; some cameras write them."""
  body, mark, rest = data.rpartition(b"\xff\xd9")
  return body.rstrip(b"\0") + mark + rest


def _decode_other(data: bytes) -> Image.Image:
  with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
    if image.format == "PNG":
      with Image.open(io.BytesIO(data)) as twin:
        twin.verify()  # load() does not compare the checksums of the pixels.
    return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
  """Returns an opened image as `decode` does; it may raise any error."""
  image.load()  # This makes a TIFF upright.
  return _upright(_to_rgb(image), image.getexif().get(_ORIENTATION, 1))


def _to_rgb(image: Any) -> Image.Image:
  if image.mode[0] in "IF":  # Pillow would clip them to 255.
    raise UnreadableError("its greys have more than 8 bits; convert it to 8")
  if not image.has_transparency_data:
    return image.convert("RGB")
  key = image.info.get("transparency")
  if isinstance(key, tuple) and max(key) > 255:
    raise UnreadableError("its transparent colour has 16 bits")
  ground = Image.new("RGBA", image.size, "white")
  return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
