#ifndef VGPU_HOOK_DRIVER_CALLS_H
#define VGPU_HOOK_DRIVER_CALLS_H

#include <stdbool.h>

typedef int (*ioctl_function)(int, unsigned long, void *);

/* May it change what this process holds? */
bool driver_call_matters(unsigned long request);
/* Does ioctl(fd, request, argument) on a file of the driver's, and keeps the tenant's account in step. */
int driver_call(int fd, unsigned long request, void *argument, ioctl_function real);

#endif
