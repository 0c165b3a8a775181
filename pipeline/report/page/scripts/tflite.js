"use strict";
// Reads a float .tflite file and runs it on one image. Arrays are [height, width, channels]; the batch is one image.
// Layout of the file: TensorFlow's schema.fbs, a FlatBuffer.

/** A table of a FlatBuffer; fields are numbered in the order of the schema. */
class Table {
  constructor(view, position) {
    this.view = view;
    this.position = position;
    this.vtable = position - view.getInt32(position, true);
  }

  at(field) {
    const entry = 4 + 2 * field;
    const offset = entry < this.view.getUint16(this.vtable, true) ? this.view.getUint16(this.vtable + entry, true) : 0;
    return offset && this.position + offset;
  }

  int8(field) {
    return this.at(field) && this.view.getInt8(this.at(field));
  }

  int32(field, absent = 0) {
    return this.at(field) ? this.view.getInt32(this.at(field), true) : absent;
  }

  float32(field, absent) {
    return this.at(field) ? this.view.getFloat32(this.at(field), true) : absent;
  }

  target(position) {
    return position + this.view.getUint32(position, true);
  }

  table(field) {
    return new Table(this.view, this.target(this.at(field)));
  }

  /** Start and length of a vector. */
  vector(field) {
    if (!this.at(field)) return [0, 0];
    const start = this.target(this.at(field));
    return [start + 4, this.view.getUint32(start, true)];
  }

  tables(field) {
    const [start, length] = this.vector(field);
    return Array.from({ length }, (_, index) => new Table(this.view, this.target(start + 4 * index)));
  }

  ints(field) {
    const [start, length] = this.vector(field);
    return Array.from({ length }, (_, index) => this.view.getInt32(start + 4 * index, true));
  }

  bytes(field) {
    const [start, length] = this.vector(field);
    return this.view.buffer.slice(start, start + length);
  }
}

const ACTIVATIONS = {
  0: (value) => value,
  1: (value) => Math.max(0, value),
  3: (value) => Math.min(6, Math.max(0, value)),
};

function activate(values, code) {
  const activation = ACTIVATIONS[code];
  if (!activation) throw new Error(`activation ${code} is not known here`);
  return code === 0 ? values : values.map(activation);
}

/** Where windows of a convolution or a pool start, along one axis. */
function windows(input, output, kernel, stride, isSame) {
  const padding = isSame ? Math.max(0, (output - 1) * stride + kernel - input) >> 1 : 0;
  return Array.from({ length: output }, (_, index) => index * stride - padding);
}

/** Calls back for every output position, with the window's top left corner in the input. */
function slide(input, output, kernel, strides, isSame, visit) {
  const [, height, width] = output.shape;
  const tops = windows(input.shape[1], height, kernel[0], strides[0], isSame);
  const lefts = windows(input.shape[2], width, kernel[1], strides[1], isSame);
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) visit(row * width + column, tops[row], lefts[column]);
  }
}

/** Calls back for every position of a window that lies in the input: its number in the kernel, its number in the input. */
function inside(input, kernel, top, left, visit) {
  const [, height, width] = input.shape;
  for (let y = Math.max(0, -top); y < kernel[0] && top + y < height; y++) {
    for (let x = Math.max(0, -left); x < kernel[1] && left + x < width; x++) {
      visit(y * kernel[1] + x, (top + y) * width + left + x);
    }
  }
}

const geometry = (options) => ({ isSame: options.int8(0) === 0, strides: [options.int32(2), options.int32(1)] });

function undilated(options, first) {
  if (options.int32(first, 1) !== 1 || options.int32(first + 1, 1) !== 1) throw new Error("dilation is not known here");
}

function convolution([input, filters, bias], output, options) {
  undilated(options, 4);
  const [count, ...kernel] = filters.shape;
  const channels = kernel.pop();
  if (channels !== input.shape[3]) throw new Error("a grouped convolution is not known here");
  const { isSame, strides } = geometry(options);
  const size = kernel[0] * kernel[1] * channels;
  const weights = filters.values;
  const patch = new Float32Array(size);
  const result = new Float32Array(output.size);
  slide(input, output, kernel, strides, isSame, (position, top, left) => {
    patch.fill(0);
    inside(input, kernel, top, left, (tap, place) => {
      patch.set(input.values.subarray(place * channels, (place + 1) * channels), tap * channels);
    });
    for (let filter = 0, start = 0; filter < count; filter++, start += size) {
      let sum = bias ? bias.values[filter] : 0;
      for (let index = 0; index < size; index++) sum += patch[index] * weights[start + index];
      result[position * count + filter] = sum;
    }
  });
  return activate(result, options.int8(3));
}

function depthwise([input, filters, bias], output, options) {
  undilated(options, 5);
  const [, height, width, channels] = filters.shape;
  const read = input.shape[3];
  const multiplier = channels / read;
  const { isSame, strides } = geometry(options);
  const [kernel, values, weights] = [[height, width], input.values, filters.values];
  const result = new Float32Array(output.size);
  slide(input, output, kernel, strides, isSame, (position, top, left) => {
    const sums = result.subarray(position * channels, (position + 1) * channels);
    if (bias) sums.set(bias.values);
    inside(input, kernel, top, left, (tap, place) => {
      for (let channel = 0; channel < channels; channel++) {
        const value = values[place * read + (multiplier === 1 ? channel : Math.floor(channel / multiplier))];
        sums[channel] += value * weights[tap * channels + channel];
      }
    });
  });
  return activate(result, options.int8(4));
}

const pool = (start, add, finish) => ([input], output, options) => {
  const channels = input.shape[3];
  const kernel = [options.int32(4), options.int32(3)];
  const { isSame, strides } = geometry(options);
  const result = new Float32Array(output.size).fill(start);
  slide(input, output, kernel, strides, isSame, (position, top, left) => {
    let taps = 0;
    inside(input, kernel, top, left, (_, place) => {
      taps += 1;
      for (let channel = 0; channel < channels; channel++) {
        const index = position * channels + channel;
        result[index] = add(result[index], input.values[place * channels + channel]);
      }
    });
    for (let index = position * channels; index < (position + 1) * channels; index++) {
      result[index] = finish(result[index], taps);
    }
  });
  return activate(result, options.int8(5));
};

/** Elementwise; the second array may be shorter, and is repeated: a scalar, or one value a channel. */
const elementwise = (combine) => ([first, second], output, options) => {
  const [long, short] = first.values.length >= second.values.length ? [first, second] : [second, first];
  const tail = long.shape.slice(long.shape.length - short.shape.length);
  const isRepeated = short.values.length === 1 || short.shape.every((side, axis) => side === tail[axis]);
  const isPerChannel = short.values.length === long.shape.at(-1) && short.shape.at(-1) === long.shape.at(-1);
  if (!isRepeated && !isPerChannel) throw new Error(`shapes ${first.shape} and ${second.shape} are not known here`);
  const [count, other] = [first.values.length, second.values.length];
  const result = new Float32Array(output.size);
  for (let index = 0; index < result.length; index++) {
    result[index] = combine(first.values[index % count], second.values[index % other]);
  }
  return activate(result, options.int8(0));
};

function mean([input, axes], output) {
  if (`${axes.values}` !== "1,2") throw new Error(`a mean over the axes ${axes.values} is not known here`);
  const channels = input.shape[3];
  const positions = input.values.length / channels;
  return Float32Array.from({ length: output.size }, (_, channel) => {
    let sum = 0;
    for (let position = 0; position < positions; position++) sum += input.values[position * channels + channel];
    return sum / positions;
  });
}

function dense([input, matrix, bias], output, options) {
  const [rows, columns] = matrix.shape;
  const result = Float32Array.from({ length: output.size }, (_, index) => {
    const row = index % rows;
    const start = ((index - row) / rows) * columns; // of the position: a dense layer may be applied to a map
    let sum = bias ? bias.values[row] : 0;
    for (let column = 0; column < columns; column++) {
      sum += matrix.values[row * columns + column] * input.values[start + column];
    }
    return sum;
  });
  return activate(result, options.int8(0));
}

function softmax([input], output, options) {
  if (input.shape.at(-1) !== output.size) throw new Error("a softmax of several rows is not known here");
  const greatest = input.values.reduce((most, value) => Math.max(most, value), -Infinity);
  const powers = Float64Array.from(input.values, (value) => Math.exp((value - greatest) * options.float32(0, 1)));
  const sum = powers.reduce((total, power) => total + power, 0);
  return Float32Array.from(powers, (power) => power / sum);
}

function pad([input, paddings], output) {
  const [, height, width, channels] = input.shape;
  const [before, , top, , left, , front, back] = paddings.values;
  if (input.shape.length !== 4 || before || front || back) throw new Error("padding other than of height and width is not known here");
  const result = new Float32Array(output.size);
  for (let row = 0; row < height; row++) {
    const values = input.values.subarray(row * width * channels, (row + 1) * width * channels);
    result.set(values, ((row + top) * output.shape[2] + left) * channels);
  }
  return result;
}

function concatenation(inputs, output, options) {
  const axis = (options.int32(0) + output.shape.length) % output.shape.length;
  const lengths = inputs.map(({ shape }) => shape.slice(axis).reduce((product, side) => product * side, 1));
  const result = new Float32Array(output.size);
  for (let start = 0, block = 0; start < output.size; block++) {
    for (const [index, { values }] of inputs.entries()) {
      result.set(values.subarray(block * lengths[index], (block + 1) * lengths[index]), start);
      start += lengths[index];
    }
  }
  return activate(result, options.int8(1));
}

const unary = (apply) => ([input], _, options) => Float32Array.from(input.values, (value) => apply(value, options));

/** The error function, 1.5e-7 off at most: formula 7.1.26 of Abramowitz and Stegun's handbook. */
function erf(value) {
  const x = Math.abs(value);
  const t = 1 / (1 + 0.3275911 * x);
  const sum = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t;
  return Math.sign(value) * (1 - sum * Math.exp(-x * x));
}

function gelu(x, options) {
  const isApproximate = options?.int8(0);
  const inner = isApproximate ? Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)) : erf(x / Math.SQRT2);
  return 0.5 * x * (1 + inner);
}

const OPERATIONS = {
  0: elementwise((a, b) => a + b),
  1: pool(0, (sum, value) => sum + value, (sum, taps) => sum / taps),
  2: concatenation,
  3: convolution,
  4: depthwise,
  9: dense,
  14: unary((value) => 1 / (1 + Math.exp(-value))),
  17: pool(-Infinity, Math.max, (greatest) => greatest),
  18: elementwise((a, b) => a * b),
  19: unary(ACTIVATIONS[1]),
  21: unary(ACTIVATIONS[3]),
  22: ([input]) => input.values, // reshape
  25: softmax,
  28: unary(Math.tanh),
  34: pad,
  40: mean,
  41: elementwise((a, b) => a - b),
  53: unary((value) => value), // cast
  98: unary((value, options) => (value < 0 ? options.float32(0, 0) * value : value)), // leaky ReLU
  111: unary((value) => (value < 0 ? Math.expm1(value) : value)), // ELU
  117: unary((value) => (value * Math.min(6, Math.max(0, value + 3))) / 6), // hard swish
  150: unary(gelu),
};
const ARRAYS = { 0: Float32Array, 2: Int32Array, 3: Uint8Array };

/** The model in a .tflite file: a function from uint8 [32, 32, 3] to probabilities. */
function readModel(bytes) {
  const view = new DataView(bytes.buffer);
  const model = new Table(view, view.getUint32(0, true));
  // Codes above 127 stand in the newer field alone.
  const codes = model.tables(1).map((code) => Math.max(code.int8(0), code.int32(3)));
  const buffers = model.tables(4);
  const [graph] = model.tables(2);
  const tensors = graph.tables(0).map((tensor) => {
    const shape = tensor.ints(0);
    const content = buffers[tensor.int32(2)].bytes(0);
    const ArrayOfType = ARRAYS[tensor.int8(1)];
    if (!ArrayOfType) throw new Error(`tensor type ${tensor.int8(1)} is not known here`);
    const values = content.byteLength > 0 ? new ArrayOfType(content) : null;
    return { shape, values, size: shape.reduce((product, side) => product * side, 1) };
  });
  const [input, output] = [graph.ints(1)[0], graph.ints(2)[0]];
  const steps = graph.tables(3).map((operator) => {
    const code = codes[operator.int32(0)];
    if (!OPERATIONS[code]) throw new Error(`operation ${code} is not known here`);
    const options = operator.at(4) ? operator.table(4) : null;
    return { run: OPERATIONS[code], inputs: operator.ints(1), output: operator.ints(2)[0], options };
  });
  return (pixels) => {
    tensors[input].values = pixels;
    for (const { run, inputs, output: index, options } of steps) {
      tensors[index].values = run(inputs.map((it) => (it < 0 ? null : tensors[it])), tensors[index], options);
    }
    return tensors[output].values;
  };
}
