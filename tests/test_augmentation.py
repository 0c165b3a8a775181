"""Augmentation is a function of seed, epoch, step and image, and shows only shifted and flipped images."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.training import augmentation


def augment(tensorflow, images, flip, crop_pixels, epoch=1, step=0):
    indices = tensorflow.range(len(images), dtype=tensorflow.int32)
    step_seed = tensorflow.constant([0, 4096 * step], tensorflow.int64)
    return augmentation.augment(
        tensorflow.constant(images), indices, tensorflow.constant(epoch), step_seed, flip, crop_pixels
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
