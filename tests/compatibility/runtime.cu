/* A program of the CUDA runtime, built with its static and with its shared library: one line, the same everywhere. */
#include <cstdio>
#include <cstdlib>

#define CHECK(call)                                                        \
    do {                                                                   \
        cudaError_t result = (call);                                       \
        if (result != cudaSuccess) {                                       \
            printf("%s: %s\n", #call, cudaGetErrorString(result));         \
            exit(1);                                                       \
        }                                                                  \
    } while (0)

__device__ int table[1 << 20];

__global__ void add(int *x, int by)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    x[i] += by + table[i & 1023];
}

int main()
{
    const int n = 1 << 20;
    int *device, *pooled, *shared, *host = (int *)malloc(n * sizeof(int));
    size_t free_bytes, total;
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t executable;

    CHECK(cudaStreamCreate(&stream));
    CHECK(cudaMalloc(&device, n * sizeof(int)));
    CHECK(cudaMemset(device, 0, n * sizeof(int)));
    CHECK(cudaMallocManaged(&shared, n * sizeof(int)));
    shared[0] = 5;
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    add<<<n / 256, 256, 0, stream>>>(device, 1);
    add<<<n / 256, 256, 0, stream>>>(device, 2);
    CHECK(cudaStreamEndCapture(stream, &graph));
    CHECK(cudaGraphInstantiate(&executable, graph, 0));
    for (int i = 0; i < 10; i++)
        CHECK(cudaGraphLaunch(executable, stream));
    CHECK(cudaMallocAsync(&pooled, n * sizeof(int), stream));
    CHECK(cudaMemcpyAsync(pooled, device, n * sizeof(int), cudaMemcpyDeviceToDevice, stream));
    CHECK(cudaMemcpyAsync(host, pooled, n * sizeof(int), cudaMemcpyDeviceToHost, stream));
    CHECK(cudaFreeAsync(pooled, stream));
    CHECK(cudaStreamSynchronize(stream));
    add<<<1, 1>>>(shared, 1);
    CHECK(cudaDeviceSynchronize());
    CHECK(cudaMemGetInfo(&free_bytes, &total));
    printf("%d %d %d\n", host[n - 1], shared[0], free_bytes < total);
    return 0;
}
