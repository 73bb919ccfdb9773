"""Who is measured: this library and what one would use instead, each a function from a job to a callable.

A system that is not installed, or cannot do a job, raises `Unavailable` and says why.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from altclip_fast.dispatch import use_backend
from altclip_fast.models.joint import DualEncoder
from altclip_fast.runtime import Runtime

from .clock import on_gpu
from .workloads import Job

Embed = Callable[[dict[str, Tensor]], Tensor]


class Unavailable(Exception):
    """Why a system cannot do a job here."""


class Running(NamedTuple):
    """A system that is ready: inputs -> embeddings [B, D]; how it was set up; and how it is called.

    Attributes:
        around: what it is called within; entered outside of what is timed.
        from_host: its inputs lie in the host's memory, whatever it runs on.
    """

    embed: Embed
    backend: str
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    from_host: bool = False

    def inputs(self, job: Job) -> list[dict[str, Tensor]]:
        """The batches of a job, where it takes them from."""
        return (replace(job, device="cpu") if self.from_host else job).batches()


class System(NamedTuple):
    """How a system is started, what it computes in, and where."""

    start: Callable[[Job], Running]
    dtypes: tuple[str, ...]
    devices: tuple[str, ...] = ("cpu",)


def package(name: str, install: str | None = None) -> Any:
    """An optional package.

    Raises:
        Unavailable: it is not installed, or does not load.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Unavailable(f"{install or name} is not installed ({error})") from error


def own_model(job: Job) -> nn.Module:
    """This library's model of a job; what is not quantised in int8 is in bfloat16."""
    home = importlib.import_module(f"altclip_fast.models.{'altclip' if 'AltCLIP' in job.class_name else 'clip'}")
    kind = getattr(home, job.class_name)
    if job.dtype != "int8":
        return kind.from_pretrained(job.folder, dtype=job.dtype, device=job.device)
    try:
        return kind.from_pretrained(job.folder, dtype="bfloat16", device=job.device, quantization="int8")
    except ValueError as error:
        raise Unavailable(str(error)) from error


def embedding(model: nn.Module, tower: str, inputs: dict[str, Tensor], **options: Any) -> Tensor:
    """What a whole model, or one tower, of this library or of transformers makes of its inputs, [B, D]."""
    features = getattr(model, f"get_{tower}_features", None)
    output = model(**inputs, **options) if features is None else features(**inputs, **options)
    if isinstance(output, Tensor):
        return output
    projected = getattr(output, f"{tower}_embeds", None)
    return output.pooler_output if projected is None else projected


def own(job: Job, backend: str | None) -> Running:
    """This library. A whole model on a GPU runs as `Runtime` has it, unless a backend is asked for."""
    model = own_model(job)
    if backend is None and on_gpu(job.device) and isinstance(model, DualEncoder):
        return in_runtime(model, job)

    def embed(inputs: dict[str, Tensor]) -> Tensor:
        with torch.inference_mode():
            return embedding(model, job.tower, inputs)

    return Running(embed, backend or "chosen by itself", partial(use_backend, backend) if backend else nullcontext)


def in_runtime(model: DualEncoder, job: Job) -> Running:
    """A whole model, by CUDA graphs where there are some."""
    runtime = Runtime(model)

    def embed(inputs: dict[str, Tensor]) -> Tensor:
        with torch.inference_mode():
            if job.tower == "image":
                return runtime.image_features(inputs["pixel_values"])
            return runtime.text_features(inputs["input_ids"], inputs["attention_mask"])

    return Running(embed, f"runtime, {runtime.mode}", from_host=job.tower == "text")


def transformers_model(job: Job, attention: str) -> nn.Module:
    """transformers' model of a job."""
    transformers = package("transformers")
    transformers.utils.logging.disable_progress_bar()
    dtype = torch.bfloat16 if job.dtype == "bfloat16" else torch.float32
    kind = getattr(transformers, job.class_name)
    return kind.from_pretrained(job.folder, attn_implementation=attention, dtype=dtype).eval().to(job.device)


def transformers_module(job: Job, attention: str) -> nn.Module:
    """transformers' model of a job, as a function of its inputs alone."""
    model = transformers_model(job, attention)
    return (_Images if job.tower == "image" else _Texts)(model, model.dtype).eval()


def accelerated(model: nn.Module) -> nn.Module:
    """A model of transformers, accelerated in place.

    Raises:
        Unavailable: this release of transformers is not known.
    """
    from altclip_fast.accelerate import accelerate

    try:
        return accelerate(model)
    except ImportError as error:
        raise Unavailable(str(error)) from error


class _Images(nn.Module):
    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, pixel_values: Tensor) -> Tensor:
        return embedding(self.model, "image", {"pixel_values": pixel_values.to(self.dtype)})


class _Texts(nn.Module):
    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return embedding(self.model, "text", {"input_ids": input_ids, "attention_mask": attention_mask})


def _transformers(job: Job, attention: str) -> Running:
    return Running(_called(transformers_module(job, attention)), f"attn_implementation={attention}")


def _accelerated(job: Job) -> Running:
    return Running(_called(accelerated(transformers_module(job, "sdpa"))), "accelerate, sdpa")


def _called(module: nn.Module) -> Embed:
    def embed(inputs: dict[str, Tensor]) -> Tensor:
        with torch.inference_mode():
            return module(**inputs)

    return embed


def compiled(module: nn.Module, device: str = "cpu") -> nn.Module:
    """A module as torch.compile makes it for inference: to be called without gradients.

    On a GPU each size of batch is compiled by itself, with CUDA graphs, and the result of a call lives until the next.
    """
    if on_gpu(device):
        return torch.compile(module, mode="max-autotune", dynamic=False)
    from torch._inductor import config

    config.freezing = True
    return torch.compile(module)


def _compiled(module: nn.Module, device: str = "cpu") -> Embed:
    fast = compiled(module, device)

    def embed(inputs: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            return fast(**inputs)

    return embed


def _torch_compile(job: Job) -> Running:
    how = "max-autotune, CUDA graphs" if on_gpu(job.device) else "freezing"
    return Running(_compiled(transformers_module(job, "sdpa"), job.device), f"inductor, {how}, sdpa")


def _torchao(job: Job) -> Running:
    quantization = package("torchao.quantization", "torchao")
    module = transformers_module(job, "sdpa")
    quantization.quantize_(module, quantization.Int8DynamicActivationInt8WeightConfig())
    return Running(_compiled(module), "Int8DynamicActivationInt8WeightConfig, inductor, freezing")


def _session(file: Path, threads: int) -> Any:
    runtime = package("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    return runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def _onnxruntime(job: Job) -> Running:
    package("onnxruntime")
    file = _exported(job, "onnx", _export_onnx)
    if job.dtype == "int8":
        file = _exported(job, "int8.onnx", partial(_quantize_onnx, file))
    session = _session(file, job.threads)

    def embed(inputs: dict[str, Tensor]) -> Tensor:
        found = session.run(None, {name: x.numpy() for name, x in inputs.items()})
        return torch.from_numpy(found[0])

    made = "dynamic int8 of MatMul and Gemm, a scale a channel" if job.dtype == "int8" else "float32"
    return Running(embed, f"CPUExecutionProvider, {made}")


def _exported(job: Job, ending: str, make: Callable[[Job, Path], None]) -> Path:
    """A file beside the checkpoint that a peer reads instead of it; made if absent."""
    folder = Path(job.folder, "exported")
    file = folder / f"{job.tower}.{ending}"
    if not file.exists():
        folder.mkdir(exist_ok=True)
        make(job, file)
    return file


def _float32(job: Job) -> Job:
    return Job(job.folder, job.work, job.batch, "float32", job.threads)


def _export_onnx(job: Job, file: Path) -> None:
    onnx = package("onnx")
    package("onnxscript")
    inputs = job.batches()[0]
    batch = torch.export.Dim.DYNAMIC
    shapes = {name: {0: batch} if x.dim() == 4 else {0: batch, 1: batch} for name, x in inputs.items()}
    with torch.no_grad():
        torch.onnx.export(
            transformers_module(_float32(job), "sdpa"),
            kwargs=_two(inputs),
            f=file,
            input_names=list(inputs),
            output_names=["embeddings"],
            dynamic_shapes=shapes,
            external_data=True,
            dynamo=True,
            verbose=False,
        )
    graph = onnx.load(file, load_external_data=False)
    del graph.graph.value_info[:]  # the shapes of what quantising replaces would contradict it
    onnx.save(graph, file)


def _two(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """A batch of two: an export takes a size of 1 for a constant."""
    return {name: torch.cat([x[:1], x[:1]]) for name, x in inputs.items()}


def _quantize_onnx(source: Path, job: Job, file: Path) -> None:
    quantization = package("onnxruntime.quantization", "onnxruntime")
    quantization.quantize_dynamic(
        source,
        file,
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=True,
        use_external_data_format=True,
    )


def _openvino(job: Job) -> Running:
    openvino = package("openvino")
    file = _exported(job, "xml", _export_openvino)
    hint = "f32"
    if job.dtype == "int8":
        file, hint = _exported(job, "int8.xml", partial(_quantize_openvino, file)), "bf16"
    elif job.dtype == "bfloat16":
        hint = "bf16"
    core = openvino.Core()
    model = core.read_model(file)
    if job.work == "image":
        model.reshape(list(job.batches()[0]["pixel_values"].shape))
    options = {
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": job.threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = core.compile_model(model, "CPU", options)
    used = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    request = compiled.create_infer_request()

    def embed(inputs: dict[str, Tensor]) -> Tensor:
        found = request.infer([x.numpy() for x in inputs.values()], share_inputs=True, share_outputs=True)
        return torch.from_numpy(found[0]).flatten(0, -2)  # a quantised model may have a dimension of 1 in front

    made = "NNCF post-training int8, " if job.dtype == "int8" else ""
    return Running(embed, f"{made}INFERENCE_PRECISION_HINT={used}")


def _export_openvino(job: Job, file: Path) -> None:
    openvino = package("openvino")
    inputs = job.batches()[0]
    with torch.no_grad():
        model = openvino.convert_model(transformers_module(_float32(job), "sdpa"), example_input=_two(inputs))
    openvino.save_model(model, file, compress_to_fp16=False)


def _quantize_openvino(source: Path, job: Job, file: Path) -> None:
    nncf, openvino = package("nncf"), package("openvino")
    samples = [[x.numpy() for x in inputs.values()] for inputs in job.samples()]
    quantized = nncf.quantize(
        openvino.Core().read_model(source),
        nncf.Dataset(samples),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(samples),
    )
    openvino.save_model(quantized, file, compress_to_fp16=False)


FLOATS = ("float32", "bfloat16")
EVERYWHERE = ("cpu", "cuda")
OURS = "altclip_fast"
NO_PEERS = (OURS, "accelerated", "reference")  # this library, in one form or another
SYSTEMS = {
    OURS: System(partial(own, backend=None), (*FLOATS, "int8"), EVERYWHERE),
    "accelerated": System(_accelerated, FLOATS, EVERYWHERE),
    "reference": System(partial(own, backend="reference"), FLOATS, EVERYWHERE),
    "transformers-eager": System(partial(_transformers, attention="eager"), FLOATS, EVERYWHERE),
    "transformers-sdpa": System(partial(_transformers, attention="sdpa"), FLOATS, EVERYWHERE),
    "torch-compile": System(_torch_compile, FLOATS, EVERYWHERE),
    "onnxruntime": System(_onnxruntime, ("float32", "int8")),
    "openvino": System(_openvino, (*FLOATS, "int8")),
    "torchao": System(_torchao, ("int8",)),
}
