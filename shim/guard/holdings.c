#define _GNU_SOURCE
#include "holdings.h"

#include "backend.h"
#include "ledger.h"
#include "reach.h"
#include "sched.h"
#include "util.h"

bool holdings_open(struct holdings *holdings)
{
    *holdings = (struct holdings){.clients = {-1, -1, -1, 0}, .exports = {-1, -1, -1, 0}};
    pthread_mutex_init(&holdings->lock, NULL);
    for (int i = 0; i < HOLDINGS_ROOT_LOCKS; i++)
        pthread_mutex_init(&holdings->root_locks[i], NULL);
    return files_open(&holdings->clients) && files_open(&holdings->exports);
}

void holdings_close(struct holdings *holdings)
{
    files_close(&holdings->clients);
    files_close(&holdings->exports);
    pthread_mutex_destroy(&holdings->lock);
}

struct candidate {
    uint32_t root;
    pid_t pid;
    uint32_t file;   /* as the sets number it; 0: not watched */
    uint64_t serial; /* the number may have become another's */
};

/* Roots, as they were before the files were asked: one that comes later is not looked at. */
static int list_roots(const struct holdings *holdings, int slot, struct candidate *out, int max)
{
    int count = 0;

    ledger_lock();
    /* of a tenant that has ended nothing is left, and its slot may be another's */
    for (const struct ledger_object *root = holdings->ended ? NULL : ledger_first_root(slot); root && count < max;
         root = ledger_next_listed(root))
        out[count++] = (struct candidate){root->root, root->pid, ledger_file_of(root), ledger_serial(root)};
    ledger_unlock();
    return count;
}

static void give_back(const struct holdings *holdings, const struct candidate *dead)
{
    ledger_lock();
    const struct ledger_object *root = holdings->ended ? NULL : ledger_find(dead->root, dead->root);
    if (root && ledger_serial(root) == dead->serial && ledger_file_of(root) == dead->file)
        ledger_free(dead->root, dead->root);
    ledger_unlock();
}

/* A client that was never used is gone with its file. */
static void drop_unsettled(struct holdings *holdings, const uint32_t *alive, int count)
{
    int kept = 0;

    for (int i = 0; i < holdings->unsettled_count; i++)
        if (is_among(holdings->unsettled[i], alive, (size_t)count))
            holdings->unsettled[kept++] = holdings->unsettled[i];
    __atomic_store_n(&holdings->unsettled_count, kept, __ATOMIC_SEQ_CST);
}

bool holdings_sweep(struct holdings *holdings, int slot)
{
    struct candidate roots[FILES_MAX];
    uint32_t tags[FILES_MAX], exported[FILES_MAX];
    int count = list_roots(holdings, slot, roots, FILES_MAX), clients = 0, alive = 0;
    bool orphans = false;

    if (!count && !__atomic_load_n(&holdings->unsettled_count, __ATOMIC_SEQ_CST))
        return false;
    pthread_mutex_lock(&holdings->lock);
    int files = files_alive(&holdings->clients, tags);
    if (files >= 0)
        drop_unsettled(holdings, tags, files);
    int exports = files < 0 ? -1 : files_alive(&holdings->exports, exported);
    pthread_mutex_unlock(&holdings->lock);
    if (exports < 0)
        return true; /* can't be known now */
    for (int i = 0; i < count; i++)
        clients += !IS_LEDGER_ROOT(roots[i].root);
    for (int i = 0; i < count; i++) {
        bool gone = reach_has_exited(roots[i].pid), lives;
        if (IS_MANAGED_ROOT(roots[i].root))
            lives = !gone;
        else if (IS_EXPORT_ROOT(roots[i].root))
            lives = roots[i].file ? is_among(roots[i].file, exported, (size_t)exports) : clients > 0;
        else if (backend->client_lives)
            lives = backend->client_lives(roots[i].root);
        else /* a predecessor's, and not heard of since: it lives as long as its maker */
            lives = roots[i].file ? is_among(roots[i].file, tags, (size_t)files) : !gone;
        orphans |= lives && gone;
        alive += lives;
        if (!lives) {
            give_back(holdings, &roots[i]);
        }
    }
    if (alive < count)
        sched_wake();
    return orphans;
}
