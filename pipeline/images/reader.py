"""Image files as 32x32 RGB pixels: whatever Pillow opens. Needs Pillow and numpy alone.

pixels(open_photo(Path("photo.jpg").read_bytes()))
"""

import io
import warnings
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features

from pipeline.training.cifar10 import SIDE

MAX_BYTES = 64_000_000
MAX_PIXELS = 64_000_000  # 0.5 GB while transparent parts are laid on white
WHITE = (255, 255, 255)
BRANDS = {  # of files that begin with an `ftyp` box
    "AVIF": (b"avif", b"avis"),
    "HEIC": (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"),
}
# Pillow hands EPS to Ghostscript, which would run a stranger's program; the others it identifies, but cannot read.
NOT_READ = {"EPS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF"}

Fit = Literal["crop", "pad"]

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # the limit here is lower than its own


class ImageError(ValueError):
    """An image that cannot be read. Its text is one line, a clause that follows the image's name."""


def open_photo(content: bytes) -> Image.Image:
    """The first frame of an image file: RGB, upright, its transparent parts on white.

    Colour profiles are not applied.

    Raises:
        ImageError: it is no image, damaged, too large, or of a kind that cannot be read here.
    """
    if not content:
        raise ImageError("it is empty")
    if len(content) > MAX_BYTES:
        raise ImageError(f"it has more than {MAX_BYTES:,} bytes: save it smaller")
    _check_plugins(content[:12])
    try:
        with Image.open(io.BytesIO(content), formats=_formats()) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(f"it has {image.width:,} x {image.height:,} pixels; allowed: {MAX_PIXELS:,} in all")
            image.load()
            return _rgb(ImageOps.exif_transpose(image))
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError("it is no image that Pillow opens: save it as PNG or JPEG") from None
    except Image.DecompressionBombError:
        raise ImageError(f"it has too many pixels; allowed: {MAX_PIXELS:,} in all") from None
    except Exception as error:  # of whichever decoder meets the damage first
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"it is damaged ({reason:.200}): save it anew") from None


def pixels(photo: Image.Image, fit: Fit = "crop") -> np.ndarray:
    """The photo as a model sees it, uint8 [32, 32, 3]. A photo of 32x32 pixels stays as it is.

    Args:
        photo: RGB.
        fit: `crop` takes the square in the middle, `pad` the whole photo with white beside it.
    """
    if fit == "crop":
        photo = ImageOps.fit(photo, (SIDE, SIDE), Image.Resampling.BICUBIC)
    else:  # scaled before it is padded: the square around a long strip may not fit in memory
        scale = SIDE / max(photo.size)
        width, height = (max(1, round(side * scale)) for side in photo.size)
        small = photo.resize((width, height), Image.Resampling.BICUBIC)
        photo = Image.new("RGB", (SIDE, SIDE), WHITE)
        photo.paste(small, ((SIDE - width) // 2, (SIDE - height) // 2))
    return np.asarray(photo, np.uint8)


def _rgb(image: Image.Image) -> Image.Image:
    """The image in RGB with 8 bits a channel."""
    if image.mode.startswith("I"):  # 16 bits: of PNG, TIFF or PGM; in 32 bits where Pillow has no other mode for it
        grey = np.clip(np.asarray(image, np.int64), 0, 65_535)
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ImageError("its pixels are floating-point numbers, whose range is unknown: save it with 8 or 16 bits")
    if image.mode in ("La", "RGBa") or image.has_transparency_data:
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (*WHITE, 255)), image).convert("RGB")
    if image.mode == "LAB":
        raise ImageError("its colours are L*a*b*: save it in RGB")
    return image.convert("RGB")


def _formats() -> list[str]:
    """What Pillow opens, less what must not be opened."""
    Image.init()
    return sorted(set(Image.OPEN) - NOT_READ)


def _check_plugins(start: bytes) -> None:
    """Raises ImageError if a file that begins so needs something that is not installed."""
    kind = next((kind for kind, brands in BRANDS.items() if start[4:8] == b"ftyp" and start[8:12] in brands), "")
    if kind == "AVIF" and not features.check("avif"):
        raise ImageError(
            "it is AVIF, which this Pillow was built without: install Pillow's own wheel, or save it as PNG"
        )
    if kind == "HEIC":
        try:
            import pillow_heif
        except ImportError:
            raise ImageError(
                "it is HEIC, which needs the package pillow-heif: install it, or save the photo as JPEG"
            ) from None
        pillow_heif.register_heif_opener()
