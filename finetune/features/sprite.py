"""Sprite images: the thumbnails of many rows in one image."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

MOST_PIXELS = 8192  # of a side; TensorBoard's limit


@dataclass(frozen=True, kw_only=True)
class Sprite:
    """Thumbnails in rows of equal length.

    Attributes:
        size: height and width of a thumbnail in pixels.
        columns, lines: thumbnails side by side, and below each other.
    """

    image: Image.Image
    size: int
    columns: int
    lines: int

    def encoded(self, form: str) -> bytes:
        """The image as a file, "PNG" or "JPEG"."""
        file = io.BytesIO()
        self.image.save(file, form, **({"quality": 75} if form == "JPEG" else {}))
        return file.getvalue()


def make_sprite(thumbnails: Sequence[bytes]) -> Sprite:
    """Join square thumbnails; they are reduced if the image would be too large."""
    columns = math.ceil(math.sqrt(len(thumbnails)))
    lines = math.ceil(len(thumbnails) / columns)
    with Image.open(io.BytesIO(thumbnails[0])) as first:
        size = min(first.width, MOST_PIXELS // columns)
    image = Image.new("RGB", (columns * size, lines * size))
    for number, content in enumerate(thumbnails):
        with Image.open(io.BytesIO(content)) as picture:
            place = (number % columns * size, number // columns * size)
            image.paste(picture if picture.width == size else picture.resize((size, size)), place)
    return Sprite(image=image, size=size, columns=columns, lines=lines)
