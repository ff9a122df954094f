/* What a tenant's calls leave behind beside the ledger: which of its open files hold clients, and exported memory. */
#ifndef VGPU_GUARD_HOLDINGS_H
#define VGPU_GUARD_HOLDINGS_H

#include <pthread.h>
#include <stdbool.h>

#include "files.h"

#define HOLDINGS_ROOT_LOCKS 64
#define HOLDINGS_UNSETTLED 256

/* One a tenant. */
struct holdings {
    pthread_mutex_t lock;          /* over both sets */
    struct files clients, exports; /* tags: numbers of the files that hold clients; export numbers */
    uint32_t last_file;
    /* files on which a client was let be made whose number is not known yet, one entry a client */
    uint32_t unsettled[HOLDINGS_UNSETTLED];
    int unsettled_count;
    pthread_mutex_t root_locks[HOLDINGS_ROOT_LOCKS];
    bool unsure; /* a client was made by the door that gives memory too: see clients_admit() */
    bool ended;  /* the tenant is gone: written and read under ledger_lock() */
};

bool holdings_open(struct holdings *holdings);
void holdings_close(struct holdings *holdings);
/* Give back what no open file holds any more. True: clients are alive whose maker is gone, so look again soon. */
bool holdings_sweep(struct holdings *holdings, int slot);

#endif
