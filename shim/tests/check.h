/* A test is a function; CHECK says what did not hold and where, and goes on. */
#ifndef VGPU_TESTS_CHECK_H
#define VGPU_TESTS_CHECK_H

#include <stdio.h>

extern int failures;

#define CHECK(condition)                                                    \
    do {                                                                    \
        if (!(condition)) {                                                 \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
            failures++;                                                     \
        }                                                                   \
    } while (0)

void test_audit(void);
void test_judge(void);
void test_budget(void);
void test_clients(void);
void test_files(void);
void test_perform(void);
void test_policy(void);
void test_ptx(void);
void test_still(void);
void test_work(void);

#endif
