/* Runs a fuzz target over a corpus and mutations of it, where no fuzzer is at hand: replay_corpus FILE... */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "backend.h"

enum { LARGEST = 65536, MUTATIONS = 2000 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

const struct backend *backend;
int gpu_count = 1;
int failures;

static uint32_t state = 2463534242u; /* the same mutations each time */

static uint32_t next(void)
{
    state ^= state << 13;
    state ^= state >> 17;
    return state ^= state << 5;
}

static size_t mutate(uint8_t *data, size_t size)
{
    for (uint32_t changes = 1 + next() % 8; changes && size; changes--)
        switch (next() % 4) {
        case 0: data[next() % size] = (uint8_t)next(); break;
        case 1: data[next() % size] ^= (uint8_t)(1u << next() % 8); break;
        case 2: data[next() % size] = next() & 1 ? 0xFF : 0; break;
        default: size -= next() % size; break;
        }
    return size;
}

int main(int argc, char **argv)
{
    static uint8_t original[LARGEST], data[LARGEST];

    for (int i = 1; i < argc; i++) {
        FILE *file = fopen(argv[i], "rb");
        if (!file) {
            perror(argv[i]);
            return 1;
        }
        size_t size = fread(original, 1, sizeof original, file);
        fclose(file);
        LLVMFuzzerTestOneInput(original, size);
        for (int round = 0; round < MUTATIONS; round++) {
            for (size_t at = 0; at < size; at++)
                data[at] = original[at];
            LLVMFuzzerTestOneInput(data, mutate(data, size));
        }
    }
    printf("%d inputs, %d mutations of each\n", argc - 1, MUTATIONS);
    return failures != 0;
}
