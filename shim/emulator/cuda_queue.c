#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cuda_state.h"

struct task {
    struct task *next;
    work run;
    uint64_t ticket;
    max_align_t argument[];
};

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

/* The channel takes the next piece of work out of its ring. */
static void fetch(struct context *context)
{
    pthread_mutex_lock(&context->lock);
    context->fetched++;
    __atomic_store_n(&context->channel_object->get, context->fetched % EMU_RING, __ATOMIC_RELEASE);
    pthread_cond_broadcast(&context->changed);
    pthread_mutex_unlock(&context->lock);
}

/* Under the context's lock; waits while the ring is full. */
static void hand_in(struct context *context)
{
    struct emu_object *channel = context->channel_object;

    while (context->submitted - context->fetched >= EMU_RING - 1 && context->sticky == CUDA_SUCCESS)
        pthread_cond_wait(&context->changed, &context->lock);
    context->submitted++;
    __atomic_add_fetch(&channel->unfinished, 1, __ATOMIC_RELEASE);
    __atomic_store_n(&channel->put, context->submitted % EMU_RING, __ATOMIC_RELEASE);
}

static void *worker(void *argument)
{
    struct context *context = argument;

    pthread_mutex_lock(&context->lock);
    for (;;) {
        while (!context->head && !context->closing)
            pthread_cond_wait(&context->changed, &context->lock);
        if (!context->head)
            break;
        struct task *task = context->head;
        context->head = task->next;
        if (!context->head)
            context->tail = NULL;
        bool broken = context->sticky != CUDA_SUCCESS || context->closing;
        pthread_mutex_unlock(&context->lock);
        struct emu_object *channel = context->channel_object;
        if (!broken)
            emu_wait_enabled(channel);
        fetch(context);
        CUresult rc = broken ? CUDA_SUCCESS : task->run(context, task->argument);
        __atomic_sub_fetch(&channel->unfinished, 1, __ATOMIC_RELEASE);
        pthread_mutex_lock(&context->lock);
        if (rc != CUDA_SUCCESS && context->sticky == CUDA_SUCCESS)
            context->sticky = rc;
        context->finished = task->ticket;
        pthread_cond_broadcast(&context->changed);
        free(task);
    }
    pthread_mutex_unlock(&context->lock);
    return NULL;
}

CUresult start_worker(struct context *context)
{
    return pthread_create(&context->worker, NULL, worker, context) ? CUDA_ERROR_OPERATING_SYSTEM : CUDA_SUCCESS;
}

void stop_worker(struct context *context)
{
    pthread_mutex_lock(&context->lock);
    context->closing = true;
    pthread_cond_broadcast(&context->changed);
    pthread_mutex_unlock(&context->lock);
    pthread_join(context->worker, NULL);
}

CUresult submit(struct context *context, struct stream *stream, work run, const void *argument, size_t size,
                uint64_t *ticket)
{
    struct task *task = malloc(sizeof *task + size);

    if (!task)
        return CUDA_ERROR_OUT_OF_MEMORY;
    *task = (struct task){.run = run};
    if (size)
        memcpy(task->argument, argument, size);
    pthread_mutex_lock(&context->lock);
    CUresult rc = context->sticky;
    if (rc == CUDA_SUCCESS) {
        hand_in(context);
        task->ticket = context->submitted;
        if (context->tail)
            context->tail->next = task;
        else
            context->head = task;
        context->tail = task;
        if (stream)
            stream->last = task->ticket;
        if (ticket)
            *ticket = task->ticket;
        pthread_cond_broadcast(&context->changed);
    }
    pthread_mutex_unlock(&context->lock);
    if (rc != CUDA_SUCCESS)
        free(task);
    return rc;
}

CUresult wait_for(struct context *context, uint64_t ticket)
{
    pthread_mutex_lock(&context->lock);
    while (context->finished < ticket && context->sticky == CUDA_SUCCESS)
        pthread_cond_wait(&context->changed, &context->lock);
    CUresult rc = context->sticky;
    pthread_mutex_unlock(&context->lock);
    return rc;
}

static CUresult query(struct context *context, uint64_t ticket)
{
    pthread_mutex_lock(&context->lock);
    CUresult rc = context->sticky ? context->sticky : context->finished >= ticket ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
    pthread_mutex_unlock(&context->lock);
    return rc;
}

/* --- streams: all share the context's queue, which keeps every order that CUDA promises --- */

CUresult stream_of(CUstream handle, struct context **context, struct stream **stream)
{
    *stream = NULL;
    if (handle == NULL || handle == CU_STREAM_LEGACY || handle == CU_STREAM_PER_THREAD)
        return current(context);
    if (ready() != CUDA_SUCCESS)
        return CUDA_ERROR_NOT_INITIALIZED;
    *stream = handle;
    *context = handle->context;
    return CUDA_SUCCESS;
}

API CUresult cuStreamCreateWithPriority(CUstream *stream, unsigned flags, int priority)
{
    struct context *context;
    CUresult rc = current(&context);

    if (rc != CUDA_SUCCESS)
        return rc;
    if (!stream || flags > 1)
        return CUDA_ERROR_INVALID_VALUE;
    *stream = calloc(1, sizeof **stream);
    if (!*stream)
        return CUDA_ERROR_OUT_OF_MEMORY;
    **stream = (struct stream){.context = context, .flags = flags, .priority = priority};
    return CUDA_SUCCESS;
}
API CUresult cuStreamCreate(CUstream *stream, unsigned flags) { return cuStreamCreateWithPriority(stream, flags, 0); }
API CUresult cuStreamSynchronize(CUstream handle)
{
    struct context *context;
    struct stream *stream;
    CUresult rc = stream_of(handle, &context, &stream);
    return rc ? rc : wait_for(context, stream ? stream->last : context->submitted);
}
API CUresult cuStreamQuery(CUstream handle)
{
    struct context *context;
    struct stream *stream;
    CUresult rc = stream_of(handle, &context, &stream);
    return rc ? rc : query(context, stream ? stream->last : context->submitted);
}
API CUresult cuStreamDestroy_v2(CUstream stream)
{
    if (stream <= CU_STREAM_PER_THREAD)
        return CUDA_ERROR_INVALID_HANDLE;
    free(stream); /* its work goes on: tasks do not point at it */
    return CUDA_SUCCESS;
}
API CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned flags)
{
    (void)stream, (void)flags;
    return event ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE; /* the queue is in order: what came before is before */
}
API CUresult cuStreamIsCapturing(CUstream handle, int *status)
{
    struct context *context;
    struct stream *stream;

    if (!status)
        return CUDA_ERROR_INVALID_VALUE;
    *status = 0;
    return stream_of(handle, &context, &stream); /* nothing is ever captured here */
}
API CUresult cuStreamGetFlags(CUstream stream, unsigned *flags)
{
    if (!flags)
        return CUDA_ERROR_INVALID_VALUE;
    *flags = stream > CU_STREAM_PER_THREAD ? stream->flags : 0;
    return CUDA_SUCCESS;
}
API CUresult cuStreamGetPriority(CUstream stream, int *priority)
{
    if (!priority)
        return CUDA_ERROR_INVALID_VALUE;
    *priority = stream > CU_STREAM_PER_THREAD ? stream->priority : 0;
    return CUDA_SUCCESS;
}
API CUresult cuStreamGetCtx(CUstream handle, CUcontext *context)
{
    struct stream *stream;
    return context ? stream_of(handle, context, &stream) : CUDA_ERROR_INVALID_VALUE;
}

struct host_call {
    void (*function)(void *);
    void *data;
};
static CUresult run_host_call(struct context *context, void *argument)
{
    struct host_call *call = argument;
    (void)context;
    call->function(call->data);
    return CUDA_SUCCESS;
}
API CUresult cuLaunchHostFunc(CUstream handle, void (*function)(void *), void *data)
{
    struct host_call call = {function, data};
    struct context *context;
    struct stream *stream;
    CUresult rc = stream_of(handle, &context, &stream);
    if (rc == CUDA_SUCCESS && !function)
        rc = CUDA_ERROR_INVALID_VALUE;
    return rc ? rc : submit(context, stream, run_host_call, &call, sizeof call, NULL);
}

/* --- events --- */

API CUresult cuEventCreate(CUevent *event, unsigned flags)
{
    struct context *context;
    CUresult rc = current(&context);

    if (rc != CUDA_SUCCESS)
        return rc;
    if (!event)
        return CUDA_ERROR_INVALID_VALUE;
    *event = calloc(1, sizeof **event);
    if (!*event)
        return CUDA_ERROR_OUT_OF_MEMORY;
    (*event)->flags = flags;
    (*event)->context = context;
    return CUDA_SUCCESS;
}
static CUresult stamp(struct context *context, void *argument)
{
    struct event *event = *(struct event **)argument;
    (void)context;
    __atomic_store_n(&event->time_ns, now_ns(), __ATOMIC_RELEASE);
    return CUDA_SUCCESS;
}
API CUresult cuEventRecord(CUevent event, CUstream handle)
{
    struct context *context;
    struct stream *stream;
    CUresult rc = stream_of(handle, &context, &stream);
    if (rc == CUDA_SUCCESS && (!event || event->context != context))
        rc = CUDA_ERROR_INVALID_HANDLE;
    return rc ? rc : submit(context, stream, stamp, &event, sizeof event, &event->ticket);
}
API CUresult cuEventRecordWithFlags(CUevent event, CUstream stream, unsigned flags)
{
    (void)flags;
    return cuEventRecord(event, stream);
}
API CUresult cuEventSynchronize(CUevent event)
{
    return event ? wait_for(event->context, event->ticket) : CUDA_ERROR_INVALID_HANDLE;
}
API CUresult cuEventQuery(CUevent event)
{
    return event ? query(event->context, event->ticket) : CUDA_ERROR_INVALID_HANDLE;
}
API CUresult cuEventElapsedTime_v2(float *milliseconds, CUevent start, CUevent end)
{
    if (!milliseconds || !start || !end || !start->ticket || !end->ticket)
        return CUDA_ERROR_INVALID_HANDLE;
    if (query(start->context, start->ticket) || query(end->context, end->ticket))
        return CUDA_ERROR_NOT_READY;
    *milliseconds = (float)((double)(int64_t)(end->time_ns - start->time_ns) / 1e6);
    return CUDA_SUCCESS;
}
API CUresult cuEventElapsedTime(float *milliseconds, CUevent start, CUevent end)
{
    return cuEventElapsedTime_v2(milliseconds, start, end);
}
API CUresult cuEventDestroy_v2(CUevent event)
{
    if (!event)
        return CUDA_ERROR_INVALID_HANDLE;
    wait_for(event->context, event->ticket); /* a queued stamp points at it */
    free(event);
    return CUDA_SUCCESS;
}
