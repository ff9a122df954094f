/*
 * Memory under several names, and memory that goes away and comes back. Between stages it waits for a line.
 *
 * names vmm MIB          created, exported and released, imported, released, closed
 * names checkpoint PID   takes a process' device memory out; after a line puts it back
 */
#include <cuda.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CHECK(call)                                                        \
    do {                                                                   \
        CUresult result_ = (call);                                         \
        if (result_ != CUDA_SUCCESS) {                                     \
            fprintf(stderr, "names: %s: error %d\n", #call, (int)result_); \
            exit(1);                                                       \
        }                                                                  \
    } while (0)

static void stage(const char *name)
{
    printf("{\"stage\": \"%s\"}\n", name);
    fflush(stdout);
    if (getchar() < 0)
        exit(0);
}

static void vmm(size_t bytes)
{
    CUmemAllocationProp properties = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                      .requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
                                      .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = 0}};
    CUmemGenericAllocationHandle made, imported;
    CUcontext context;
    int fd;

    CHECK(cuDevicePrimaryCtxRetain(&context, 0));
    CHECK(cuCtxSetCurrent(context));
    stage("context");
    CHECK(cuMemCreate(&made, bytes, &properties, 0));
    stage("created");
    CHECK(cuMemExportToShareableHandle(&fd, made, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
    CHECK(cuMemRelease(made));
    stage("exported");
    CHECK(cuMemImportFromShareableHandle(&imported, (void *)(long)fd, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR));
    stage("imported");
    CHECK(cuMemRelease(imported));
    stage("released");
    close(fd);
    stage("closed");
}

static void checkpoint(int pid)
{
    CHECK(cuCheckpointProcessLock(pid, NULL));
    CHECK(cuCheckpointProcessCheckpoint(pid, NULL));
    stage("out");
    CHECK(cuCheckpointProcessRestore(pid, NULL));
    CHECK(cuCheckpointProcessUnlock(pid, NULL));
    stage("back");
}

int main(int argc, char **argv)
{
    if (argc < 3)
        return 2;
    CHECK(cuInit(0));
    if (strcmp(argv[1], "vmm") == 0)
        vmm(strtoull(argv[2], NULL, 10) << 20);
    else
        checkpoint(atoi(argv[2]));
    return 0;
}
