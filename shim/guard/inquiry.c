#define _GNU_SOURCE
#include "inquiry.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <time.h>

#include "ledger.h"
#include "reach.h"
#include "thread.h"
#include "util.h"

#define BUSY_CHECK_US 100 /* less is too short for the driver to find out, measured */
#define IDLE_SECONDS 10   /* a thread without questions ends */

enum state { STATE_NONE, STATE_POSTED, STATE_ANSWERED };

static struct inquiry {
    enum state state;
    enum inquiry_kind kind;
    int gpu, count;
    bool has_thread;
    pthread_cond_t posted;
    struct question questions[INQUIRY_MAX];
} inquiries[LEDGER_TENANTS];
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER; /* over all of them */

/* The file that a client lives on, taken from its process for a moment. */
static int take_file(const struct question *question)
{
    CLEANUP_FD int pidfd = reach_pidfd(question->pid);
    int fd = pidfd < 0 || question->file < 0
                 ? -1
                 : reach_descriptor(pidfd, question->pid, question->pid, -1, question->file);

    if (fd >= 0 && backend->kind(fd) != FILE_CONTROL) {
        close(fd);
        fd = -1;
    }
    return fd;
}

static bool is_idle(const struct question *question, int fd)
{
    struct nv0000_idle_channels params = {.device = question->device,
                                          .channel = question->channel.handle,
                                          .count = 1,
                                          .clients = (uintptr_t)&question->channel.root,
                                          .devices = (uintptr_t)&question->device,
                                          .channels = (uintptr_t)&question->channel.handle,
                                          .flags = NVOS30_FLAGS_BEHAVIOR_FORCE_BUSY_CHECK | NVOS30_FLAGS_CHANNEL_LIST |
                                                   NVOS30_FLAGS_IDLE_ALL_ENGINES,
                                          .timeout_us = BUSY_CHECK_US};
    struct nvos54 call = {.client = question->channel.root,
                          .object = question->channel.root,
                          .command = NV0000_CTRL_CMD_IDLE_CHANNELS,
                          .params = (uintptr_t)&params,
                          .params_size = sizeof params};

    return backend->perform(fd, question->pid, NV_REQUEST(NV_ESC_RM_CONTROL, struct nvos54), &call) == 0 &&
           call.status == NV_OK;
}

/* One that says no settles it: the others are not asked. */
static void answer(struct inquiry *inquiry)
{
    bool go_on = true;

    for (int i = 0; i < inquiry->count && go_on; i++) {
        struct question *question = &inquiry->questions[i];
        CLEANUP_FD int fd = take_file(question);
        if (inquiry->kind == INQUIRY_SHARE)
            question->yes = fd >= 0 && backend->share_ring(inquiry->gpu, fd, &question->channel, question->userd);
        else
            go_on = question->yes = fd >= 0 && is_idle(question, fd);
    }
}

static bool wait_for_post(struct inquiry *inquiry)
{
    struct timespec until;

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += IDLE_SECONDS;
    while (inquiry->state != STATE_POSTED)
        if (pthread_cond_timedwait(&inquiry->posted, &mutex, &until) == ETIMEDOUT)
            break;
    return inquiry->state == STATE_POSTED; /* it may have come with the end of the time */
}

static void *run(void *argument)
{
    struct inquiry *inquiry = argument;

    pthread_mutex_lock(&mutex);
    while (wait_for_post(inquiry)) {
        pthread_mutex_unlock(&mutex);
        answer(inquiry); /* nobody else touches it while it is posted */
        pthread_mutex_lock(&mutex);
        inquiry->state = STATE_ANSWERED;
    }
    inquiry->has_thread = false;
    pthread_cond_destroy(&inquiry->posted);
    pthread_mutex_unlock(&mutex);
    return NULL;
}

/* Under the mutex. */
static bool start_thread(struct inquiry *inquiry)
{
    if (inquiry->has_thread)
        return true;
    init_condition(&inquiry->posted);
    inquiry->has_thread = start_detached(run, inquiry);
    return inquiry->has_thread;
}

bool inquiry_post(int slot, enum inquiry_kind kind, int gpu, const struct question *questions, int count)
{
    struct inquiry *inquiry = &inquiries[slot];

    pthread_mutex_lock(&mutex);
    bool posted = inquiry->state == STATE_NONE && start_thread(inquiry);
    if (posted) {
        inquiry->kind = kind;
        inquiry->gpu = gpu;
        inquiry->count = count;
        memcpy(inquiry->questions, questions, (size_t)count * sizeof *questions);
        inquiry->state = STATE_POSTED;
        pthread_cond_signal(&inquiry->posted);
    }
    pthread_mutex_unlock(&mutex);
    return posted;
}

int inquiry_take(int slot, enum inquiry_kind *kind, struct question questions[INQUIRY_MAX])
{
    struct inquiry *inquiry = &inquiries[slot];
    int count = 0;

    pthread_mutex_lock(&mutex);
    if (inquiry->state == STATE_ANSWERED) {
        count = inquiry->count;
        *kind = inquiry->kind;
        memcpy(questions, inquiry->questions, sizeof inquiry->questions);
        inquiry->state = STATE_NONE;
    }
    pthread_mutex_unlock(&mutex);
    return count;
}
