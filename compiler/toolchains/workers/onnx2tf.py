"""ONNX to float TensorFlow Lite, with onnx2tf and without TensorFlow.

It runs in the environment `onnx2tf`.
"""

from __future__ import annotations

from pathlib import Path


def call(request: dict[str, object]) -> dict[str, object]:
    """Convert a model twice: with its inputs' layout turned to channels last, and as it is.

    Which of them needs fewer transpositions inside depends on the model, so the caller compares.

    Args:
        request: `model`, an ONNX file of fixed shapes; `inputs`, the names of its inputs; `folder`, where the
            results go.

    Returns:
        The files: `turned` and `kept`; "" for one that could not be made, with `turned_error` and
        `kept_error`.
    """
    source, folder = str(request["model"]), Path(str(request["folder"]))
    names = [str(x) for x in list(request["inputs"])]  # type: ignore[call-overload]  # JSON: a list
    turned, turned_error = _convert(source, folder / "turned", [])
    kept, kept_error = _convert(source, folder / "kept", names)
    return {"turned": turned, "turned_error": turned_error, "kept": kept, "kept_error": kept_error}


def _convert(source: str, folder: Path, keep: list[str]) -> tuple[str, str]:
    import onnx2tf

    try:
        onnx2tf.convert(
            input_onnx_file_path=source,
            output_folder_path=str(folder),
            tflite_backend="flatbuffer_direct",
            keep_shape_absolutely_input_names=keep or None,
            # Its own simplifier is a subprocess; the model comes folded already.
            not_use_onnxsim=True,
            non_verbose=True,
            verbosity="error",
        )
    except (Exception, SystemExit) as error:  # noqa: BLE001 - it raises anything and exits by itself; reported
        return "", " ".join(f"{type(error).__name__}: {error}".split())[:300]
    found = next(iter(sorted(folder.glob("*_float32.tflite"))), None)
    return (str(found), "") if found else ("", "onnx2tf wrote no model")
