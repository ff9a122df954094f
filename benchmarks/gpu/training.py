"""PyTorch programs of the kinds that students run.

Says "ready" when warm; each line on its input is answered with {"rate": steps per second} over one stretch.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import torch

SECONDS = 0.2


def _resnet(name: str) -> torch.nn.Module:
    import torchvision

    model: torch.nn.Module = getattr(torchvision.models, name)().cuda()
    return model


def resnet50_train() -> Callable[[], None]:
    model = _resnet("resnet50")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    images, labels = torch.randn(32, 3, 224, 224, device="cuda"), torch.randint(0, 1000, (32,), device="cuda")

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()

    return step


def resnet18_infer() -> Callable[[], None]:
    model = _resnet("resnet18").eval()
    image = torch.randn(1, 3, 224, 224, device="cuda")

    @torch.no_grad()
    def step() -> None:
        model(image).argmax().item()

    return step


def tiny_ops() -> Callable[[], None]:
    value = torch.zeros(16, device="cuda")

    def step() -> None:
        for _ in range(100):
            value.add_(1)

    return step


def decode() -> Callable[[], None]:
    layer = torch.nn.TransformerEncoderLayer(1024, 16, 4096, batch_first=True, dtype=torch.bfloat16)
    model = torch.nn.TransformerEncoder(layer, 12, enable_nested_tensor=False).cuda().eval()
    tokens = torch.randn(1, 128, 1024, device="cuda", dtype=torch.bfloat16)

    @torch.no_grad()
    def step() -> None:
        model(tokens)[:, -1].argmax().item()

    return step


def _stretch(step: Callable[[], None]) -> float:
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < SECONDS:
        step()
        count += 1
    torch.cuda.synchronize()
    return count / (time.perf_counter() - began)


def main() -> None:
    step = {f.__name__: f for f in (resnet50_train, resnet18_infer, tiny_ops, decode)}[sys.argv[1]]()
    for _ in range(10):
        step()
    torch.cuda.synchronize()
    print("ready", flush=True)
    for _ in sys.stdin:
        print(json.dumps({"rate": _stretch(step)}), flush=True)


if __name__ == "__main__":
    main()
