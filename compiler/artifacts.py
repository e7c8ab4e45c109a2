"""What a candidate becomes: one file or several in a folder of their own."""

from __future__ import annotations

from pathlib import Path

import msgspec

from compiler.errors import CompileError
from fleet.bundle.description import TensorSpec


class Artifact(msgspec.Struct, frozen=True, kw_only=True):
    """The files that a device runtime loads.

    Attributes:
        folder: holds nothing else.
        main: the file, or folder of files, that the runtime is given; relative to the folder.
        kind: what it is, such as "onnx-qdq" or "openvino-ir".
        runtime: the device runtime that loads it.
        inputs, outputs: what it takes and gives, where that is not what the source model does; else ().
        facts: what else a device or a reader should know, such as {"edgetpu_compiled": "false"}.
        twin: an ONNX file elsewhere that computes nearly the same in ONNX Runtime: to choose among candidates
            by, where the artifact's own runtime is slow on this machine; what is chosen is still measured
            in its own.
        affordable: how many samples may be run in what its backend loads it in on this machine, where that is
            an emulation and a person waits for it; 0 for any number.
    """

    folder: Path
    main: str
    kind: str
    runtime: str
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    facts: dict[str, str] = {}
    twin: Path | None = None
    affordable: int = 0

    @property
    def path(self) -> Path:
        """Where the main file or folder is."""
        return self.folder / self.main

    def files(self) -> dict[str, Path]:
        """Return every file by its path in the folder, sorted.

        Raises:
            CompileError: there is a link, which no bundle can hold.
        """
        found = {}
        for path in sorted(self.folder.rglob("*")):
            if path.is_symlink():
                raise CompileError(f"{path.relative_to(self.folder)}: expected a file; got a link")
            if path.is_file():
                found[path.relative_to(self.folder).as_posix()] = path
        return found

    def size(self) -> int:
        """Return the bytes of all files."""
        return sum(x.stat().st_size for x in self.files().values())
