/* The tag of a file, told while its neighbours are closed. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "check.h"
#include "files.h"

enum { NEIGHBOURS = 100, ROUNDS = 30, KEPT = 7777 };

static void *close_neighbours(void *argument)
{
    int *fds = argument;

    for (int i = 0; i < NEIGHBOURS; i++) {
        close(fds[i]);
        usleep(20);
    }
    return NULL;
}

static void a_tag_is_right_while_others_are_closed(struct files *files)
{
    int kept = eventfd(0, 0), fds[NEIGHBOURS];
    pthread_t thread;
    uint32_t tag;

    CHECK(files_add(files, kept, KEPT) == 0);
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < NEIGHBOURS; i++) {
            fds[i] = eventfd(0, 0);
            CHECK(files_add(files, fds[i], (uint32_t)(round * NEIGHBOURS + i + 10000)) == 0);
        }
        pthread_create(&thread, NULL, close_neighbours, fds);
        for (int i = 0; i < 50; i++)
            CHECK(files_tag(files, kept, &tag) && tag == KEPT);
        pthread_join(thread, NULL);
    }
    close(kept);
}

static void a_file_that_is_not_there_has_none(struct files *files)
{
    uint32_t tag = 1, tags[FILES_MAX];
    int fd = eventfd(0, 0);

    CHECK(files_tag(files, fd, &tag) && tag == 0);
    CHECK(files_add(files, fd, 5) == 0 && files_alive(files, tags) == 1 && tags[0] == 5);
    CHECK(files_add(files, fd, 6) != 0);
    CHECK(files_tag(files, fd, &tag) && tag == 5);
    close(fd);
    CHECK(files_alive(files, tags) == 0);
}

void test_files(void)
{
    struct files files;

    CHECK(files_open(&files));
    a_tag_is_right_while_others_are_closed(&files);
    a_file_that_is_not_there_has_none(&files);
    files_close(&files);
}
