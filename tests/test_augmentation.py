"""Augmentation is a function of seed, epoch, step and image, and shows only shifted and flipped images."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

from pipeline.training import augment_policy, augmentation
from pipeline.training.augment_policy import OPERATIONS


def augment(tensorflow, images, flip, crop_pixels, epoch=1, step=0, policy="none", strength=0.0):
    indices = tensorflow.range(len(images), dtype=tensorflow.int32)
    step_seed = tensorflow.constant([0, 4096 * step], tensorflow.int64)
    recipe = SimpleNamespace(flip=flip, crop_pixels=crop_pixels, augment_policy=policy, augment_strength=strength)
    return augmentation.augment(
        tensorflow.constant(images), indices, tensorflow.constant(epoch), step_seed, recipe
    ).numpy()


@settings(max_examples=15, deadline=None)
@given(
    n=st.integers(1, 9),
    flip=st.sampled_from(["none", "random", "alternating"]),
    crop_pixels=st.integers(0, 16),
    seed=st.integers(0, 99),
)
def test_every_augmented_image_is_a_shift_of_the_reflected_image_or_its_mirror(tensorflow, n, flip, crop_pixels, seed):
    images = np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), np.uint8)
    augmented = augment(tensorflow, images, flip, crop_pixels, epoch=seed, step=seed)
    assert augmented.shape == images.shape
    assert augmented.dtype == np.uint8
    for image, result in zip(images, augmented, strict=True):
        pad = [(crop_pixels, crop_pixels)] * 2 + [(0, 0)]
        sources = [image] if flip == "none" else [image, image[:, ::-1]]
        padded = [np.pad(source, pad, "reflect") for source in sources]
        size = 2 * crop_pixels + 1
        assert any(
            np.array_equal(p[y : y + 32, x : x + 32], result) for p in padded for y in range(size) for x in range(size)
        )


def test_without_augmentation_images_stay_as_they_are(tensorflow):
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    assert np.array_equal(augment(tensorflow, images, "none", 0), images)


def test_random_flip_flips_half_and_anew_each_step(tensorflow):
    images = np.random.default_rng(0).integers(0, 256, (1000, 32, 32, 3), np.uint8)
    first, second = ((augment(tensorflow, images, "random", 0, step=s) != images).any((1, 2, 3)) for s in (0, 1))
    assert 0.45 < first.mean() < 0.55
    assert 0.4 < np.mean(first == second) < 0.6


def test_alternating_flip_shows_both_sides_in_any_two_epochs(tensorflow):
    images = np.random.default_rng(0).integers(0, 256, (1000, 32, 32, 3), np.uint8)
    flipped = [(augment(tensorflow, images, "alternating", 0, epoch=e) != images).any((1, 2, 3)) for e in (1, 2, 3)]
    assert np.array_equal(flipped[0], ~flipped[1])
    assert np.array_equal(flipped[0], flipped[2])
    assert 0.45 < flipped[0].mean() < 0.55


def test_shifts_are_spread_evenly(tensorflow):
    images = np.zeros((4000, 32, 32, 3), np.uint8)
    images[:, 16, 16] = 255
    rows = augment(tensorflow, images, "none", 2)[..., 0].argmax(1).max(1)
    counts = np.bincount(rows, minlength=19)[14:19]
    assert counts.sum() == 4000
    assert counts.min() > 680  # of 800 expected: more than 4 standard deviations


def photos(n: int) -> np.ndarray:
    """Smooth images with some contrast and texture, uint8 [n, 32, 32, 3]."""
    random = np.random.default_rng(0)
    small = random.integers(20, 236, (n, 6, 6, 3), np.uint8)
    large = [np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC)) for image in small]
    return np.clip(np.stack(large) + random.integers(-9, 10, (n, 32, 32, 3)), 0, 255).astype(np.uint8)


def changed(tensorflow, images, name, amount):
    """All images changed by one operation of the policy."""
    operation = tensorflow.fill([len(images)], OPERATIONS.index(name))
    amounts = tensorflow.fill([len(images)], np.float32(amount))
    return augment_policy.change_colors(tensorflow.constant(images), operation, amounts).numpy()


@pytest.mark.parametrize("amount", [-1, -0.3, 0.0, 0.6, 1])
@pytest.mark.parametrize(
    ("name", "enhancer"),
    [
        ("brightness", ImageEnhance.Brightness),
        ("color", ImageEnhance.Color),
        ("contrast", ImageEnhance.Contrast),
        ("sharpness", ImageEnhance.Sharpness),
    ],
)
def test_enhancements_are_those_of_pillow(tensorflow, name, enhancer, amount):
    images = photos(8)
    theirs = [np.asarray(enhancer(Image.fromarray(image)).enhance(1 + 0.99 * amount)) for image in images]
    inner = slice(1, -1)  # Pillow leaves the border unsharpened; it rounds grey and smoothed values before the blend
    difference = np.abs(changed(tensorflow, images, name, amount).astype(int) - theirs)[:, inner, inner]
    assert difference.max() <= 2
    assert difference.mean() < 0.7
    assert (np.abs(np.array(theirs, int) - images).mean() > 0.5) == (amount != 0)


@pytest.mark.parametrize(("amount", "bits"), [(0.0, 8), (0.5, 5), (-1, 2)])
def test_posterizing_is_pillows(tensorflow, amount, bits):
    images = photos(4)
    theirs = [np.asarray(ImageOps.posterize(Image.fromarray(image), bits)) for image in images]
    assert np.array_equal(changed(tensorflow, images, "posterize", amount), theirs)


@pytest.mark.parametrize(("amount", "threshold"), [(0.0, 256), (0.5, 128), (-1, 0)])
def test_solarizing_is_pillows(tensorflow, amount, threshold):
    images = photos(4)
    theirs = [np.asarray(ImageOps.solarize(Image.fromarray(image), threshold)) for image in images]
    assert np.array_equal(changed(tensorflow, images, "solarize", amount), theirs)


def test_autocontrast_is_pillows_and_leaves_a_plain_image_alone(tensorflow):
    images = np.concatenate([photos(4) // 2 + 30, np.full((1, 32, 32, 3), 77, np.uint8)])
    theirs = np.stack([np.asarray(ImageOps.autocontrast(Image.fromarray(image))) for image in images])
    ours = changed(tensorflow, images, "autocontrast", 0.5)
    assert np.abs(ours.astype(int) - theirs).max() <= 1  # Pillow rounds down
    assert ours[:4].min() == 0
    assert ours[:4].max() == 255


def moved(tensorflow, images, name, amount):
    operation = tensorflow.constant([OPERATIONS.index(name)])
    source = augment_policy.source_pixels(operation, tensorflow.constant([amount], tensorflow.float32))
    rows, columns = (augmentation._reflect(it).numpy()[0] for it in source)
    return images[:, rows, columns]


@pytest.mark.parametrize("amount", [-0.7, 0.2, 1.0])
@pytest.mark.parametrize("name", ["shear_x", "shear_y", "translate_x", "translate_y", "rotate"])
def test_geometry_is_that_of_pillow(tensorflow, name, amount):
    images = photos(3)
    sine, cosine = np.sin(np.radians(135) * amount), np.cos(np.radians(135) * amount)
    x_of, y_of = {  # of each output pixel's source: the factors of x and y, and a shift, from the image's middle
        "shear_x": ((1, 0.99 * amount, 0), (0, 1, 0)),
        "shear_y": ((1, 0, 0), (0.99 * amount, 1, 0)),
        "translate_x": ((1, 0, 16 * amount), (0, 1, 0)),
        "translate_y": ((1, 0, 0), (0, 1, 16 * amount)),
        "rotate": ((cosine, sine, 0), (-sine, cosine, 0)),
    }[name]
    affine = [(a, b, c + 16 - 16 * a - 16 * b) for a, b, c in (x_of, y_of)]
    transform = (Image.Transform.AFFINE, [*affine[0], *affine[1]], Image.Resampling.NEAREST)
    theirs = np.stack([np.asarray(Image.fromarray(image).transform((32, 32), *transform)) for image in images])
    ours, inside = moved(tensorflow, images, name, amount), theirs.any(-1)  # Pillow fills with black
    assert inside.mean() > 0.4
    assert (ours == theirs)[inside].mean() > 0.96  # a source between two pixels may be rounded to either
    assert not np.array_equal(ours, images)


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_compiled_policy_changes_the_same_pixels(tensorflow, strength):
    images = np.random.default_rng(0).integers(0, 256, (512, 32, 32, 3), np.uint8)
    operation, amount = augment_policy.draw(tensorflow.constant(512), tensorflow.constant([0, 7], "int64"), strength)
    arguments = (tensorflow.constant(images), operation, amount)
    assert np.array_equal(
        augment_policy.change_colors(*arguments), augment_policy.change_colors.__wrapped__(*arguments)
    )
    compiled, plain = (
        change(operation, amount) for change in (augment_policy.source_pixels, augment_policy.source_pixels.__wrapped__)
    )
    assert np.array_equal(compiled, plain)


def test_identity_of_the_policy_changes_nothing(tensorflow):
    images = photos(3)
    assert np.array_equal(changed(tensorflow, images, "identity", 0.9), images)
    assert np.array_equal(moved(tensorflow, images, "identity", 0.9), images)
    assert np.array_equal(changed(tensorflow, images, "rotate", 0.9), images)
    assert np.array_equal(moved(tensorflow, images, "color", 0.9), images)


def test_policy_draws_every_operation_evenly_anew_each_step_and_within_its_strength(tensorflow):
    seeds = [tensorflow.constant([0, step], tensorflow.int64) for step in (0, 1)]
    (operation, amount), (later, _) = (augment_policy.draw(tensorflow.constant(13_000), it, 0.5) for it in seeds)
    counts = np.bincount(operation, minlength=len(OPERATIONS))
    assert len(counts) == len(OPERATIONS)
    assert counts.min() > 850  # of 1,000 expected: 5 standard deviations
    assert 0.05 < np.mean(operation == later) < 0.1  # 1 / 13
    assert -0.5 <= np.min(amount) < -0.49
    assert 0.49 < np.max(amount) < 0.5


def test_policy_is_a_function_of_seed_and_step(tensorflow):
    images = photos(64)
    first, again, later = (
        augment(tensorflow, images, "alternating", 4, step=step, policy="trivial", strength=0.5) for step in (3, 3, 4)
    )
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, later)
    plain = augment(tensorflow, images, "alternating", 4, step=3)
    same = (first == plain).all((1, 2, 3))
    assert 0 < same.mean() < 0.4  # those whose operation is the identity, or changed nothing
