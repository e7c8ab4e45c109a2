"""An MLServer runtime that answers with ONNX Runtime: a cloud accelerator for one machine.

`make_repository.py` puts this file beside each model of a repository.
"""

from __future__ import annotations

import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from mlserver.utils import get_model_uri


class OnnxModel(MLModel):
    """Serves one ONNX file."""

    async def load(self) -> bool:
        """Load the file that the model's settings name."""
        self._session = onnxruntime.InferenceSession(await get_model_uri(self.settings))
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Run the model on the request's tensors."""
        feeds = {x.name: NumpyCodec.decode_input(x) for x in payload.inputs}
        names = [x.name for x in self._session.get_outputs()]
        outputs = [
            NumpyCodec.encode_output(name, value)
            for name, value in zip(names, self._session.run(names, feeds), strict=True)
        ]
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=outputs)
