"""CIFAR-10 as published: classes, sizes, and the layout of its binary files. Imports nothing.

Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009, and its data set's web page.
"""

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")  # label order
NUM_CLASSES = len(CLASS_NAMES)
SIDE = 32  # pixels
IMAGE_SHAPE = (SIDE, SIDE, 3)  # height, width, RGB; uint8

TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILES = ("test_batch.bin",)
RECORDS_PER_FILE = 10_000
RECORD_BYTES = 1 + 3 * SIDE * SIDE  # one label, then the red, the green and the blue plane, row by row
FILE_BYTES = RECORDS_PER_FILE * RECORD_BYTES
TRAIN_IMAGES = RECORDS_PER_FILE * len(TRAIN_FILES)
TEST_IMAGES = RECORDS_PER_FILE * len(TEST_FILES)
