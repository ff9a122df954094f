"""Programs as people write them, one a function: `python programs.py NAME` prints one line that has to be the same
natively and in a slice. What a machine does not have is said with exit code 77."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

ABSENT = 77


def need(name: str) -> Any:
    """A module, or the end of this program."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        print(error)
        raise SystemExit(ABSENT) from None


def torch_eager() -> object:
    torch = need("torch")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.ReLU(), torch.nn.Linear(512, 10)).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data, target = torch.randn(512, 256, device="cuda"), torch.randint(0, 10, (512,), device="cuda")
    for _ in range(50):
        loss = torch.nn.functional.cross_entropy(model(data), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return round(loss.item(), 2)


def torch_convolutions() -> object:
    torch = need("torch")
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3 if i == 0 else 64, 64, 3, padding=1) for i in range(4)]
    model = torch.nn.Sequential(*layers).cuda().half()
    out = model(torch.ones(8, 3, 64, 64, device="cuda", dtype=torch.half))
    return list(out.shape), bool(torch.isfinite(out).all())


def torch_streams_and_events() -> object:
    torch = need("torch")
    one, two = torch.cuda.Stream(), torch.cuda.Stream()
    x = torch.ones(1 << 20, device="cuda")
    torch.cuda.synchronize()
    done = torch.cuda.Event()
    with torch.cuda.stream(one):
        y = x * 2
        done.record(one)
    with torch.cuda.stream(two):
        two.wait_event(done)
        z = y + 1
    torch.cuda.synchronize()
    return z.sum().item()


def torch_cuda_graphs() -> object:
    torch = need("torch")
    x = torch.zeros(1024, device="cuda")
    graph = torch.cuda.CUDAGraph()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            x + 1
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
        y = x + 1
        x.copy_(y)
    for _ in range(100):
        graph.replay()
    torch.cuda.synchronize()
    return x[0].item()


def torch_compile() -> object:
    torch = need("torch")

    @torch.compile
    def wave(x: Any) -> Any:
        return (torch.sin(x) ** 2 + torch.cos(x) ** 2).sum()

    return round(wave(torch.linspace(0, 1, 4096, device="cuda")).item(), 1)


class _Numbers:
    def __len__(self) -> int:
        return 256

    def __getitem__(self, i: int) -> int:
        return i


def torch_data_loader_workers() -> object:
    torch = need("torch")
    loader = torch.utils.data.DataLoader(_Numbers(), batch_size=32, num_workers=3, pin_memory=True)
    return sum(batch.cuda(non_blocking=True).sum().item() for batch in loader)


def torch_tells_of_memory() -> object:
    """Out of memory is PyTorch's own error, with its message; then it goes on."""
    torch = need("torch")
    free, total = torch.cuda.mem_get_info()
    try:
        torch.empty(total * 2, dtype=torch.uint8, device="cuda")
    except torch.OutOfMemoryError as error:
        said = "Tried to allocate" in str(error) and "total capacity" in str(error)
    torch.empty(free // 2, dtype=torch.uint8, device="cuda")
    return said, 0 < free <= total


def torch_async_allocator() -> object:
    os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "backend:cudaMallocAsync"
    torch = need("torch")
    x = [torch.ones(1 << 20, device="cuda") for _ in range(20)]
    return sum(t.sum().item() for t in x), torch.cuda.get_allocator_backend()


def torch_two_processes_share_a_tensor() -> object:
    torch = need("torch")
    multiprocessing = need("torch.multiprocessing")
    context = multiprocessing.get_context("spawn")
    queue, answers = context.Queue(), context.Queue()
    child = context.Process(target=_sum_of, args=(queue, answers))
    child.start()
    x = torch.full((1 << 16,), 3.0, device="cuda")
    queue.put(x)
    total = answers.get(timeout=60)
    child.join()
    return total


def _sum_of(queue: Any, answers: Any) -> None:
    answers.put(queue.get(timeout=60).sum().item())


def jax_jit_and_grad() -> object:
    jax = need("jax")
    numpy = need("jax.numpy")
    if not any(device.platform == "gpu" for device in jax.devices()):
        print("JAX has no GPU support here")
        raise SystemExit(ABSENT)
    grad = jax.jit(jax.grad(lambda w, x: numpy.tanh(x @ w).sum()))
    return round(float(grad(numpy.ones((64, 64)) * 0.01, numpy.ones((32, 64))).sum()), 1)


def cupy_pools() -> object:
    cupy = need("cupy")
    x = cupy.arange(1 << 20, dtype=cupy.float64)
    with cupy.cuda.using_allocator(cupy.cuda.MemoryAsyncPool().malloc):
        y = (x * 2).sum()
    with cupy.cuda.using_allocator(cupy.cuda.malloc_managed):
        z = cupy.ones(1 << 16).sum()
    kernel = cupy.RawKernel(
        'extern "C" __global__ void twice(double *x) { x[blockIdx.x * blockDim.x + threadIdx.x] *= 2; }', "twice"
    )
    kernel((4096,), (256,), (x,))
    total = float(x.sum())
    cupy.get_default_memory_pool().free_all_blocks()
    return float(y), float(z), total


def triton_kernel() -> object:
    torch, _ = need("torch"), need("triton")
    add = need("triton_add").add
    x = torch.arange(1 << 16, device="cuda", dtype=torch.float32)
    out = torch.empty_like(x)
    add[(64,)](x, x, out, 1024)
    return out.double().sum().item()


def numba_kernel() -> object:
    cuda, numpy = need("numba.cuda"), need("numpy")
    if not cuda.is_available():
        print("Numba has no CUDA here")
        raise SystemExit(ABSENT)

    @cuda.jit
    def square(x: Any) -> None:
        i = cuda.grid(1)
        if i < x.size:
            x[i] *= x[i]

    data = cuda.to_device(numpy.arange(4096, dtype=numpy.float64))
    square[16, 256](data)
    free, total = cuda.current_context().get_memory_info()
    return float(data.copy_to_host().sum()), 0 < free <= total


def onnx_runtime() -> object:
    runtime, numpy = need("onnxruntime"), need("numpy")
    if "CUDAExecutionProvider" not in runtime.get_available_providers():
        print("this ONNX Runtime has no CUDA provider")
        raise SystemExit(ABSENT)
    onnx = need("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    shape = [64, 64]
    values = [helper.make_tensor_value_info(name, kind, shape) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "x"], ["y"])], "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CUDAExecutionProvider"])
    (out,) = session.run(None, {"x": numpy.ones(shape, dtype=numpy.float32)})
    return session.get_providers()[0], float(out.sum())


def nvml_by_python() -> object:
    nvml = need("pynvml")
    nvml.nvmlInit()
    handle = nvml.nvmlDeviceGetHandleByIndex(0)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return nvml.nvmlDeviceGetCount(), 0 <= memory.used <= memory.total, nvml.nvmlDeviceGetName(handle)


PROGRAMS: dict[str, Callable[[], object]] = {
    name: value for name, value in list(globals().items()) if callable(value) and name[0] != "_" and "_" in name
}

if __name__ == "__main__":
    print(PROGRAMS[sys.argv[1]]())
