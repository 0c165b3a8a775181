"""The image reader: what is the same picture gives the same pixels, and what is none is refused in one line."""

import io
import subprocess
import sys
import zlib

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image, features

from pipeline.images import reader
from pipeline.images.reader import ImageError

ORIENTATION = 0x0112


def scene(width=48, height=36) -> Image.Image:
    """Smooth colours, with no symmetry."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [255 * x / (width - 1), 255 * y / (height - 1), 255 * (x + 2 * y) / (width + 2 * height)]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def read(content: bytes, fit: reader.Fit = "crop") -> np.ndarray:
    return reader.pixels(reader.open_photo(content), fit)


GREY = scene().convert("L")
PALETTE = scene().quantize(16)
HALF = scene().convert("RGBA")
HALF.putalpha(Image.fromarray(np.tile(np.repeat([0, 255], 24).astype(np.uint8), (36, 1))))
ON_WHITE = scene()
ON_WHITE.paste((255, 255, 255), (0, 0, 24, 36))
CLEAR = PALETTE.copy()
CLEAR.info["transparency"] = PALETTE.getpixel((0, 0))
CLEARED = PALETTE.convert("RGB")
IS_CLEAR = np.asarray(PALETTE) == CLEAR.info["transparency"]
CLEARED.paste((255, 255, 255), mask=Image.fromarray(IS_CLEAR))
TWINS = {  # an image in some mode, and the same in RGB
    "bilevel": (encoded(GREY.convert("1")), GREY.convert("1").convert("RGB")),
    "grey": (encoded(GREY), GREY.convert("RGB")),
    "grey with alpha": (encoded(Image.merge("LA", [GREY, HALF.getchannel("A")])), None),
    "16-bit grey PNG": (encoded(Image.fromarray(np.asarray(GREY, np.uint16) * 257)), GREY.convert("RGB")),
    "16-bit grey TIFF": (encoded(Image.fromarray(np.asarray(GREY, np.uint16) * 257), "TIFF"), GREY.convert("RGB")),
    "32-bit grey TIFF": (encoded(Image.fromarray(np.asarray(GREY, np.int32) * 257), "TIFF"), GREY.convert("RGB")),
    "palette": (encoded(PALETTE), PALETTE.convert("RGB")),
    "palette with a clear colour": (encoded(CLEAR, transparency=CLEAR.info["transparency"]), CLEARED),
    "alpha": (encoded(HALF), ON_WHITE),
    "CMYK": (encoded(scene().convert("CMYK"), "TIFF"), scene()),
    "BMP": (encoded(scene(), "BMP"), scene()),
    "lossless WebP": (encoded(scene(), "WEBP", lossless=True), scene()),
    "first frame of a GIF": (
        encoded(PALETTE, "GIF", save_all=True, append_images=[PALETTE.transpose(Image.Transpose.ROTATE_180)]),
        PALETTE.convert("RGB"),
    ),
}
GREY_ON_WHITE = GREY.convert("RGB")
GREY_ON_WHITE.paste((255, 255, 255), (0, 0, 24, 36))
TWINS["grey with alpha"] = (TWINS["grey with alpha"][0], GREY_ON_WHITE)


@pytest.mark.parametrize("name", TWINS)
def test_colour_mode_gives_the_pixels_of_its_rgb_twin(name):
    content, twin = TWINS[name]
    np.testing.assert_array_equal(read(content), read(encoded(twin)))


def test_32x32_rgb_image_passes_byte_for_byte():
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    for fit in ("crop", "pad"):
        np.testing.assert_array_equal(read(encoded(Image.fromarray(noise)), fit), noise)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientations_agree(kind):
    undo = {  # what brings an upright photo into the orientation in which it is stored
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    upright = read(encoded(scene(), kind, **options))
    for orientation, transpose in undo.items():
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        stored = encoded(scene().transpose(transpose), kind, exif=exif, **options)
        off = np.abs(read(stored).astype(int) - upright).max()
        assert off <= (5 if kind == "JPEG" else 1), orientation  # of 255; scaling rounds along x, then along y


def test_crop_takes_the_middle_and_pad_takes_all():
    strip = np.zeros((40, 120, 3), np.uint8)
    strip[:, :40], strip[:, 40:80], strip[:, 80:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    content = encoded(Image.fromarray(strip))
    assert (read(content)[:, 1:-1] == (0, 255, 0)).all()
    padded = read(content, "pad")
    assert (padded[:10] == 255).all()
    assert (padded[-10:] == 255).all()
    assert [padded[16, column].argmax() for column in (2, 16, 29)] == [0, 1, 2]


def test_scaling_is_antialiased():
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255  # one pixel wide: without antialiasing all white or all black
    assert abs(read(encoded(Image.fromarray(stripes)))[4:-4, 4:-4].astype(int) - 127).max() <= 2


@pytest.mark.parametrize("size", [(1, 1), (1, 5_000), (5_000, 1)])
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_any_shape_can_be_read(size, fit):
    assert read(encoded(Image.new("RGB", size)), fit).shape == (32, 32, 3)


def bomb() -> bytes:
    """A PNG of 900 megapixels in a kilobyte, of which only the header is true."""
    content = bytearray(encoded(Image.new("1", (8, 8))))
    content[16:24] = (30_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "it is empty"),
        (b"no image at all", "it is no image that Pillow opens"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "it is no image that Pillow opens"),
        (encoded(scene(), "JPEG")[:500], "it is damaged"),
        (encoded(scene())[:-40], "it is damaged"),
        (encoded(scene(), "TIFF")[:200], "it is "),
        (encoded(scene(), "GIF")[:900], "it is damaged"),
        (bomb(), "it has too many pixels; allowed: 64,000,000"),
        (encoded(Image.new("1", (9_000, 8_000))), "it has 9,000 x 8,000 pixels; allowed: 64,000,000"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", "it is no image"),
        (encoded(Image.fromarray(np.ones((9, 9), np.float32)), "TIFF"), "its pixels are floating-point numbers"),
        (b"\0\0\0\x18ftypheic" + bytes(100), "needs the package pillow-heif"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_read_is_refused_in_one_line(content, says, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as if it were not installed
    with pytest.raises(ImageError, match=says) as caught:
        reader.open_photo(content)
    assert "\n" not in str(caught.value)


def test_too_many_bytes_are_refused(monkeypatch):
    content = encoded(scene())
    monkeypatch.setattr(reader, "MAX_BYTES", len(content) - 1)
    with pytest.raises(ImageError, match=f"more than {len(content) - 1:,} bytes"):
        reader.open_photo(content)


def test_avif_is_read_or_says_what_is_missing(monkeypatch):
    if features.check("avif"):
        off = np.abs(read(encoded(scene(), "AVIF", quality=95)).astype(int) - read(encoded(scene()))).max()
        assert off < 16
    monkeypatch.setattr(features, "check", lambda name: False)
    with pytest.raises(ImageError, match="AVIF, which this Pillow was built without"):
        reader.open_photo(b"\0\0\0\x18ftypavif" + bytes(100))


def test_damaged_bytes_are_read_or_refused():
    random = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP"):
        whole = np.frombuffer(encoded(scene(), kind), np.uint8)
        for _ in range(40):
            content = whole.copy()
            content[random.integers(0, len(content), 8)] = random.integers(0, 256, 8)
            try:
                assert read(content.tobytes()).shape == (32, 32, 3)
            except ImageError as error:
                assert "\n" not in str(error)


def test_reader_needs_pillow_and_numpy_alone():
    loaded = "import sys, pipeline.images.reader; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", loaded], cwd=ROOT, capture_output=True, text=True).stdout.split()
    assert "PIL" in modules
    assert not {"tensorflow", "keras", "ai_edge_litert", "pydantic", "rich"} & set(modules)
