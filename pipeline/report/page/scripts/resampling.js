"use strict";
// A photo as 32x32 pixels, as pipeline/images/reader.py makes them: the square in the middle, by Pillow's antialiased
// bicubic filter, in its fixed-point arithmetic, so that opaque images give its very pixels.

const SIDE = 32;

function bicubic(distance) {
  const x = Math.abs(distance);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
}

/** For each output pixel, the first input pixel and the weights, whole numbers in 22 fractional bits. */
function bicubicWeights(inputSize, start, end) {
  const BITS = 2 ** 22;
  const scale = (end - start) / SIDE;
  const filterScale = Math.max(scale, 1);
  const support = 2 * filterScale;
  return Array.from({ length: SIDE }, (_, index) => {
    const center = start + (index + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - support + 0.5));
    const last = Math.min(inputSize, Math.trunc(center + support + 0.5));
    const weights = Float64Array.from({ length: last - first }, (__, x) => bicubic((x + first - center + 0.5) / filterScale));
    const sum = weights.reduce((total, weight) => total + weight, 0);
    return { first, weights: weights.map((weight) => Math.trunc((weight / sum) * BITS + (weight < 0 ? -0.5 : 0.5))) };
  });
}

/** Resamples one axis of RGB values. Input lines and pixels are so far apart; output is [lines, 32, 3]. */
function resampleLines(values, lines, lineStride, pixelStride, weights) {
  const HALF = 2 ** 21;
  const result = new Uint8ClampedArray(lines * SIDE * 3);
  for (let line = 0; line < lines; line++) {
    for (let index = 0; index < SIDE; index++) {
      const { first, weights: factors } = weights[index];
      let [red, green, blue] = [HALF, HALF, HALF];
      let place = line * lineStride + first * pixelStride;
      for (let x = 0; x < factors.length; x++, place += pixelStride) {
        red += factors[x] * values[place];
        green += factors[x] * values[place + 1];
        blue += factors[x] * values[place + 2];
      }
      const target = (line * SIDE + index) * 3;
      result[target] = Math.floor(red / 2 ** 22);
      result[target + 1] = Math.floor(green / 2 ** 22);
      result[target + 2] = Math.floor(blue / 2 ** 22);
    }
  }
  return result;
}

/** RGBA pixels of a photo, row by row, as uint8 [32, 32, 3]. */
function toModelPixels(rgba, width, height) {
  const side = Math.min(width, height);
  // Pillow holds the box in single precision.
  const [left, top] = [Math.fround((width - side) / 2), Math.fround((height - side) / 2)];
  const across = bicubicWeights(width, left, Math.fround(left + side));
  const down = bicubicWeights(height, top, Math.fround(top + side));
  const narrow = resampleLines(rgba, height, width * 4, 4, across);
  const turned = resampleLines(narrow, SIDE, 3, SIDE * 3, down); // [columns, rows, 3]
  const pixels = new Uint8Array(SIDE * SIDE * 3);
  for (let row = 0; row < SIDE; row++) {
    for (let column = 0; column < SIDE; column++) {
      for (let channel = 0; channel < 3; channel++) {
        pixels[(row * SIDE + column) * 3 + channel] = turned[(column * SIDE + row) * 3 + channel];
      }
    }
  }
  return pixels;
}
