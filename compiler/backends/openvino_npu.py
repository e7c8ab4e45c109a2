"""OpenVINO on Intel's NPU: IR with static shapes, verified on this CPU."""

from __future__ import annotations

from typing import Final

from compiler.artifacts import Artifact
from compiler.backends.openvino import OpenVino, facts_of, need_nncf
from compiler.openvino.workshop import OpenVinoWorkshop
from compiler.placement.summary import Placement, by_rules
from compiler.ports import Backend, Job, Workshop

NAME: Final = "openvino_npu"
DEVICE: Final = "NPU"


def backend() -> Backend:
    """Return the backend.

    Raises:
        MissingExtraError: NNCF is not installed.
    """
    need_nncf()
    return OpenVinoNpu()


class OpenVinoNpu(OpenVino):
    """The backend: as the CPU's, but for what is built and where it goes."""

    #: The NPU is not a CPU: what a file takes here says nothing about it.
    timed = False
    runs_in = "OpenVINO on this CPU, in place of the NPU"

    def open(self, job: Job) -> Workshop:
        """Prepare a model for compiling."""
        return OpenVinoWorkshop(job, NAME, DEVICE)

    def placement(self, artifact: Artifact, job: Job) -> Placement:
        """Return where the profile's rules say that the nodes run."""
        return by_rules(job.profile, facts_of(artifact, job, half=True))
