#define _GNU_SOURCE
#include "processes.h"

#include <stdlib.h>
#include <string.h>

#include "perform_parts.h"
#include "reach.h"

#define NOBODY UINT32_MAX /* the driver's own clients are 0's */

struct process {
    pid_t pid, inside;
};

static int by_number(const void *a, const void *b)
{
    pid_t x = *(const pid_t *)a, y = *(const pid_t *)b;
    return x < y ? -1 : x > y;
}

int processes_list(int slot, pid_t *pids, int max)
{
    int count = 0, once = 0;

    for (const struct ledger_object *root = ledger_first_root(slot); root && count < max;
         root = ledger_next_listed(root))
        if (!IS_MANAGED_ROOT(root->root)) /* the driver has no account of it */
            pids[count++] = root->pid;
    qsort(pids, (size_t)count, sizeof *pids, by_number);
    for (int i = 0; i < count; i++)
        if (!once || pids[i] != pids[once - 1])
            pids[once++] = pids[i];
    return once;
}

bool processes_asked(uint32_t command)
{
    return command == NV2080_CTRL_CMD_GPU_GET_PIDS || command == NV2080_CTRL_CMD_GPU_GET_PID_INFO ||
           command == NV2080_CTRL_CMD_PERF_GET_GPUMON_PERFMON_UTIL_SAMPLES_V2;
}

static int list_own(const struct call *call, struct process own[FILES_MAX])
{
    pid_t pids[FILES_MAX];

    ledger_lock();
    int count = processes_list(call->slot, pids, FILES_MAX);
    ledger_unlock();
    for (int i = 0; i < count; i++)
        own[i] = (struct process){pids[i], reach_pid_inside(pids[i])};
    return count;
}

static const struct process *find(const struct process *own, int count, pid_t pid, bool inside)
{
    for (int i = 0; i < count; i++)
        if ((inside ? own[i].inside : own[i].pid) == pid)
            return &own[i];
    return NULL;
}

static int ask_who(struct job *job, const struct call *call, struct nvos54 *mine, struct nv2080_get_pids *asked,
                   const struct process *own, int own_count)
{
    int rc = parts_rm_control(job, call->pid, mine);
    uint32_t kept = 0;

    if (rc < 0 || mine->status != NV_OK)
        return -rc;
    for (uint32_t i = 0; i < asked->count && i < NV2080_PIDS_MAX; i++) {
        const struct process *process = find(own, own_count, (pid_t)asked->pids[i], false);
        if (process)
            asked->pids[kept++] = (uint32_t)process->inside;
    }
    memset(asked->pids + kept, 0, (NV2080_PIDS_MAX - kept) * sizeof *asked->pids);
    asked->count = kept;
    return 0;
}

/* Asked for another's, the driver is asked for nobody's. */
static int ask_of_each(struct job *job, const struct call *call, struct nvos54 *mine, struct nv2080_get_pid_info *asked,
                       const struct process *own, int own_count)
{
    uint32_t numbers[NV2080_PID_INFO_MAX], count = asked->count;

    if (count > NV2080_PID_INFO_MAX) {
        mine->status = NV_ERR_INVALID_ARGUMENT;
        return 0;
    }
    for (uint32_t i = 0; i < count; i++) {
        numbers[i] = asked->list[i].pid;
        const struct process *process = find(own, own_count, (pid_t)numbers[i], true);
        asked->list[i].pid = process ? (uint32_t)process->pid : NOBODY;
    }
    int rc = parts_rm_control(job, call->pid, mine);
    for (uint32_t i = 0; i < count; i++)
        asked->list[i].pid = numbers[i];
    return -rc;
}

/* Others' moments look as if nobody was there. */
static int ask_of_moments(struct job *job, const struct call *call, struct nvos54 *mine,
                          struct nv2080_util_samples *asked, const struct process *own, int own_count)
{
    int rc = parts_rm_control(job, call->pid, mine);

    if (rc < 0 || mine->status != NV_OK)
        return -rc;
    for (int i = 0; i < NV2080_UTIL_SAMPLES; i++)
        for (int j = 0; j < NV2080_UTIL_ENGINES; j++) {
            struct nv2080_engine_util *engine = &asked->samples[i].engines[j];
            const struct process *process = find(own, own_count, (pid_t)engine->pid, false);
            *engine = (struct nv2080_engine_util){
                .util = process ? engine->util : 0,
                .vgpu_scale = engine->vgpu_scale,
                .pid = process ? (uint32_t)process->inside : NV2080_GPUMON_PID_INVALID,
                .pid_in_guest = NV2080_GPUMON_PID_INVALID,
            };
        }
    return 0;
}

static uint32_t size_of(uint32_t command)
{
    switch (command) {
    case NV2080_CTRL_CMD_GPU_GET_PIDS: return sizeof(struct nv2080_get_pids);
    case NV2080_CTRL_CMD_GPU_GET_PID_INFO: return sizeof(struct nv2080_get_pid_info);
    default: return sizeof(struct nv2080_util_samples);
    }
}

int processes_control(struct job *job, const struct call *call, struct nvos54 *mine, void *params)
{
    struct process own[FILES_MAX];

    if (mine->params_size != size_of(mine->command)) {
        mine->status = NV_ERR_INVALID_ARGUMENT;
        return 0;
    }
    int count = list_own(call, own);
    switch (mine->command) {
    case NV2080_CTRL_CMD_GPU_GET_PIDS: return ask_who(job, call, mine, params, own, count);
    case NV2080_CTRL_CMD_GPU_GET_PID_INFO: return ask_of_each(job, call, mine, params, own, count);
    default: return ask_of_moments(job, call, mine, params, own, count);
    }
}
