"""Converts one run to LiteRT and evaluates the files: `python -m pipeline.export RUN`.

All choices and limits use the validation split. The test split is read last, by the files that were written.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.config import params
from pipeline.conversion import exported, micro
from pipeline.conversion.evaluation import Runtime, evaluate_files, violations
from pipeline.records import exports, files, record
from pipeline.records.record import Record
from pipeline.splits import read_test, read_train_val
from pipeline.system import command
from pipeline.system.command import PipelineError
from pipeline.system.tensorflow_import import import_tensorflow

if TYPE_CHECKING:
    import keras

ONNX_FOLDER = Path("exports")  # not a result: two conversions differ in names that are made up


def main() -> None:
    """Exports the run named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.export", description=__doc__.partition("\n")[0])
    parser.add_argument("run", help="a run of params.yaml")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="litert",
        help=f"litert, the default: results/RUN/export/; onnx: {ONNX_FOLDER}/RUN.onnx",
    )
    arguments = parser.parse_args()
    config = params.read()
    log = record.load_finished(config.check_run(arguments.run))
    import_tensorflow()
    import tensorflow as tf

    from pipeline.evaluation import inference

    tf.config.set_visible_devices([], "GPU")  # what the files are compared with runs on the CPU, as they do
    FORMATS[arguments.format](log, inference.load_model(log.model_file, log.run, log.training.model), config)


def export_litert(log: Record, model: keras.Model, config: params.Params) -> None:
    """Writes the float32 and, where every layer allows it, the int8 file, and `export.json` with what they are worth.

    Raises:
        PipelineError: a layer cannot be converted; the message names it.
    """
    from pipeline.conversion import litert
    from pipeline.evaluation import inference
    from pipeline.system import device

    train, val = read_train_val(config.data)
    drawn = np.random.default_rng(config.data.split_seed).permutation(len(train.images))
    calibration = train.images[np.sort(drawn[: config.export.calibration_images])]
    contents: dict[str, bytes] = {}
    runtimes: dict[str, Runtime] = {}
    without_int8 = ""
    for kind in exports.FILES:
        try:
            content = litert.int8(model, calibration) if kind == "int8" else litert.float32(model)
            runtimes[kind], contents[kind] = litert.load(content, exported.THREADS), content
        except litert.ConversionError as error:
            if kind == "float32":
                raise PipelineError(f"{log.run} cannot be exported: {error}") from None
            without_int8 = str(error)
    results = evaluate_files(model, runtimes, val, "val")
    for kind, content in contents.items():
        results[kind] |= {"bytes": len(content), "sha256": files.sha256_of(content)}
    gates = violations(config.export, log.run, results)
    for kind, measured in evaluate_files(model, runtimes, read_test(config.data), "test").items():
        results[kind] |= measured
    if "int8" in contents:
        results["int8"]["arena_bytes"] = micro.arena_bytes(contents["int8"])
    export = {
        "model_sha256": files.sha256(log.model_file),
        **results,
        **({} if "int8" in results else {"int8": None}),
        "without_int8": without_int8,
        "calibration_images": len(calibration),
        "violations": gates,
    }
    latency = {kind: inference.latency_ms(runtime.predict) for kind, runtime in runtimes.items()}
    speed = {
        "latency_ms": latency,
        "threads": exported.THREADS,
        "processor": device.processor(),
        "processor_model": device.processor_model(),
        "exported_ms": record.now_ms(),
    }
    folder = exports.folder(log.run)
    shutil.rmtree(folder, ignore_errors=True)  # an int8 file of an earlier model, say
    folder.mkdir(parents=True)
    for kind, content in contents.items():
        files.write(folder / exports.FILES[kind], content)
    files.write_json(folder / "speed.json", speed)
    files.write_json(folder / "export.json", export)  # last: it makes the export complete
    show(log.run, results, latency)
    if "int8" in results and results["int8"]["arena_bytes"] is None:
        print(
            "arena_bytes is unknown: TFLite Micro cannot run the file, or is not installed (`make setup-export`, Linux)"
        )
    for line in ([f"without int8: {without_int8}"] if without_int8 else []) + gates:
        print(line)


def export_onnx(log: Record, model: keras.Model, config: params.Params) -> None:
    """Writes an ONNX file and shows what it is worth. Raises PipelineError as `export_litert`."""
    from pipeline.conversion import onnx_file
    from pipeline.evaluation import inference

    path = ONNX_FOLDER / f"{log.run}.onnx"
    try:
        content = onnx_file.convert(model)
        runtimes: dict[str, Runtime] = {"onnx": onnx_file.OnnxModel(content, exported.THREADS)}
    except ValueError as error:
        raise PipelineError(f"{log.run} cannot be exported: {error}") from None
    _, val = read_train_val(config.data)
    results = evaluate_files(model, runtimes, val, "val")
    for kind, measured in evaluate_files(model, runtimes, read_test(config.data), "test").items():
        results[kind] |= measured
    results["onnx"]["bytes"] = len(content)
    path.parent.mkdir(exist_ok=True)
    files.write(path, content)
    show(log.run, results, {"onnx": inference.latency_ms(runtimes["onnx"].predict)})
    print(path)


def show(run: str, results: dict[str, dict[str, Any]], latency_ms: dict[str, float]) -> None:
    """Prints a row for the model and for each of its files."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for name in (run, "val. %", "test %", "same class %", "bytes", "ms"):
        table.add_column(name, justify="left" if name == run else "right", no_wrap=True)
    for kind, row in results.items():
        percent = [row.get(key) for key in ("val_accuracy", "test_accuracy", "test_agreement")]
        cells = ["" if value is None else f"{100 * value:.2f}" for value in percent]
        table.add_row(kind, *cells, f"{row['bytes']:,}" if "bytes" in row else "", str(latency_ms.get(kind, "")))
    Console(highlight=False).print(table)


FORMATS = {"litert": export_litert, "onnx": export_onnx}

if __name__ == "__main__":
    command.run(main)
