/* A library that knows the driver and is loaded where nobody else sees it: what it finds in the default scope. */
#define _GNU_SOURCE
#include <dlfcn.h>

extern int cuInit(unsigned);

int begin(void) { return cuInit(0); }
void *find(const char *symbol) { return dlsym(RTLD_DEFAULT, symbol); }
