"""Reads Weatherlight kernels and makes PyTorch modules of them.

A kernel is one safetensors file. Its metadata holds a manifest: the graph, the guard, the cost and where it was made
for. Nothing in the file is code and nothing here runs any: the graph is a list of operators out of a closed set, and
each is spelled out below in PyTorch. There is no pickle. The file's SHA-256 is its address; give it and it is verified
before a byte is looked at.

    import esper_kernel
    module = esper_kernel.load(ready.artifact_ref, digest=ready.checksum)
    y = module(x)                    # trains like any torch.nn.Module; its state_dict has the manifest's names

Needs torch and nothing else. `docs/engine.md` tells what each operator means.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any, Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["BadKernel", "Kernel", "KernelModule", "fetch", "guard_digest", "load", "open_kernel", "parse"]

FORMATS = (1, 2)
"""Versions of the file format this reader knows."""
BYTES_MAX = 256 * 1024 * 1024
"""Largest file, in bytes, as the engine has it."""
HEADER_BYTES_MAX = 100_000_000
"""Largest header, in bytes, as safetensors has it."""
NODES_MAX = 100_000
ELEMENTS_MAX = 1 << 28
RANK_MAX = 8
MANIFEST_KEY = "esper.manifest"
STEP_INPUT = "step"


class BadKernel(ValueError):
    """The file is no kernel this reader accepts. Nothing of it may be used."""


@dataclass(frozen=True)
class Kernel:
    """A verified kernel: what the file says, and the values of its parameters."""

    digest: str
    manifest: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def blueprint(self) -> str:
        """Id of the blueprint it was compiled from."""
        return self.manifest["blueprint"]

    def module(self) -> "KernelModule":
        """A fresh module with these parameters."""
        return KernelModule(self)


def load(path: str | os.PathLike[str], digest: str | None = None) -> "KernelModule":
    """Opens a kernel and makes a module of it. See `open_kernel`."""
    return open_kernel(path, digest).module()


def open_kernel(path: str | os.PathLike[str], digest: str | None = None) -> Kernel:
    """Opens the kernel at `path`. With `digest` (64 hex digits, the bus's `checksum`) the file must have that SHA-256.

    Raises `BadKernel` when the file is not what it should be, `OSError` when it cannot be read.
    """
    with open(path, "rb") as file:
        data = file.read(BYTES_MAX + 1)
    return parse(data, digest)


def parse(data: bytes, digest: str | None = None) -> Kernel:
    """As `open_kernel`, from bytes."""
    if not 8 < len(data) <= BYTES_MAX:
        raise BadKernel(f"the kernel has {len(data)} bytes; between 9 and {BYTES_MAX} are accepted")
    actual = hashlib.sha256(data).hexdigest()
    if digest is not None and digest.lower() != actual:
        raise BadKernel(f"the kernel has digest {actual}, asked for was {digest}")
    header, body = _header(data)
    metadata = header.pop("__metadata__", {})
    text = metadata.get(MANIFEST_KEY) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise BadKernel(f"the file has no manifest under {MANIFEST_KEY!r}; it is not a kernel")
    manifest = _json(text, "manifest")
    if manifest.get("format") not in FORMATS:
        raise BadKernel(f"the kernel has format {manifest.get('format')!r}, this reader knows {FORMATS}")
    tensors = _tensors(header, body)
    try:
        _check(manifest, tensors)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise BadKernel(f"the manifest is not what the engine writes: {error!r}") from error
    return Kernel(actual, manifest, tensors)


def guard_digest(entries: Sequence[Mapping[str, Any]]) -> str:
    """SHA-256 of a guard spec: the list as JSON with sorted keys, as the wire contract has it."""
    return hashlib.sha256(json.dumps(list(entries), sort_keys=True).encode()).hexdigest()


def fetch(url: str, digest: str, path: str | os.PathLike[str], token: str | None = None, timeout: float = 30.0) -> None:
    """Fetches a kernel by its digest from a service (`<public url>/kernels/<sha256>`) into `path`.

    A partial download (`path` + ".part") is resumed. The file appears under `path` only when its digest is right.
    """
    partial = f"{os.fspath(path)}.part"
    have = os.path.getsize(partial) if os.path.exists(partial) else 0
    request = urllib.request.Request(url)
    if have:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", f'"{digest}"')
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            with open(partial, "ab" if response.status == 206 else "wb") as file:
                while block := response.read(1 << 20):
                    if file.tell() + len(block) > BYTES_MAX:
                        raise BadKernel(f"the service sends more than {BYTES_MAX} bytes")
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
    except urllib.error.HTTPError as error:
        if error.code != 416:  # The whole file was there already.
            raise
    with open(partial, "rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != digest:
        os.remove(partial)
        raise BadKernel(f"{url} has digest {actual}, asked for was {digest}")
    os.replace(partial, path)


# The file.


def _json(text: str | bytes, what: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise BadKernel(f"the {what} names something twice")
        return found

    def refuse(token: str) -> None:
        raise BadKernel(f"the {what} holds {token}, which is no JSON number")

    try:
        value = json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        if isinstance(error, BadKernel):
            raise
        raise BadKernel(f"the {what} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadKernel(f"the {what} is no JSON object")
    return value


def _header(data: bytes) -> tuple[dict[str, Any], memoryview]:
    (length,) = struct.unpack_from("<Q", data)
    if length > min(HEADER_BYTES_MAX, len(data) - 8):
        raise BadKernel(f"the header claims {length} bytes, the file has {len(data) - 8}")
    return _json(data[8 : 8 + length], "header"), memoryview(data)[8 + length :]


def _tensors(header: Mapping[str, Any], body: memoryview) -> dict[str, Tensor]:
    """Every tensor, each checked: `float32`, of its shape, one behind the other without gap or overlap, finite."""
    spans = []
    for name, entry in header.items():
        if not isinstance(entry, dict) or entry.get("dtype") != "F32":
            raise BadKernel(f"parameter {name!r} is not F32")
        shape, span = entry.get("shape"), entry.get("data_offsets")
        if not _is_shape(shape) or not _is_sizes(span) or len(span) != 2:
            raise BadKernel(f"parameter {name!r} has no sound shape or place")
        spans.append((span[0], span[1], name, shape))
    spans.sort()
    at = 0
    tensors = {}
    for start, end, name, shape in spans:
        if start != at or end - start != 4 * math.prod(shape) or end > len(body):
            raise BadKernel(f"parameter {name!r} does not lie where its shape says")
        values = torch.frombuffer(bytearray(body[start:end]), dtype=torch.float32).reshape(shape)
        if not bool(torch.isfinite(values).all()):
            raise BadKernel(f"parameter {name!r} is not finite")
        tensors[name] = values
        at = end
    if at != len(body):
        raise BadKernel(f"{len(body) - at} bytes behind the last parameter")
    return tensors


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def _is_shape(value: Any) -> bool:
    return _is_sizes(value) and len(value) <= RANK_MAX and 0 < math.prod(value) <= ELEMENTS_MAX


def _check(manifest: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    graph = manifest["graph"]
    nodes = graph["nodes"]
    if not isinstance(nodes, list) or len(nodes) > NODES_MAX:
        raise BadKernel(f"the graph has no list of at most {NODES_MAX} nodes")
    parameters = {}
    for index, node in enumerate(nodes):
        name, attributes = _operator(node["op"])
        if name not in _RULES and name not in ("input", "parameter", "constant", "phase"):
            raise BadKernel(f"node {index} is {name!r}, which a module cannot run")
        operands = node["operands"]
        if not _is_sizes(operands) or any(operand >= index for operand in operands):
            raise BadKernel(f"node {index} ({name}) takes a node that does not come before it")
        if name in ("input", "parameter", "constant") and not _is_shape(attributes["shape"]):
            raise BadKernel(f"node {index} ({name}) has no sound shape")
        if name == "parameter":
            parameters[attributes["name"]] = attributes["shape"]
    for name, shape in parameters.items():
        if name not in tensors:
            raise BadKernel(f"parameter {name!r} is missing")
        if list(tensors[name].shape) != shape:
            raise BadKernel(f"parameter {name!r} has shape {list(tensors[name].shape)}, the graph has {shape}")
    for name in tensors:
        if name not in parameters:
            raise BadKernel(f"parameter {name!r} is not in the graph")
    for named in [*graph["outputs"], *graph["updates"]]:
        if not 0 <= named["node"] < len(nodes):
            raise BadKernel(f"{named['name']!r} names a node that is not there")
    if any(update["name"] not in parameters for update in graph["updates"]):
        raise BadKernel("the graph updates a parameter that it does not have")
    if not graph["outputs"]:
        raise BadKernel("the graph has no output")
    if guard_digest(manifest["guard"]) != manifest["guard_digest"]:
        raise BadKernel("the manifest's guard digest does not belong to its guard")


def _operator(op: Any) -> tuple[str, Any]:
    """Name and attributes of an operator as the manifest spells it: `"softmax"` or `{"unary": "relu"}`."""
    if isinstance(op, str):
        return op, None
    if isinstance(op, dict) and len(op) == 1:
        return next(iter(op.items()))
    raise BadKernel(f"{op!r} is no operator")


# The operators. Each takes its attributes and its operands.


def _unary(function: Any, x: Tensor) -> Tensor:
    name, attributes = _operator(function)
    if name not in _UNARY:
        raise BadKernel(f"{name!r} is no elementwise function")
    return _UNARY[name](x, **(attributes or {}))


def _flat(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A function whose gradient is zero everywhere."""
    return lambda x, **attributes: function(x.detach(), **attributes)


_UNARY: dict[str, Callable[..., Tensor]] = {
    "neg": torch.neg,
    "exp": torch.exp,
    "log": torch.log,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "abs": torch.abs,
    "relu": torch.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
    "erf": torch.erf,
    "step": _flat(lambda x: (x > 0).to(x.dtype)),
    "sign": _flat(torch.sign),
    "clamp": lambda x, low, high: torch.clamp(x, low, high),
    "within": _flat(lambda x, low, high: ((x >= low) & (x <= high)).to(x.dtype)),
    "scale": lambda x, factor: x * factor,
    "offset": lambda x, by: x + by,
}

_BINARY = {"add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div}


def _mat_mul(attributes: Mapping[str, bool], a: Tensor, b: Tensor) -> Tensor:
    a = a.transpose(-1, -2) if attributes["transpose_a"] else a
    b = b.transpose(-1, -2) if attributes["transpose_b"] else b
    return torch.matmul(a, b)


def _pool(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {"kernel_size": attributes["kernel"], "stride": attributes["stride"], "padding": attributes["padding"]}


def _normalise(attributes: Mapping[str, Any], x: Tensor) -> Tensor:
    """`(x - mean) / sqrt(variance + epsilon)` with the biased variance, or by the root mean square alone."""
    axes = attributes["axes"]
    if attributes["norm"] == "standard":
        x = x - x.mean(axes, keepdim=True)
    return x / torch.sqrt(x.square().mean(axes, keepdim=True) + attributes["epsilon"])


def _reshape(extents: Sequence[Any], x: Tensor) -> Tensor:
    return x.reshape([-1 if extent == "rest" else extent["size"] for extent in extents])


def _reduce(attributes: Mapping[str, Any], x: Tensor) -> Tensor:
    axes = attributes["axes"]
    if not axes:
        return x
    return (x.sum if attributes["kind"] == "sum" else x.mean)(axes, keepdim=True)


def _reduce_like(kind: str, x: Tensor, like: Tensor) -> Tensor:
    reduced = x.sum_to_size(like.shape)
    return reduced if kind == "sum" else reduced / (x.numel() // like.numel())


def _broadcast_like(kind: str, x: Tensor, like: Tensor) -> Tensor:
    share = x if kind == "sum" else x / (like.numel() // x.numel())
    return share.expand(like.shape)


def _slice(attributes: Mapping[str, int], x: Tensor) -> Tensor:
    return x.narrow(attributes["axis"], attributes["start"], attributes["end"] - attributes["start"])


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1).long())


def _dropout(attributes: Mapping[str, Any], x: Tensor, seed: Tensor) -> Tensor:
    """Drops the very elements that Weatherlight drops at this step: the mask is a function of step, stream and index."""
    rate, stream = attributes["rate"], attributes["stream"]
    bits = struct.unpack("<I", struct.pack("<f", float(seed)))[0]
    key = _mix(torch.tensor([_signed(bits << 32 | stream)]))
    index = torch.arange(x.numel(), dtype=torch.int64)
    random = _shift(_mix(key ^ index), 40)
    kept = random >= int(rate * (1 << 24))
    factor = float(torch.tensor(1.0) / (torch.tensor(1.0) - torch.tensor(rate, dtype=torch.float32)))
    return torch.where(kept.reshape(x.shape).to(x.device), x * factor, torch.zeros_like(x))


def _signed(value: int) -> int:
    """The same 64 bits as a signed number: torch has arithmetic modulo 2^64 on those alone."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _shift(value: Tensor, by: int) -> Tensor:
    """Shifts right and fills with zeros."""
    return (value >> by) & ((1 << (64 - by)) - 1)


def _mix(value: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    z = value + _signed(0x9E3779B97F4A7C15)
    z = (z ^ _shift(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shift(z, 31)


_RULES: dict[str, Callable[..., Tensor]] = {
    "unary": _unary,
    "binary": lambda kind, a, b: _BINARY[kind](a, b),
    "mat_mul": _mat_mul,
    "conv2d": lambda conv, x, weight: functional.conv2d(
        x, weight, None, conv["stride"], conv["padding"], conv["dilation"], conv["groups"]
    ),
    "max_pool": lambda pool, x: functional.max_pool2d(x, **_pool(pool)),
    "avg_pool": lambda pool, x: functional.avg_pool2d(x, **_pool(pool), count_include_pad=True),
    "softmax": lambda _, x: torch.softmax(x, -1),
    "log_softmax": lambda _, x: torch.log_softmax(x, -1),
    "normalise": _normalise,
    "dropout": _dropout,
    "gather": lambda _, table, index: table[index.long()],
    "reshape": _reshape,
    "reshape_like": lambda _, x, like: x.reshape(like.shape),
    "permute": lambda order, x: x.permute(order),
    "concat": lambda attributes, *parts: torch.cat(parts, attributes["axis"]),
    "slice": _slice,
    "reduce": _reduce,
    "reduce_like": _reduce_like,
    "broadcast_like": _broadcast_like,
    "cross_entropy": lambda _, logits, labels: _cross_entropy(logits, labels),
    "stop_gradient": lambda _, x: x.detach(),
}


class KernelModule(nn.Module):
    """A kernel as a module. Takes and gives what the manifest's guard says, with any batch.

    In training mode dropout drops (as Weatherlight does at step `self.step`, which goes up by one with each forward
    pass) and batch statistics are used and remembered; in evaluation mode neither. Trainable parameters are
    `nn.Parameter`s, the others buffers, all under the manifest's names.
    """

    def __init__(self, kernel: Kernel) -> None:
        super().__init__()
        graph = kernel.manifest["graph"]
        self.kernel = kernel
        self.step = 0
        self._nodes = [(*_operator(node["op"]), node["operands"]) for node in graph["nodes"]]
        self._outputs = [(output["name"], output["node"]) for output in graph["outputs"]]
        self._updates = [(update["name"], update["node"]) for update in graph["updates"]]
        inputs = [attributes for name, attributes, _ in self._nodes if name == "input"]
        self.inputs = sorted(attributes["name"] for attributes in inputs if attributes["name"] != STEP_INPUT)
        self._shapes = {attributes["name"]: (attributes["shape"], attributes["batched"]) for attributes in inputs}
        for name, attributes, _ in self._nodes:
            if name == "parameter":
                self._adopt(attributes["name"], kernel.tensors[attributes["name"]].clone(), attributes["trainable"])
        self._needed = {
            False: self._reachable([node for _, node in self._outputs], training=False),
            True: self._reachable([node for _, node in [*self._outputs, *self._updates]], training=True),
        }

    def _adopt(self, path: str, value: Tensor, trainable: bool) -> None:
        """Puts a parameter where its dotted name says, so that `state_dict` has the manifest's names."""
        *folders, name = path.split(".")
        place: nn.Module = self
        for folder in folders:
            if not hasattr(place, folder):
                place.add_module(folder, nn.Module())
            place = getattr(place, folder)
        if trainable:
            place.register_parameter(name, nn.Parameter(value))
        else:
            place.register_buffer(name, value)

    def _reachable(self, roots: Sequence[int], training: bool) -> list[bool]:
        needed = [False] * len(self._nodes)
        for root in roots:
            needed[root] = True
        for index in range(len(self._nodes) - 1, -1, -1):
            if needed[index]:
                name, _, operands = self._nodes[index]
                if name == "phase":
                    operands = [operands[0 if training else 1]]
                if name == "dropout" and not training:
                    operands = operands[:1]
                for operand in operands:
                    needed[operand] = True
        return needed

    def forward(self, *values: Tensor, **named: Tensor) -> Any:
        """The output for inputs given in name order or by name; a dictionary when the kernel has several outputs."""
        given = dict(zip(self.inputs, values, strict=False)) | named
        if len(values) > len(self.inputs) or set(given) != set(self.inputs):
            raise ValueError(f"the kernel takes {self.inputs}, given were {len(values)} values and {sorted(named)}")
        for name, value in given.items():
            self._check_input(name, value)
        results = self._run(given)
        if self.training:
            self._absorb(results)
            self.step += 1
        outputs = {name: results[node] for name, node in self._outputs}
        return next(iter(outputs.values())) if len(outputs) == 1 else outputs

    def _check_input(self, name: str, value: Tensor) -> None:
        shape, batched = self._shapes[name]
        found = list(value.shape)
        fits = len(found) == len(shape) and found[batched:] == shape[batched:]
        if not fits or value.dtype != torch.float32:
            raise ValueError(
                f"input {name!r} is {value.dtype}{found}, the kernel was compiled for float32{shape} (the batch may differ)"
            )

    def _run(self, given: Mapping[str, Tensor]) -> list[Tensor | None]:
        needed = self._needed[self.training]
        place = next(iter(given.values())).device if given else torch.device("cpu")
        results: list[Tensor | None] = []
        for index, (name, attributes, operands) in enumerate(self._nodes):
            if not needed[index]:
                results.append(None)
            elif name == "input" and attributes["name"] == STEP_INPUT:
                results.append(torch.tensor(float(self.step)))
            elif name == "input":
                results.append(given[attributes["name"]])
            elif name == "parameter":
                results.append(self._find(attributes["name"]))
            elif name == "constant":
                values = torch.tensor(attributes["data"], dtype=torch.float32, device=place)
                results.append(values.reshape(attributes["shape"]))
            elif name == "phase":
                results.append(results[operands[0 if self.training else 1]])
            elif name == "dropout" and not self.training:
                results.append(results[operands[0]])
            else:
                results.append(_RULES[name](attributes, *(results[operand] for operand in operands)))
        return results

    def _find(self, path: str) -> Tensor:
        *folders, name = path.split(".")
        place: nn.Module = self
        for folder in folders:
            place = getattr(place, folder)
        return getattr(place, name)

    def _absorb(self, results: Sequence[Tensor | None]) -> None:
        """Replaces what the graph updates by itself, running statistics above all; autograd may still hold the old."""
        for path, node in self._updates:
            *folders, name = path.split(".")
            place: nn.Module = self
            for folder in folders:
                place = getattr(place, folder)
            value = results[node].detach()
            if name in place._buffers:
                place._buffers[name] = value
            else:
                getattr(place, name).data.copy_(value)
