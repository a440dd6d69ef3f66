"""Runs every template in PyTorch and writes what came out, for `crates/karn/tests/it/pytorch.rs` to compare with.

    cargo run -q -p karn --example pytorch_cases -- target/pytorch-cases
    python python/make_fixtures.py target/pytorch-cases crates/karn/tests/fixtures/pytorch.json

For each case: the output and the gradients of the weighted sum of the output, then ten steps of `torch.optim.Adam` on
that sum, all in training mode. Of each tensor a sample, its sum and its norm are kept.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import esper_kernel  # noqa: E402

SAMPLES = 8
STEPS = 10
ADAM = {"lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-3}
"""A large epsilon: where a gradient is zero but for rounding, a small one would make full steps of the rounding."""


def wave(count: int, pace: float, start: float) -> torch.Tensor:
    """Numbers that both sides make for themselves."""
    return torch.tensor([math.sin(pace * index + start) for index in range(count)], dtype=torch.float64).float()


def kept(tensor: torch.Tensor) -> dict[str, object]:
    flat = tensor.detach().double().flatten()
    stride = max(1, math.ceil(len(flat) / SAMPLES))
    return {
        "len": len(flat),
        "samples": [float(f"{value:.9g}") for value in flat[::stride].tolist()],
        "sum": float(f"{flat.sum().item():.9g}"),
        "norm": float(f"{flat.norm().item():.9g}"),
    }


def loss_of(module: torch.nn.Module, x: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    output = module(x)
    return output, (output * weights).sum()


def case(path: Path) -> dict[str, object]:
    module = esper_kernel.load(path)
    shape = module.kernel.manifest["guard"][0]["shape"]
    count = math.prod(shape)
    x = wave(count, 0.7, 0.3).reshape(shape).requires_grad_()
    weights = wave(count, 1.3, 0.9).reshape(shape)

    module.train()
    module.step = 3
    output, loss = loss_of(module, x, weights)
    if loss.requires_grad:
        loss.backward()
    gradients = {name: kept(value.grad) for name, value in module.named_parameters() if value.grad is not None}
    updates = {name: kept(value) for name, value in module.named_buffers()}
    inference = esper_kernel.load(path).eval()(x.detach())

    trained = esper_kernel.load(path)
    parameters = list(trained.parameters())
    losses = []
    if parameters:
        optimiser = torch.optim.Adam(parameters, **ADAM)
        trained.train()
        for step in range(STEPS):
            trained.step = step
            optimiser.zero_grad()
            _, value = loss_of(trained, x.detach(), weights)
            value.backward()
            losses.append(float(f"{value.item():.9g}"))
            optimiser.step()
    return {
        "output": kept(output),
        "inference": kept(inference),
        "input_gradient": kept(x.grad),
        "gradients": gradients,
        "updates": updates,
        "losses": losses,
        "trained": {name: kept(value) for name, value in trained.named_parameters()},
    }


def main() -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    directory, target = Path(sys.argv[1]), Path(sys.argv[2])
    cases = {path.stem: case(path) for path in sorted(directory.glob("*.safetensors"))}
    document = {"torch": torch.__version__, "adam": ADAM, "steps": STEPS, "cases": cases}
    target.parent.mkdir(parents=True, exist_ok=True)
    lines = json.dumps(document, sort_keys=True, separators=(",", ":")).replace('},"BP', '},\n"BP')
    target.write_text(lines + "\n")
    print(f"{len(cases)} cases written to {target}")


if __name__ == "__main__":
    main()
