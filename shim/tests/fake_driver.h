/* A driver for tests: does what `fake` says, and notes what it was asked. */
#ifndef VGPU_TESTS_FAKE_DRIVER_H
#define VGPU_TESTS_FAKE_DRIVER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "perform.h"

#define FAKE_CHANNELS 1024
#define FAKE_HOMES 8

struct fake_driver {
    uint32_t status;     /* of every call */
    uint64_t round_to;   /* memory is rounded up to this; 0: not */
    unsigned char write; /* controls: first byte written into the parameters, and into what they point at */
    pid_t tenant;        /* whose memory the calls are in; 0: the test's own process */
    int fd;              /* of the calls */
    struct {
        uint32_t root;
        int fd;
    } homes[FAKE_HOMES]; /* which clients live on which files; none: all on every one */
    int allocs, frees, controls, dups, questions;
    uint32_t last_pid; /* that the driver was asked about */
    uint64_t last_params, last_pointer;
    uint64_t witnessed; /* memory that the driver itself knows of */
    int rings_open;
    bool no_rings; /* none can be seen */
    struct fake_channel {
        uint32_t handle, get, put, done;
    } channels[FAKE_CHANNELS];
};
extern struct fake_driver fake;
extern const struct backend fake_backend;

bool fake_admit(int slot, uint32_t nr); /* clients_admit() on fake.fd, by that door */
bool fake_sweep(int slot);              /* holdings_sweep() */
/* Judge and do one call of tenant `slot`, whose struct is at `args` there. Returns what the tenant gets. */
int fake_call(int slot, uint32_t nr, uint32_t size, void *args);
struct fake_channel *fake_channel(uint32_t handle); /* made where there is none */
void fake_open(void);
void fake_close(void);

#endif
