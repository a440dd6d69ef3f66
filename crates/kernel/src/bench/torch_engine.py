"""The engine's workloads in PyTorch eager, on one thread: the other half of `engine_bench`.

Reads lines `NAME SECONDS` and answers each with one line of JSON, `{"version", "times", "processor"}`: nanoseconds of
every step run within that time, at least one, and of processor time for all of them. Ends with its input. The shapes, losses and optimisers are those of
`workload.rs`; change both together.
"""

import json
import sys
import time

import torch
from torch import nn
from torch.nn import functional

torch.set_num_threads(1)
torch.manual_seed(1)


def mlp():
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    x, labels = torch.rand(64, 64) * 2 - 1, torch.arange(64) % 10

    def step():
        optimiser.zero_grad(set_to_none=True)
        functional.cross_entropy(model(x), labels).backward()
        optimiser.step()

    return step


def convolution():
    model = nn.Conv2d(16, 16, 3, padding=1)
    x = (torch.rand(32, 16, 16, 16) * 2 - 1).requires_grad_()

    def step():
        x.grad = model.weight.grad = model.bias.grad = None
        model(x).square().mean().backward()

    return step


class Block(nn.Module):
    """A transformer block with the norm before each part, as `Workload::transformer` has it."""

    def __init__(self, width=64, heads=4):
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_network = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.network = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        y = self.before_attention(x)
        split = lambda z: z.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        y = functional.scaled_dot_product_attention(split(self.query(y)), split(self.key(y)), split(self.value(y)))
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.network(self.before_network(x))


def transformer():
    model = Block()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    x = torch.rand(16, 32, 64) * 2 - 1

    def step():
        optimiser.zero_grad(set_to_none=True)
        model(x).square().mean().backward()
        optimiser.step()

    return step


def main():
    workloads = {function.__name__: function for function in (mlp, convolution, transformer)}
    steps = {}
    for line in sys.stdin:
        name, seconds = line.split()
        if name not in steps:
            steps[name] = workloads[name]()
            for _ in range(5):
                steps[name]()
        begin = time.process_time_ns()
        end = time.perf_counter_ns() + int(float(seconds) * 1e9)
        times = []
        while not times or time.perf_counter_ns() < end:
            start = time.perf_counter_ns()
            steps[name]()
            times.append(time.perf_counter_ns() - start)
        processor = time.process_time_ns() - begin
        print(json.dumps({"version": torch.__version__, "times": times, "processor": processor}), flush=True)


main()
